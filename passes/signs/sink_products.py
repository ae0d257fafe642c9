"""``sink_products``: scales of the operands of a product of signs move behind the product."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import absorbed, original_name
from ..graph import dead_nodes, remove_node
from .sign_residue import is_binarize
from .zero_one import MOVES, zero_one


class SinkProducts(Pass):
    """``MatMul(a·s, b·t)`` → ``MatMul(s, t) · a · b``, where s and t are signs, or 0 and 1, computed at run time.

    The scales are constants: single values, which may lie before a Transpose or a Reshape, or, right before the product,
    one per row of the left operand or per column of the right one. What is left is a product of signs, whose sum is an
    integer: one rounding by each scale in place of one at every term. So this is nearer to the exact result, but where
    the sum is 0 the original may have ±ε in its place.

    It does not fire where a scale is computed at run time or varies along the axis that is summed over.
    """

    name: ClassVar[str] = "sink_products"
    requires: ClassVar[tuple[str, ...]] = ("recognise_sign",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            if node.op == "MatMul" and not node.domain and all(constant(x) is None for x in node.inputs):
                changed |= _sink(graph, ctx, node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return changed


def _sink(graph: gs.Graph, ctx: Context, node: gs.Node) -> bool:
    scales: list[np.ndarray] = []
    for side in (0, 1):
        found = _scaled(node.inputs[side], side)
        if found is None:
            continue
        bare, factors, path = found
        scales += factors
        for step in reversed(path):  # the moves again, on the bare signs
            if step.op in MOVES:
                bare = add_node(
                    graph, ctx, step.op, [bare, *step.inputs[1:]], stands_for=step, dtype=np.float32,
                    shape=static_shape(step.outputs[0]), **step.attrs,
                )  # fmt: skip
            else:
                absorbed(ctx, step, Status.FUSED, f"its scale moved behind the product '{original_name(ctx, node)}'")
        node.inputs[side] = bare
    if not scales:
        return False
    output, shape = node.outputs[0], static_shape(node.outputs[0])
    value = gs.Variable(ctx.fresh(f"{node.name}/signs"), dtype=np.float32, shape=list(shape))
    ctx.made.add(value.name)
    node.outputs = [value]
    for i, scale in enumerate(scales):
        operand = add_constant(ctx, f"{original_name(ctx, node)}/scale", scale)
        value = add_node(
            graph, ctx, "Mul", [value, operand], stands_for=node, shape=shape, dtype=np.float32,
            output=output if i == len(scales) - 1 else None,
        )  # fmt: skip
    return True


def _scaled(tensor: gs.Tensor, side: int) -> tuple[gs.Tensor, list[np.ndarray], list[gs.Node]] | None:
    """The signs behind scales and moves, the scales as factors of the product, and the nodes on the way back."""
    factors: list[np.ndarray] = []
    path: list[gs.Node] = []
    moved = False
    while not is_binarize(tensor) and zero_one(tensor) is None:
        node = producer(tensor)
        if node is None or node.domain:
            return None
        if node.op in MOVES:
            moved = True
        else:
            factor = _factor(node, side, moved)
            if factor is None:
                return None
            factors.append(factor)
        path.append(node)
        tensor = next(x for x in node.inputs if constant(x) is None)
    return (tensor, factors, path) if factors else None


def _factor(node: gs.Node, side: int, moved: bool) -> np.ndarray | None:
    """The constant that ``node`` multiplies by, if it can be multiplied by after the product as well."""
    if node.op not in ("Mul", "Div", "Neg"):
        return None
    if node.op == "Neg":
        return np.array(-1, np.float32)
    known = [constant(x) for x in node.inputs]
    if (node.op == "Div" and known[1] is None) or (known[0] is None) == (known[1] is None):
        return None
    value = known[1] if known[0] is None else known[0]
    if value is None or value.dtype != np.float32 or not np.isfinite(value).all() or (value == 0).any():
        return None
    rank = len(static_shape(node.outputs[0]))
    if value.size > 1 and (moved or static_shape(node.outputs[0]) != static_shape(node.inputs[known.index(None)])):
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if value.size > 1 and shape[-1 if side == 0 else -2] != 1:
        return None
    value = value.reshape(() if value.size == 1 else shape)
    with np.errstate(over="ignore"):
        value = np.float32(1) / value if node.op == "Div" else value
    return value if np.isfinite(value).all() else None
