"""``xnorc explain`` and ``xnorc optimize``: what happens to a model before any target is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from .. import api, targets
from ..lower.costs import KERNELS, LayerCost, layer_costs
from ..passes import Status
from ..report import elide
from ..report.text import amount
from ..targets import Target
from .common import (
    FILE,
    check_writable,
    console,
    many,
    model_options,
    progress,
    read_calibration,
    sign_zero_value,
    size,
    table,
    verb,
    write_json,
)

if TYPE_CHECKING:
    from ..operations import Operations

_LAYERS = ("Conv", "Gemm", "MatMul")
_MAX_NAMES = 12
_COLOURS = {"packed": "green", "fused": "green", "folded": "cyan", "removed": "cyan", "float": "yellow"}


@verb("explain", "Say what would be packed, what not, and why.", "xnorc explain model.onnx")
@click.argument("model", type=FILE)
@click.option(
    "--costs", metavar="TARGET", help="Also print what each layer would cost there by kernel, and which it gets."
)
@model_options
def explain_verb(
    model: Path,
    costs: str | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    sign_zero: str | None,
    float_layers: str,
    shortcuts: str,
    calibration: Path | None,
    json_file: Path | None,
) -> None:
    """Say for every node of an ONNX model whether it would be packed, and why.

    \b
    packed   runs on bits
    fused    part of another node's kernel
    folded   a constant, computed when compiling
    removed  not needed
    float    stays in float
    """
    check_writable(json_file)
    target = None if costs is None else targets.get(costs)
    with progress(f"explaining {model.name}") as say:
        found = api.explain(
            model,
            shapes=dict(shapes),
            sign_zero=sign_zero_value(sign_zero),
            float_layers=float_layers,
            shortcuts=shortcuts,
            calibration=read_calibration(calibration, model, dict(shapes)),
            progress=say,
        )
    out = console()
    shown = table("module, node" if any(found.source.values()) else "node", "op", "result", "why")
    room = max(20, min(48, out.width * 28 // 100))
    shown.columns[0].no_wrap = True
    before = None
    for record in found.records:
        source = found.source.get(record.node, "")
        name, status = escape(elide(record.node, room)), record.status.value
        if source and source != record.node:
            name = f"{escape(elide(source, room))}\n[dim]{name}[/]"
        why = "[dim]as above[/]" if record.reason == before else escape(record.reason)
        before = record.reason
        shown.add_row(name, record.op, f"[{_COLOURS[status]}]{status}[/]", why)
    out.print(shown)
    out.print(escape(summary(found)))
    if hint := _nothing_packed(found):
        out.print(escape(hint))
    layers = []
    if target is not None:
        packed = api.optimize(
            model,
            shapes=dict(shapes),
            sign_zero=sign_zero_value(sign_zero),
            float_layers=float_layers,
            shortcuts=shortcuts,
            calibration=read_calibration(calibration, model, dict(shapes)),
        )
        layers = layer_costs(packed.model, target)
        _show_costs(layers, target)
    more = {} if target is None else {"costs": {"target": target.name, "layers": [layer.to_dict() for layer in layers]}}
    write_json(json_file, {"model": model, **found.to_dict(), **more})


def _show_costs(layers: list[LayerCost], target: Target) -> None:
    """A row a layer: million cycles by kernel; the chosen one in bold."""
    out = console()
    out.print(f"\nmillion cycles on {target.name} by kernel, estimated; the chosen kernel with a star")
    shown = table("layer", "bits", "MMAC", *KERNELS)
    for layer in layers:
        cells = []
        for name in KERNELS:
            cost = layer.mcycles[name]
            text = "–" if cost is None else f"{cost:.3f}"
            text += f" ({layer.instruction})" if name == "int8" and cost is not None else ""
            cells.append(f"[bold]{text} *[/]" if name == layer.chosen else text)
        bits = f"W{layer.w_planes}A{layer.x_planes}"
        shown.add_row(escape(elide(layer.layer, 40)), bits, f"{layer.macs / 1e6:.1f}", *cells)
    out.print(shown)


def summary(found: api.Explanation) -> str:
    """Nodes by what happened to them, which of them stay in float, and sizes."""
    counts = ", ".join(f"{count} {status}" for status, count in found.counts().items())
    before, after = found.parameter_bytes, found.packed_bytes
    ratio = f" ({before / after:.1f} times smaller)" if after and before >= 1.05 * after else ""
    lines = [f"nodes: {counts}"]
    floats = [record.node for record in found.records if record.status is Status.FLOAT]
    if 0 < len(floats) < len(found.records):
        names = list(dict.fromkeys(elide(found.source.get(node) or node, 40) for node in floats))
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        lines.append(f"in float: {', '.join(names[:_MAX_NAMES])}{more}")
    lines.append(f"parameters: {size(before)} before, {size(after)} after{ratio}")
    if found.operations and found.packed_operations and found.operations.total:
        lines.append(_operations(found.operations, found.packed_operations))
    return "\n".join(lines)


def _operations(before: Operations, after: Operations) -> str:
    """Products of floats before; after, those and a 64th of the products of bits."""
    text = f"operations: {amount(before.total)} before, {amount(after.total)} after"
    if after.bits:
        ratio = f"{before.total / after.total:.1f} times fewer"
        text += f" ({ratio}: {amount(after.floats)} of floats, {amount(after.bits)} of bits / 64)"
    if after.repeated_bits:
        text += f"; {amount(after.total_once)} with --sign-zero=+1"
    return text


def _nothing_packed(found: api.Explanation) -> str:
    """What to say of a model in which nothing is packed; nothing of others."""
    if any(record.status is Status.PACKED for record in found.records):
        return ""
    layers = [record.op for record in found.records if record.op in _LAYERS]
    if not layers:
        return "nothing to pack: the model has no Conv, Gemm or MatMul"
    return (
        f"nothing to pack: of {many(len(layers), 'layer')} ({', '.join(sorted(set(layers)))}) none multiplies signs by "
        "two-level weights. The table says what each lacks. A layer is packed when a sign of any form (sign, where, a "
        "comparison) feeds it and its weights are +s or -s in each output channel."
    )


@verb("optimize", "Pack an ONNX model; the result still is ONNX.", "xnorc optimize model.onnx -o packed.onnx --check")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="FILE", required=True, help="The packed ONNX file to write.")
@click.option("--check", is_flag=True, help="Compare with ONNX Runtime after every pass.")
@model_options
def optimize_verb(
    model: Path,
    output: Path,
    check: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    sign_zero: str | None,
    float_layers: str,
    shortcuts: str,
    calibration: Path | None,
    json_file: Path | None,
) -> None:
    """Pack an ONNX model; the result still runs in ONNX Runtime."""
    check_writable(output, json_file)
    with progress(f"optimizing {model.name}") as say:
        found = api.optimize_and_explain(
            model,
            output=output,
            shapes=dict(shapes),
            sign_zero=sign_zero_value(sign_zero),
            float_layers=float_layers,
            shortcuts=shortcuts,
            calibration=read_calibration(calibration, model, dict(shapes)),
            check=check,
            progress=say,
        )
    click.echo(f"{output}: {size(output.stat().st_size)}")
    click.echo(summary(found))
    write_json(json_file, {"model": model, "output": output, **found.to_dict()})
