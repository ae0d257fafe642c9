"""Did tracing fix a constant that depends on the data?

TorchScript runs a module once and records what it does to tensors. Where Python code reads a tensor's value (``item()``,
``float()``, ``if tensor > 0``), what it makes of it becomes a constant or a branch of the example inputs. The tracer says
where that happens, not whether it matters: a guard that asks for the state of the module is harmless. So the module is
traced again on other data, and the two graphs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .errors import ExportError
from .export_check import random_like

if TYPE_CHECKING:
    import onnx
    import torch

SCALES = (1.0, 8.0, 0.125)
"""Spread of the other data beside that of the example inputs: thresholds on magnitudes must be crossed, too."""


def check_baked(
    args: tuple[torch.Tensor, ...],
    model: onnx.ModelProto,
    recorded: list[str],
    trace: Callable[[tuple[torch.Tensor, ...]], onnx.ModelProto],
) -> None:
    """Raise ``ExportError`` when tracing on other data gives another graph than ``model``, which was traced on ``args``.

    ``recorded``: what the tracer noted, named in the message. Data on which the module fails show nothing.
    """
    for seed, scale in enumerate(SCALES, start=1):
        other = tuple(
            random_like(value, seed) * scale if value.dtype.is_floating_point else random_like(value, seed)
            for value in args
        )
        try:
            again = trace(other)
        except ExportError:
            continue
        if list(_lines(again)) != list(_lines(model)):
            where = "; ".join(dict.fromkeys(recorded))
            raise ExportError(
                "a value computed from the inputs would be fixed as it was for the example inputs, since Python code reads "
                f"it: compute it with tensor operations (torch.where instead of if, no .item()) at {where}"
            )


def _lines(model: onnx.ModelProto) -> Iterator[bytes]:
    """The graph without names and notes: operators, attributes, constants by value, tensors by where they come from."""
    names = {info.name: f"input {index}".encode() for index, info in enumerate(model.graph.input)}
    for tensor in model.graph.initializer:
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copy.ClearField("name")
        names[tensor.name] = copy.SerializeToString(deterministic=True)
    for index, node in enumerate(model.graph.node):
        yield node.op_type.encode()
        yield from (attr.SerializeToString(deterministic=True) for attr in sorted(node.attribute, key=lambda a: a.name))
        yield from (names.get(name, name.encode()) for name in node.input)
        names |= {name: f"{index}.{place}".encode() for place, name in enumerate(node.output)}
    yield from (names.get(info.name, info.name.encode()) for info in model.graph.output)
