"""``xnorc export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import ExportError
from .common import FILE, check_writable, parse_sizes, progress, size, verb, write_json

_DTYPES = ("float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool")


@verb(
    "export",
    "Export a torch module to ONNX, and check the result.",
    "xnorc export my_model.py:make_model --weights weights.safetensors --input 1,3,224,224 -o model.onnx",
)
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--weights", type=FILE, metavar="FILE", help="State dict: .safetensors, or what torch.save wrote (never unpickled)."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="1,3,224,224",
    help="Shape of an input, once for each input.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(_DTYPES),
    metavar="DTYPE",
    help=f"Type of the inputs, once or for each: {', '.join(_DTYPES)} (default: float32).",
)
@click.option("-o", "--output", type=FILE, metavar="FILE", required=True, help="The ONNX file to write.")
@click.option("--exporter", type=click.Choice(["auto", "dynamo", "torchscript"]), default="auto", show_default=True,
              help="Which of torch's exporters to try first.")  # fmt: skip
@click.option("--opset", type=int, metavar="N", default=18, show_default=True, help="ONNX opset to write.")
@click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the module's own random weights and of the inputs.",
)
def export_verb(
    factory: str,
    weights: Path | None,
    inputs: tuple[str, ...],
    dtypes: tuple[str, ...],
    output: Path,
    exporter: Any,
    opset: int,
    seed: int,
    json_file: Path | None,
) -> None:
    """Export a torch module to ONNX and check the result in ONNX Runtime.

    MODULE:FACTORY names a function (or class) that makes the module: package.module:make or path/file.py:make.
    """
    from ..exporter import export, load_factory, load_weights
    from ..factory import require_torch

    shapes = [_parse(text) for text in inputs]
    if len(dtypes) not in (0, 1, len(shapes)):
        raise ExportError(f"{len(shapes)} inputs and {len(dtypes)} --dtype: give one, or one for each input")
    kinds = list(dtypes) * len(shapes) if len(dtypes) == 1 else list(dtypes) or ["float32"] * len(shapes)
    check_writable(output, json_file)
    with progress(f"exporting {factory}") as say:
        say("importing torch")
        torch = require_torch()
        torch.manual_seed(seed)
        module = load_factory(factory)()
        if weights is not None:
            load_weights(module, weights)
        examples = [_example(torch, shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
        result = export(module, examples, output, exporter=exporter, opset=opset, progress=say)
    if weights is None:
        click.echo("note: no --weights: the module's initial weights were exported", err=True)
    if result.reason:
        click.echo(f"note: exported with {result.exporter}; {result.reason}", err=True)
    for warning in result.warnings:
        click.echo(f"note: fixed as it was for the example inputs: {warning}", err=True)
    click.echo(
        f"{output}: {len(result.model.graph.node)} nodes, {size(output.stat().st_size)}, exporter {result.exporter}"
    )
    if result.report is not None:
        click.echo(result.report.note)
    facts = {
        "output": output,
        "exporter": result.exporter,
        "reason": result.reason,
        "warnings": list(result.warnings),
        "nodes": len(result.model.graph.node),
        "bytes": output.stat().st_size,
        "check": asdict(result.report) if result.report is not None else None,
    }
    write_json(json_file, facts)


def _parse(text: str) -> tuple[int, ...]:
    try:
        return parse_sizes(text)
    except ValueError:
        raise ExportError(f"--input '{text}' is not a shape like 1,3,224,224") from None


def _example(torch: Any, shape: tuple[int, ...], kind: str) -> Any:
    dtype = getattr(torch, kind)
    return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.randint(0, 2, shape).to(dtype)
