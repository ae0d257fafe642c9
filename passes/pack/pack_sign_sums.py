"""``pack_sign_sums``: products of run-time signs, or of 0 and 1, with floats."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, constant, static_shape
from ..chain import original_name
from ..graph import dead_nodes, remove_node, toposort
from .pack_products import Flags, Products


class PackSignSums(Pass):
    """``MatMul(s, x)`` of signs s (or of 0 and 1) and floats x, both computed at run time → ``SignMatMul``.

    Every product is exact; the sum is a float32 sum in any order, as the original's. The signs may be the right operand:
    ``x · s`` is the transpose of ``sᵀ · xᵀ``. Where a sign can be 0 the two sums over ``x ≥ 0`` and ``x > 0`` are averaged.

    It does not fire where the operands' leading axes differ, and where 0 and 1 are on the right.
    """

    name: ClassVar[str] = "pack_sign_sums"
    requires: ClassVar[tuple[str, ...]] = ("pack_products",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        maker = Products(graph, ctx)
        changed = False
        for node in list(graph.nodes):
            if node.op == "MatMul" and not node.domain and all(constant(x) is None for x in node.inputs):
                changed |= _sum(maker, node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        toposort(graph)
        for binarize, readers in maker.packer.readers.values():
            maker.packer.note_sign(binarize, readers)
        return changed


def _sum(maker: Products, node: gs.Node) -> bool:
    graph, ctx = maker.graph, maker.ctx
    shapes = [static_shape(x) for x in node.inputs]
    rank = len(shapes[0])
    if rank < 2 or len(shapes[1]) != rank or shapes[0][:-2] != shapes[1][:-2]:
        return False
    side = 0
    bits = maker.operand(node, 0)
    if isinstance(bits, str):
        side, bits = 1, maker.operand(node, 1)
    if isinstance(bits, str):
        return False
    unsigned = int(isinstance(bits, Flags))
    packed = maker.packed(node, side, bits)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    floats = node.inputs[1 - side]
    if side:
        floats = add_node(
            graph, ctx, "Transpose", [floats], stands_for=node, perm=swap, dtype=np.float32,
            shape=[shapes[0][i] for i in swap],
        )  # fmt: skip
    output = node.outputs[0]
    shape = static_shape(output)
    alone = len(packed) == 1 and not side
    made = [
        add_node(
            graph, ctx, "SignMatMul", [x, floats], stands_for=node, domain=DOMAIN, unsigned=unsigned,
            output=output if alone else None,
        )
        for x in packed
    ]  # fmt: skip
    inner = static_shape(made[0])
    node.inputs.clear()
    remove_node(graph, node)
    value = made[0]
    steps: list[tuple[str, list[gs.Tensor | None], dict[str, Any], tuple[int, ...]]] = []
    if len(made) == 2:
        half = add_constant(ctx, f"{original_name(ctx, node)}/half", np.array(0.5, np.float32))
        steps += [("Add", [*made], {}, inner), ("Mul", [None, half], {}, inner)]
    if side:
        steps.append(("Transpose", [None], {"perm": swap}, shape))
    for i, (op, inputs, attrs, size) in enumerate(steps):
        value = add_node(
            graph, ctx, op, [value if x is None else x for x in inputs], stands_for=node, shape=size,
            dtype=np.float32, output=output if i == len(steps) - 1 else None, **attrs,
        )  # fmt: skip
    text = f"SignMatMul: {shapes[side][-1 - side]} terms are added or {'left out' if unsigned else 'subtracted'}"
    if len(made) == 2:
        text += "; zero can reach its signs: two sums to stay exact; --sign-zero=+1 halves it"
    ctx.note(node, Status.PACKED, text)
    return True
