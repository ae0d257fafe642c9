"""Ternary weights on activations that are rounded to 8 bits row by row become integer products (BitNet b1.58 and its kin).

Matches `Gemm` and `MatMul` with a constant float32 weight on the right that holds −s, 0 and +s only (bit for bit, an s a
channel), whose activation is an integer in [−128, 127] by construction: `Round` then `Clip` to integers, or `Clip` then
`Round`; `Clip` may be a pair of `Max` and `Min`, or left out on a side where the other is. The activation may have been
multiplied or divided by a number a row after that (a fake quantizer).

Gives `QuantizeRows` (or, where the rounded value is no product with a number a row, the model's own nodes and a `Cast` to
int8), `TernaryGemm`, `Cast`, then `Mul` by s, the row's factor, alpha and the bias as nodes of their own. What a model
computes its scale with stays as it is: float nodes, in the model's order.

Why it is right: integers below 2²⁴ are exact in float32, so the accumulator is what the float product gives in any order, if
the weights are ±1 and there is no bias inside. s and the row's factor are applied to the exact sum, once, where the model
rounds in every product; a Gemm's bias likewise (see ``split_bias``).

Does not fire for weights of other levels, for a scale along the summed axis, where limits are not constant, and for at most
16 levels that no number a row scales: those are bit planes (``recognise_levels``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...opset import DOMAIN, pack_bits
from ...opset.ternary import MOST_TERMS
from ..base import Context, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import absorbed, original_name
from ..graph import dead_nodes, remove_node
from ..weights.low_bit import weight_rows

_LOWEST, _HIGHEST = -128, 127


@dataclass(frozen=True)
class Rounded:
    """``clip(round(x·scale))`` (or ``x / scale``), integers in [low, high]. ``scale`` None: ``x`` is rounded as it is."""

    x: gs.Tensor
    scale: gs.Tensor | None
    divide: bool
    low: int
    high: int
    nodes: tuple[gs.Node, ...]


@dataclass(frozen=True)
class _Scaled:
    """Integers, and the node (`Mul` or `Div` by a number a row) that scales them afterwards, if any."""

    integers: gs.Tensor
    rounded: Rounded
    after: gs.Node | None = field(default=None)


class Int8Rows(Pass):
    """See the module."""

    name: ClassVar[str] = "int8_rows"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every layer that matches; activations that several layers read are quantized once."""
        quantized: dict[int, gs.Tensor] = {}
        packed: dict[int, gs.Tensor] = {}
        layers = [node for node in graph.nodes if node.op in ("Gemm", "MatMul") and not node.domain]
        for node in layers:
            rows = weight_rows(node)
            found = None if rows is None else _scaled(node.inputs[0])
            if rows is None or found is None or _is_few_bits(found):
                continue
            levels = ternary(rows)
            if isinstance(levels, str) or rows.shape[1] > MOST_TERMS:
                ctx.note(node, Status.FLOAT, f"its activations are 8-bit integers, {levels}")
                continue
            key = id(found.integers)
            if key not in quantized:
                quantized[key] = _quantize(graph, ctx, found)
            _rewrite(graph, ctx, node, found, quantized[key], levels, packed)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return bool(quantized)


def _is_few_bits(found: _Scaled) -> bool:
    """Whether the activations are better kept as a few bit planes: no number a row scales them, and 4 bits hold them."""
    plain = found.rounded.scale is None and found.after is None
    return plain and found.rounded.high - found.rounded.low < 1 << 4


