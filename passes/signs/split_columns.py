"""``split_columns``: a binary layer whose outputs are cut apart becomes a layer for each part."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, add_constant, add_node, constant, only_consumer, producer, static_shape
from ..chain import original_name
from ..graph import dead_nodes, remove_node, toposort

_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})


class SplitColumns(Pass):
    """``Split(MatMul(x, W) · s + b)`` along the columns → ``MatMul(x, Wᵢ) · sᵢ + bᵢ`` for each part, where W is ±1.

    Vision transformers compute query, key and value as one layer and cut its result. Each column is an exact sum of its own,
    so parts are the same numbers; as layers they have an accumulator each, whose channels lead to the signs behind. They
    share the packed activation.

    It does not fire where something else reads the whole, and for weights that are not ±1: a float product may sum in another
    order when it is narrower.
    """

    name: ClassVar[str] = "split_columns"
    requires: ClassVar[tuple[str, ...]] = ("binary_weights",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            if node.op == "Split" and not node.domain:
                changed |= _split(graph, ctx, node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        toposort(graph)
        return changed


def _split(graph: gs.Graph, ctx: Context, node: gs.Node) -> bool:
    shape = static_shape(node.inputs[0])
    if node.attrs.get("axis", 0) not in (-1, len(shape) - 1) or any(x.is_empty() for x in node.outputs):
        return False
    path: list[tuple[gs.Node, int]] = []
    tensor, reader = node.inputs[0], node
    while True:
        maker = producer(tensor)
        if maker is None or maker.domain or only_consumer(graph, tensor) is not reader:
            return False
        if maker.op == "MatMul":
            break
        sides = [i for i, x in enumerate(maker.inputs) if constant(x) is not None]
        if maker.op not in _ARITHMETIC or len(sides) != 1 or static_shape(maker.inputs[1 - sides[0]]) != shape:
            return False
        path.append((maker, sides[0]))
        tensor, reader = maker.inputs[1 - sides[0]], maker
    weight = constant(maker.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or (np.abs(weight) != 1).any():
        return False
    outputs = list(node.outputs)
    remove_node(graph, node)
    start = 0
    for part, output in enumerate(outputs):
        size = static_shape(output)[-1]
        cut = slice(start, start + size)
        columns = add_constant(ctx, f"{maker.inputs[1].name}/{part}", weight[:, cut])
        value = add_node(
            graph, ctx, "MatMul", [maker.inputs[0], columns], stands_for=maker, shape=(*shape[:-1], size),
            dtype=np.float32, output=None if path else output,
        )  # fmt: skip
        for i, (step, side) in enumerate(reversed(path)):
            whole = np.asarray(constant(step.inputs[side]))
            own = whole[..., cut] if whole.ndim and whole.shape[-1] == shape[-1] else whole
            operand = add_constant(ctx, f"{step.inputs[side].name}/{part}", own)
            value = add_node(
                graph, ctx, step.op, [operand, value] if side == 0 else [value, operand], stands_for=step,
                shape=(*shape[:-1], size), dtype=np.float32, output=output if i == len(path) - 1 else None,
            )  # fmt: skip
        start += size
    ctx.note(node.name, Status.REMOVED, f"its parts are layers of their own, cut out of '{original_name(ctx, maker)}'")
    return True
