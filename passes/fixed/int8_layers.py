"""Layers that would stay in float become products of 8-bit integers, where the user asks for it (``--float-layers int8``).

Matches the `Conv` (1-D and 2-D, groups included), `Gemm` and `MatMul` that ``Options.int8`` names, with a constant float32
weight on the right. The scheme is that of R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference"
(arXiv 1806.08342, 2018), sections 2.2 and 3.1: symmetric codes, one scale s_x for the activations (from calibration), one
scale s_w a channel of weights.

    q_x = clip(round(x / s_x), −127, 127),  q_w = round(w / s_w), s_w = max|w| / 127,  y = (Σ q_x·q_w)·(s_x·s_w) + bias

Gives `QuantizeMap`, `IntegerConv` or `IntegerGemm`, `Transpose`, `Cast`, then `Mul` by s_x·s_w and `Add` of the bias in
float32. Zero is a code, so that padding is exact. The sum is an exact int32, the same on every machine; the float32
operations after it round one by one.

It changes results: that is the user's choice, recorded in the packed model, and validation compares with the model that this
pass alone makes (and reports how far that is from the float one).

Does not fire for weights that are not constant, finite and on the right, for a transposed activation of a `Gemm`, for a sum of
more terms than are exact, and for convolutions over three axes or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...errors import ModelError
from ...opset import DOMAIN, TensorType
from ...opset.integer import conv_type, gemm_type
from ..base import Context, Int8Input, Pass, Status, add_constant, add_node, constant, static_shape
from ..chain import original_name
from ..graph import remove_node
from ..pack.pack import reshape
from ..weights.low_bit import of_channels, weight_rows
from ..windows import window

MOST = 127
"""Largest code: symmetric, so that −128 is not used."""


class Int8Layers(Pass):
    """See the module."""

    name: ClassVar[str] = "int8_layers"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every layer that is named; activations that several layers read alike are quantized once."""
        chosen = dict(ctx.options.int8 or {})
        codes: dict[tuple[object, ...], gs.Tensor] = {}
        changed = False
        for node in list(graph.nodes):
            given = chosen.pop(node.name, None)
            if given is None:
                continue
            reason = _obstacle(node)
            if reason is not None:
                ctx.note(node, Status.FLOAT, f"not in int8: {reason}")
                continue
            _rewrite(graph, ctx, node, given, codes)
            changed = True
        return changed


def _obstacle(node: gs.Node) -> str | None:
    """Why a layer cannot be computed on 8-bit codes, or None."""
    if node.domain or node.op not in ("Conv", "Gemm", "MatMul"):
        return f"{node.op} is no layer of weights"
    rows = weight_rows(node)
    if rows is None:
        return "it has no constant float32 weight on the right, of activations of two axes or more"
    if not np.isfinite(rows).all():
        return "its weights are not finite"
    x, code = static_shape(node.inputs[0]), np.dtype(np.int8)
    try:
        if node.op == "Conv":
            _, attrs = _convolution(node)
            w = (len(rows), *static_shape(node.inputs[1])[2:])
            w = (w[0], *((1,) if len(w) == 2 else ()), *w[1:], static_shape(node.inputs[1])[1])
            image = (x[0], *((1,) if len(x) == 3 else ()), *x[2:], x[1])
            conv_type(TensorType(image, code), TensorType(w, code), attrs)
        else:
            gemm_type(TensorType(x, code), TensorType(rows.shape, code))
    except (ValueError, ModelError) as error:
        return str(error)
    return None


def _convolution(node: gs.Node) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Height and width (1 for a 1-D one) of a Conv's input, and the attributes of ``IntegerConv``."""
    size = static_shape(node.inputs[0])[2:]
    own = window(node, size, static_shape(node.inputs[1])[2:])
    attrs = {"group": int(node.attrs.get("group", 1)), "strides": list(own.strides), "dilations": list(own.dilations),
             "pads": list(own.pads)}  # fmt: skip
    return (1, *size) if len(size) == 1 else size, attrs


