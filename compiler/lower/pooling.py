"""``MaxPool`` and ``AveragePool`` for Relax: TVM's arrive without a schedule, and average into a buffer of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .converters import _floats_at_run_time, _paddings, _standard, converter, shape_of
from .kernels import float_calls


@converter("MaxPool")
def max_pool(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Float32, one or two axes, one output, sizes rounded down."""
    return _pool("MaxPool", "max_pool", bb, inputs, values, attrs)


@converter("AveragePool")
def average_pool(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """As ``max_pool``, where every window has the same number of elements: no padding, or padding that counts."""
    return _pool("AveragePool", "average_pool", bb, inputs, values, attrs)


def _pool(op: str, kernel: str, bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    shape = shape_of(inputs[0])
    axes = len(shape) - 2
    if axes not in (1, 2) or not _floats_at_run_time(inputs, values) or attrs.get("ceil_mode", 0):
        return _standard(op, bb, inputs, attrs)
    if attrs["tvm_custom"]["num_outputs"] > 1:
        return _standard(op, bb, inputs, attrs)
    window, strides = list(attrs["kernel_shape"]), list(attrs.get("strides", [1] * axes))
    dilations = list(attrs.get("dilations", [1] * axes))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(window, dilations, strict=True)]
    pads = _paddings(attrs, shape[2:], reach, strides)
    padded = any(pads) and not (op == "AveragePool" and attrs.get("count_include_pad", 0))
    # A window that lies in the padding alone has no element.
    if min(pads) < 0 or (padded and any(pad >= size for pad, size in zip(pads, [*reach, *reach], strict=True))):
        return _standard(op, bb, inputs, attrs)
    if padded and (op == "AveragePool" or any(dilation > 1 for dilation in dilations)):
        return _standard(op, bb, inputs, attrs)
    out = [(shape[2 + i] + pads[i] + pads[axes + i] - reach[i]) // strides[i] + 1 for i in range(axes)]
    if min(out) < 1:
        return _standard(op, bb, inputs, attrs)
    missing = 2 - axes
    described = {
        "window": [1] * missing + window,
        "strides": [1] * missing + strides,
        "dilations": [1] * missing + dilations,
        "pads": [0] * missing + pads[:axes] + [0] * missing + pads[axes:],
    }
    return float_calls.emit(bb, kernel, described, inputs, (*shape[:2], *out))
