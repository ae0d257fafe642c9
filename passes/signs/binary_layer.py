"""Is a Conv, Gemm or MatMul a product of signs? What it is if so, and the exact reason if not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..base import constant, producer, static_shape
from ..windows import Window, constant_pad, window
from .bit_route import Route, Rows, channels_last, find_route, find_rows


@dataclass(frozen=True)
class BinaryConvLayer:
    """A Conv over one or two spatial axes. ``weights``: ±1 float32 [O, C/group, KH, KW]."""

    route: Route
    weights: np.ndarray
    bias: np.ndarray | None
    channels: int
    group: int
    window: Window
    pad_value: int
    pad: gs.Node | None
    """The explicit Pad by ±1 that is now part of ``window``."""

    def describe(self) -> str:
        """One line for reports."""
        outputs, _, height, width = self.weights.shape
        text = f"BinaryConv {height}x{width} {self.channels}→{outputs}"
        if self.group > 1:
            text += f" in {self.group} groups"
        if self.window.padded:
            zeros = "zero padding kept exact by border corrections"
            text += f", padded with {self.pad_value:+d}" if self.pad_value else f", {zeros}"
        return text


@dataclass(frozen=True)
class BinaryRowsLayer:
    """A Gemm or MatMul. ``weights``: ±1 float32 [O, K]."""

    rows: Rows
    weights: np.ndarray
    transposed: bool
    """Whether the original holds them as [K, O]."""

    def describe(self) -> str:
        """One line for reports."""
        text = f"BinaryGemm {self.weights.shape[1]}→{self.weights.shape[0]}"
        moved = self.rows.columns[self.rows.columns >= 0]
        return text if (np.diff(moved) > 0).all() else f"{text}, weights permuted to channels last"


def read_layer(node: gs.Node) -> BinaryConvLayer | BinaryRowsLayer | str:
    """What binary layer ``node`` is, or why it is none."""
    if node.op == "Conv":
        return _read_conv(node)
    return _read_rows(node)


def _weight_reason(tensor: gs.Tensor, channel_axis: int) -> str | None:
    """Why a weight is not exactly ±1, or None when it is."""
    value = constant(tensor)
    if value is None:
        return f"its weights '{tensor.name}' are computed at run time"
    if value.dtype != np.float32:
        return f"its weights are {value.dtype}, not float32"
    if (np.abs(value) == 1).all():
        return None
    rows = np.moveaxis(value, channel_axis, 0).reshape(value.shape[channel_axis], -1)
    levels = [len(np.unique(row)) for row in rows]
    worst = int(np.argmax(levels))
    if levels[worst] > 2:
        return f"its weights are not two-level: output channel {worst} has {levels[worst]} levels"
    found = np.unique(rows[int(np.argmax((np.abs(rows) != 1).any(axis=1)))])
    return f"its weights are not −1 and +1: a channel has the levels {', '.join(f'{level:g}' for level in found)}"


ADVICE = (
    "one bit holds weights of +s and -s with one s an output channel: binarize them so, or leave the layer in float"
)


def _advised(reason: str) -> str:
    """The reason, and what to do where the activations are signs and constant weights alone are in the way."""
    return f"{reason}; {ADVICE}" if reason.startswith("its weights are not two-level") else reason


def _both(activation: str | None, weight: str | None) -> str | None:
    """Two reasons as one, the activation's first."""
    return "; ".join(reason for reason in (activation, weight) if reason) or None


def _read_conv(node: gs.Node) -> BinaryConvLayer | str:
    x, w = node.inputs[0], node.inputs[1]
    rank = len(static_shape(x))
    if rank not in (3, 4):
        return f"a {rank - 2}-D convolution: bits are packed for 1-D and 2-D ones"
    weight = _weight_reason(w, 0)
    size, kernel = static_shape(x)[2:], static_shape(w)[2:]
    own, pad_value, pad = window(node, size, kernel), 0, None
    above = producer(x)
    if above is not None and above.op == "Pad" and not above.domain:
        amounts = constant_pad(above)
        if isinstance(amounts, str):
            return _both(amounts, weight) or ""
        if amounts.value not in (-1, 1):
            reason = f"its input comes from Pad '{above.name}' with value {amounts.value:g}, not from a sign"
            return _both(reason, weight) or ""
        if own.padded:
            return _both(f"Pad '{above.name}' pads with {amounts.value:+g} and the convolution with 0", weight) or ""
        pad_value, pad, x = int(amounts.value), above, above.inputs[0]
        begin, end = (0, *amounts.begin)[-2:], (0, *amounts.end)[-2:]
        own = Window(own.kernel, own.strides, own.dilations, (begin[0], begin[1], end[0], end[1]))
    route = find_route(x, channels_last(rank, 1))
    if isinstance(route, str):
        return _both(route, weight) or ""
    if weight is not None:
        return _advised(weight)
    value = constant(w)
    assert value is not None
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if bias is None and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        return f"its bias '{node.inputs[2].name}' is computed at run time"
    channels = static_shape(x)[1]
    weights = value if rank == 4 else value[:, :, None]
    return BinaryConvLayer(route, weights, bias, channels, int(node.attrs.get("group", 1)), own, pad_value, pad)


def _read_rows(node: gs.Node) -> BinaryRowsLayer | str:
    layer = _product(node)
    if node.op == "Gemm" and not isinstance(layer, str):
        alpha, _, third = gemm_extras(node)
        if alpha != 1 or third is not None:
            return "it scales its product or adds to it: split_bias could not take that apart"
    return layer


def product_of_signs(node: gs.Node) -> bool:
    """Whether a Gemm multiplies ±1 activations with ±1 weights, whatever it does to the product."""
    return not isinstance(_product(node), str)


def _product(node: gs.Node) -> BinaryRowsLayer | str:
    x, w = node.inputs[0], node.inputs[1]
    if constant(x) is not None and constant(w) is None:
        return "its constant operand is the left one: packed layers have it on the right"
    if constant(w) is not None and len(static_shape(w)) != 2:
        return f"its weights have {len(static_shape(w))} axes, not two"
    transposed = node.op == "MatMul" or not node.attrs.get("transB", 0)
    rows = find_rows(x) if not node.attrs.get("transA", 0) else "it transposes its activations (transA = 1)"
    reason = _both(rows if isinstance(rows, str) else None, _weight_reason(w, 1 if transposed else 0))
    if isinstance(rows, str) or reason is not None:
        return reason or "" if isinstance(rows, str) else _advised(reason or "")
    value = constant(w)
    assert value is not None
    return BinaryRowsLayer(rows, value.T if transposed else value, transposed)


def gemm_extras(node: gs.Node) -> tuple[float, float, gs.Tensor | None]:
    """``alpha``, ``beta`` and the third operand of a Gemm (None where it adds nothing)."""
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() and beta != 0 else None
    return alpha, beta, third