def quantize_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float32 weights ``[O, K]`` → int8 codes ``[O, K]`` and the scale of each row, float64 ``[O]``."""
    scale = np.abs(rows).max(axis=1).astype(np.float64) / MOST
    scale[scale == 0] = 1.0
    codes = np.rint(rows.astype(np.float64) / scale[:, None])
    return np.clip(codes, -MOST, MOST).astype(np.int8), scale


def _rewrite(
    graph: gs.Graph, ctx: Context, node: gs.Node, given: Int8Input, codes: dict[tuple[object, ...], gs.Tensor]
) -> None:
    x, out, base = node.inputs[0], node.outputs[0], original_name(ctx, node)
    rows, shape, is_conv = weight_rows(node), static_shape(out), node.op == "Conv"
    assert rows is not None
    quantized, scale = quantize_rows(rows)
    third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    attrs: dict[str, Any] = {}
    factor = scale * given.scale
    full: Sequence[int] = shape
    if is_conv:
        size, attrs = _convolution(node)
        x_shape = static_shape(x)
        if len(shape) == 3:
            x = reshape(graph, ctx, x, (x_shape[0], x_shape[1], *size), node)
            full = (shape[0], shape[1], 1, shape[2])
        kernel = static_shape(node.inputs[1])[2:]
        kernel = (1, *kernel) if len(kernel) == 1 else kernel
        quantized = quantized.reshape(len(rows), -1, *kernel).transpose(0, 2, 3, 1)
        third = None if third is None else of_channels(graph, ctx, third, len(shape), base, node)
    elif node.op == "Gemm":
        alpha, beta = (float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
        factor = factor * alpha
        if third is not None and beta == 0:
            third = None
        elif third is not None and beta != 1:
            value = constant(third)
            by = add_constant(ctx, f"{base}/beta", np.asarray(np.float32(beta)))
            third = (
                add_constant(ctx, f"{base}/bias", value * np.float32(beta))
                if value is not None
                else add_node(graph, ctx, "Mul", [third, by], stands_for=node, shape=third.shape, dtype=np.float32)
            )
    remove_node(graph, node)
    rank = len(static_shape(x))
    perm = [0, 2, 3, 1] if is_conv else list(range(rank))
    key = (id(x), tuple(perm), given.scale)
    if key not in codes:
        by = add_constant(ctx, f"{base}/inverse_scale", np.array([1.0 / given.scale], np.float32))
        codes[key] = add_node(
            graph, ctx, "QuantizeMap", [x, by], stands_for=node, domain=DOMAIN, perm=perm, low=-MOST, high=MOST
        )
    weights = add_constant(ctx, f"{base}/int8", np.ascontiguousarray(quantized))
    op = "IntegerConv" if is_conv else "IntegerGemm"
    value = add_node(graph, ctx, op, [codes[key], weights], stands_for=node, domain=DOMAIN, **attrs)
    if is_conv:
        value = add_node(
            graph, ctx, "Transpose", [value], stands_for=node, shape=full, dtype=np.int32, perm=[0, 3, 1, 2]
        )
    value = add_node(graph, ctx, "Cast", [value], stands_for=node, to=TensorProto.FLOAT, shape=full, dtype=np.float32)
    if tuple(full) != tuple(shape):
        value = reshape(graph, ctx, value, shape, node)
    along = (1, -1, *[1] * (len(shape) - 2)) if is_conv else (-1,)
    tail = [("Mul", add_constant(ctx, f"{base}/scale", factor.astype(np.float32).reshape(along)))]
    if third is not None:
        tail.append(("Add", third))
    for i, (step, operand) in enumerate(tail):
        last = out if i == len(tail) - 1 else None
        value = add_node(
            graph, ctx, step, [value, operand], stands_for=node, output=last, shape=shape, dtype=np.float32
        )
    text = (
        f"{op} {rows.shape[1]}→{len(rows)} by choice: int8 weights with a scale a channel, int8 activations with scale "
    )
    ctx.note(node, Status.PACKED, f"{text}{given.scale:.4g} (calibrated)")
