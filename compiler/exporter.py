"""From a torch module to ONNX, checked: both of torch's exporters, constant folding without a size limit, comparison.

The exported graph keeps the module's own order of operations: neither exporter is allowed to merge a BatchNorm into the
convolution before it, since that changes roundings, and so signs.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import ExportError, ModelError
from .export_baked import check_baked
from .export_check import Agreement, compare
from .factory import load_factory, load_weights, require_torch
from .golden import one_line

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Agreement", "ExportResult", "export", "load_factory", "load_weights"]

Exporter = Literal["auto", "dynamo", "torchscript"]
OLDEST_OPSET, NEWEST_OPSET = 18, 23


@dataclass(frozen=True)
class ExportResult:
    """An exported model. ``reason`` says why the exporter tried first was not the one used, or is empty."""

    model: onnx.ModelProto
    path: Path | None
    exporter: str
    reason: str
    report: Agreement | None
    """How well ONNX Runtime and the module agree; None when the check was switched off."""
    warnings: tuple[str, ...] = ()
    """Decisions that the module's Python code took on tensor values, and that TorchScript recorded as they fell: on other
    data they fell the same way (``export_baked``)."""


def export(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    exporter: Exporter = "auto",
    opset: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    check: bool = True,
    fold: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export ``module`` (in eval mode) to ONNX with the shapes of ``example_inputs``, and write it to ``path`` if given.

    ``exporter`` is tried first (``auto``: dynamo) and the other one after it. ``fold`` evaluates everything constant, so
    that chains which binarize weights vanish. ``check`` runs the result in ONNX Runtime and compares it with the module
    on the example inputs and on random ones. Inputs are named after the parameters of ``forward``, outputs ``output`` (or
    ``output_0``, …), unless names are given. The module's training mode is as before afterwards.

    Raises ``ExportError`` when both exporters fail, or when what they make is not what the module computes, on other data
    than the example inputs too.
    """
    torch = require_torch()
    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    if not args or not all(isinstance(value, torch.Tensor) for value in args):
        raise ExportError("example_inputs must be a tensor or a sequence of tensors")
    if exporter not in ("auto", "dynamo", "torchscript"):
        raise ExportError(f"unknown exporter '{exporter}': choose auto, dynamo or torchscript")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(f"opset {opset} is not from {OLDEST_OPSET} to {NEWEST_OPSET}")
    say = progress or (lambda stage: None)
    with _eval_mode(module), torch.no_grad():
        outputs = _call(module, args)
        names = list(input_names) if input_names is not None else _input_names(module, len(args))
        results = list(output_names) if output_names is not None else _output_names(len(outputs))
        _check_names(names, results, len(args), len(outputs))
        order = ("torchscript", "dynamo") if exporter == "torchscript" else ("dynamo", "torchscript")
        failures: list[str] = []
        for kind in order:
            say(f"exporting ({kind})")
            try:
                recorded: list[str] = []
                if kind == "dynamo":
                    model = _with_dynamo(module, args, opset, names, results)
                else:
                    model = _with_torchscript(module, args, opset, names, results, recorded)
                    if check and recorded:
                        say("tracing on other data")
                        check_baked(
                            args, model, recorded,
                            lambda other: _with_torchscript(module, other, opset, names, results, []),
                        )  # fmt: skip
                if fold:
                    say("folding constants")
                    model = _fold(model)
                _keep_module_names(model)
                report = None
                if check:
                    say("comparing with ONNX Runtime")
                    report = compare(module, args, model, results)
            except (ExportError, ModelError) as error:
                failures.append(f"{kind}: {error}")
                continue
            break
        else:
            raise ExportError(f"the module cannot be exported; {'; '.join(failures)}")
    if path is not None:
        from .model import save_model

        save_model(model, path)
    written = Path(path) if path is not None else None
    return ExportResult(model, written, kind, "; ".join(failures), report, tuple(recorded))


@contextlib.contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    before = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, training in before:
            inner.training = training


@contextlib.contextmanager
def _silence() -> Iterator[list[warnings.WarningMessage]]:
    """Nothing that torch prints or logs while exporting is for the user: failures are raised. Gives the warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(level)


def _call(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    from .export_check import tensors_of

    try:
        outputs = tensors_of(module(*args))
    except Exception as error:  # whatever the module's own code raises
        shapes = ", ".join(str(list(value.shape)) for value in args)
        raise ExportError(f"the module fails on inputs {shapes}: {type(error).__name__}: {one_line(error)}") from error
    if not outputs:
        raise ExportError("the module returns no tensor")
    return outputs


def _input_names(module: torch.nn.Module, count: int) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional][:count]
    return names + [f"input_{index}" for index in range(len(names), count)]


def _output_names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _check_names(inputs: list[str], outputs: list[str], n_inputs: int, n_outputs: int) -> None:
    for kind, names, count in (("input", inputs, n_inputs), ("output", outputs, n_outputs)):
        if len(names) != count:
            raise ExportError(f"the module has {count} {kind}s, {len(names)} {kind} names were given")
    both = [*inputs, *outputs]
    if len(set(both)) < len(both) or not all(both):
        raise ExportError(f"names of inputs and outputs must differ from each other: {', '.join(both)}")


def _with_dynamo(
    module: torch.nn.Module, args: tuple[torch.Tensor, ...], opset: int, inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    import torch

    try:
        with _silence():
            import onnxscript.optimizer

            # optimize=True would also merge BatchNorms into convolutions; what is wanted of it is done by name.
            program: Any = torch.onnx.export(
                module,
                args,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                optimize=False,
                input_names=inputs,
                output_names=outputs,
            )
            onnxscript.optimizer.fold_constants_ir(program.model)
            onnxscript.optimizer.remove_unused_nodes(program.model)
            return program.model_proto
    except Exception as error:  # torch.export raises dozens of kinds
        raise ExportError(_reason(error)) from error


def _with_torchscript(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    opset: int,
    inputs: list[str],
    outputs: list[str],
    recorded: list[str],
) -> onnx.ModelProto:
    import onnx
    import torch

    buffer = io.BytesIO()
    try:
        with _silence() as caught:
            torch.onnx.export(
                module,
                args,
                buffer,
                dynamo=False,
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would merge BatchNorms into convolutions
                input_names=inputs,
                output_names=outputs,
            )
    except Exception as error:  # the tracer raises RuntimeError, and whatever the module's code does
        raise ExportError(_reason(error)) from error
    for warning in caught:
        if issubclass(warning.category, torch.jit.TracerWarning):
            text = str(warning.message).split(". ")[0]
            recorded.append(f"{Path(warning.filename).name}:{warning.lineno}: {text}")
    return onnx.load_model_from_string(buffer.getvalue())


def _reason(error: BaseException) -> str:
    """The innermost cause, its first line: torch wraps errors in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    text = text if len(text) <= 200 else text[:199] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _keep_module_names(model: onnx.ModelProto) -> None:
    """Of all that an exporter notes about a node, keep the name of its module: stack traces tell of this machine."""
    from .model import source_names

    sources = source_names(model)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for node in graph.node:
        if node.name in sources:
            node.metadata_props.add(key="xnorc.source", value=sources[node.name])


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    from .model import prepare
    from .passes.graph import export_graph, import_graph
    from .passes.tidy.fold_constants import FoldConstants

    graph, context = import_graph(prepare(model))
    context.current = FoldConstants.name
    FoldConstants().run(graph, context)
    return export_graph(graph, context)