def ternary(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | str:
    """Float32 ``rows [O, K]`` as (−1, 0, +1 int8, the scale of each row), or why they are not."""
    magnitude = np.abs(rows)
    scale = magnitude.max(axis=1)
    wrong = (magnitude != 0) & (magnitude != scale[:, None])
    if not np.isfinite(rows).all():
        return "its weights are not finite"
    if wrong.any():
        channel = int(np.argmax(wrong.any(axis=1)))
        return f"its weights are not ternary: output channel {channel} has {np.unique(rows[channel]).size} levels"
    return np.sign(rows).astype(np.int8), np.where(scale == 0, np.float32(1), scale)


def _limit(node: gs.Node, index: int) -> float | None:
    """A scalar constant input, or None."""
    tensor = node.inputs[index] if len(node.inputs) > index else None
    value = None if tensor is None or tensor.is_empty() else constant(tensor)
    return float(value.reshape(())) if value is not None and value.size == 1 else None


def _clip(node: gs.Node) -> tuple[gs.Tensor, float, float] | None:
    """What a `Clip`, `Max` or `Min` with constant limits limits, and to what (±infinity: not at all)."""
    if node.domain:
        return None
    if node.op == "Clip":
        given = [len(node.inputs) > i and not node.inputs[i].is_empty() for i in (1, 2)]
        limits = [_limit(node, i) for i in (1, 2)]
        if any(there and value is None for there, value in zip(given, limits, strict=True)):
            return None
        return node.inputs[0], -np.inf if limits[0] is None else limits[0], np.inf if limits[1] is None else limits[1]
    if node.op in ("Max", "Min") and len(node.inputs) == 2:
        side = next((i for i in (0, 1) if _limit(node, i) is not None), None)
        if side is not None:
            value = float(_limit(node, side) or 0.0)
            return node.inputs[1 - side], *((value, np.inf) if node.op == "Max" else (-np.inf, value))
    return None


def rounded(tensor: gs.Tensor) -> Rounded | None:
    """What ``tensor`` is, if it is an integer in [−128, 127] by construction."""
    low, high = -np.inf, np.inf
    nodes: list[gs.Node] = []
    rounds = 0
    while (node := producer(tensor)) is not None and len(nodes) < 5:
        if node.op == "Round" and not node.domain and not rounds:
            rounds += 1
        elif (found := _clip(node)) is not None:
            low, high = max(low, found[1]), min(high, found[2])
        else:
            break
        nodes.append(node)
        tensor = node.inputs[0] if node.op == "Round" else found[0]  # type: ignore[index]
        if tensor.dtype != np.float32:
            return None
    whole = low == np.rint(low) and high == np.rint(high)
    if not rounds or not whole or not _LOWEST <= low <= high <= _HIGHEST:
        return None
    scale, divide = None, False
    if node is not None and node.op in ("Mul", "Div") and not node.domain:
        for side in (1, 0) if node.op == "Mul" else (1,):
            x, by = node.inputs[1 - side], node.inputs[side]
            if constant(x) is None and x.shape == tensor.shape and _a_number_a_row(by, tensor):
                tensor, scale, divide = x, by, node.op == "Div"
                nodes.append(node)
                break
    return Rounded(tensor, scale, divide, int(low), int(high), tuple(nodes))


def _a_number_a_row(by: gs.Tensor, of: gs.Tensor) -> bool:
    """Whether ``by`` has the rank of ``of`` and does not vary along its last axis."""
    shape, whole = static_shape(by), static_shape(of)
    fits = len(shape) == len(whole) and by.dtype == np.float32 and shape[-1] == 1
    return fits and all(a in (1, b) for a, b in zip(shape, whole, strict=True))


def _scaled(tensor: gs.Tensor) -> _Scaled | None:
    found = rounded(tensor)
    if found is not None:
        return _Scaled(tensor, found)
    node = producer(tensor)
    if node is None or node.domain or node.op not in ("Mul", "Div"):
        return None
    for side in (1, 0) if node.op == "Mul" else (1,):
        inner, by = node.inputs[1 - side], node.inputs[side]
        found = rounded(inner) if constant(inner) is None else None
        if found is not None and inner.shape == tensor.shape and _a_number_a_row(by, inner):
            return _Scaled(inner, found, node)
    return None


def _quantize(graph: gs.Graph, ctx: Context, found: _Scaled) -> gs.Tensor:
    """The integers as int8."""
    given = found.rounded
    end = given.nodes[0]
    if given.scale is None:
        shape = static_shape(found.integers)
        return add_node(graph, ctx, "Cast", [found.integers], stands_for=end, to=TensorProto.INT8, shape=shape,
                        dtype=np.int8)  # fmt: skip
    for node in given.nodes:
        absorbed(ctx, node, Status.FUSED, "part of the 8-bit quantizer of each row")
    return add_node(
        graph, ctx, "QuantizeRows", [given.x, given.scale], stands_for=end, domain=DOMAIN, low=given.low, high=given.high,
        divide=int(given.divide),
    )  # fmt: skip


def _rewrite(
    graph: gs.Graph, ctx: Context, node: gs.Node, found: _Scaled, integers: gs.Tensor,
    levels: tuple[np.ndarray, np.ndarray], packed: dict[int, gs.Tensor],
) -> None:  # fmt: skip
    signs, scale = levels
    out, base, shape = node.outputs[0], original_name(ctx, node), static_shape(node.outputs[0])
    weight = node.inputs[1]
    if id(weight) not in packed:
        planes = np.stack([pack_bits(signs > 0), pack_bits(signs < 0)])
        packed[id(weight)] = add_constant(ctx, f"{weight.name}/ternary", planes)
    steps: list[tuple[str, gs.Tensor]] = []
    if (scale != 1).any():
        value = scale[:1] if (scale == scale[0]).all() else scale
        steps.append(("Mul", add_constant(ctx, f"{base}/scale", value)))
    if found.after is not None:
        side = 1 if found.after.inputs[0] is found.integers else 0
        steps.append((found.after.op, found.after.inputs[side]))
    if node.op == "Gemm":
        alpha, beta = (np.float32(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
        if alpha != 1:
            steps.append(("Mul", add_constant(ctx, f"{base}/alpha", np.asarray(alpha))))
        third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        if third is not None and beta != 0:
            if beta != 1:
                factor = add_constant(ctx, f"{base}/beta", np.asarray(beta))
                third = add_node(
                    graph, ctx, "Mul", [third, factor], stands_for=node, shape=third.shape, dtype=np.float32
                )
            steps.append(("Add", third))
    remove_node(graph, node)
    k = signs.shape[1]
    value = add_node(graph, ctx, "TernaryGemm", [integers, packed[id(weight)]], stands_for=node, domain=DOMAIN, k=k)
    value = add_node(graph, ctx, "Cast", [value], stands_for=node, output=None if steps else out, to=TensorProto.FLOAT,
                     shape=shape, dtype=np.float32)  # fmt: skip
    for i, (op, operand) in enumerate(steps):
        last = out if i == len(steps) - 1 else None
        value = add_node(graph, ctx, op, [value, operand], stands_for=node, output=last, shape=shape, dtype=np.float32)
    text = f"TernaryGemm {k}→{len(signs)}: weights −1, 0, +1 ({(signs == 0).mean():.0%} zeros) in two bit planes"
    ctx.note(node, Status.PACKED, f"{text} times 8-bit activations, exact integers")
