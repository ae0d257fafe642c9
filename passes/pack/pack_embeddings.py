"""``pack_embeddings``: tables of binary rows that a Gather reads are kept as bits and one scale a row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, pack_bits, packed_bytes
from ..base import Context, Pass, Status, add_constant, add_node, constant, static_shape
from ..chain import original_name
from ..graph import dead_nodes, remove_node

_LEAST = 64
"""Elements from which a table is worth it."""
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


class PackEmbeddings(Pass):
    """``Gather(table, index)`` along axis 0, where each row of the table is ±s → ``Unpack(Gather(bits)) · Gather(s)``.

    Binary embeddings (BiBERT, BinaryBERT) are such tables. ±1 times s is exact, so every element is the original's, and a
    table takes a 32nd of its bytes and a float a row. Where all rows have one scale it is a constant.

    A constant that is added to (or multiplied with) a tensor and holds one row again and again, as the segment embedding of
    a single sentence does, is kept once and broadcast.

    It does not fire for a table of more levels than two a row, or of two that are not opposite.
    """

    name: ClassVar[str] = "pack_embeddings"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        tables: dict[int, tuple[gs.Tensor, gs.Tensor]] = {}
        for node in list(graph.nodes):
            if node.op == "Gather" and not node.domain and node.attrs.get("axis", 0) == 0:
                changed |= _pack(graph, ctx, node, tables)
            elif node.op in _BROADCASTING and not node.domain:
                changed |= _shrink(ctx, node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return changed


def _pack(graph: gs.Graph, ctx: Context, node: gs.Node, tables: dict[int, tuple[gs.Tensor, gs.Tensor]]) -> bool:
    table, index = node.inputs
    value = constant(table)
    if value is None or value.ndim != 2 or value.dtype != np.float32 or value.size < _LEAST:
        return False
    scale = np.abs(value[:, :1])
    if not np.isfinite(scale).all() or (np.abs(value) != scale).any():
        levels = max(len(np.unique(row)) for row in value[:256])
        what = f"a row has {levels} levels" if levels > 2 else "the two levels of its rows are not opposite"
        ctx.note(node, Status.FLOAT, f"an embedding that is not binary: {what}")
        return False
    if id(table) not in tables:
        bits = add_constant(ctx, f"{table.name}/packed", pack_bits(value >= 0))
        one = bool((scale == scale[0]).all())
        tables[id(table)] = bits, add_constant(ctx, f"{table.name}/scale", scale[0, 0] if one else scale)
    bits, scales = tables[id(table)]
    output, width = node.outputs[0], value.shape[1]
    rows = static_shape(index)
    packed = add_node(
        graph, ctx, "Gather", [bits, index], stands_for=node, axis=0, dtype=np.uint8,
        shape=(*rows, packed_bytes(width)),
    )  # fmt: skip
    signs = add_node(
        graph, ctx, "Unpack", [packed], stands_for=node, domain=DOMAIN, channels=width, perm=list(range(len(rows) + 1))
    )
    if scales.shape:
        scales = add_node(
            graph, ctx, "Gather", [scales, index], stands_for=node, axis=0, dtype=np.float32, shape=(*rows, 1)
        )
    node.inputs.clear()
    remove_node(graph, node)
    add_node(graph, ctx, "Mul", [signs, scales], stands_for=node, output=output, shape=(*rows, width), dtype=np.float32)
    how = "a scale a row" if scales.inputs else "one scale"
    ctx.note(node.name, Status.PACKED, f"an embedding of {value.shape[0]} binary rows of {width} bits, {how}")
    return True


def _shrink(ctx: Context, node: gs.Node) -> bool:
    """Keep a constant operand once along the axes on which it repeats, where the other operand has their size."""
    shape = static_shape(node.outputs[0])
    for side in (0, 1):
        value, other = constant(node.inputs[side]), node.inputs[1 - side]
        if value is None or value.dtype != np.float32 or value.size < _LEAST or constant(other) is not None:
            continue
        if static_shape(other) != shape:
            continue
        small = value
        for axis in range(value.ndim):
            first = np.take(small, [0], axis=axis)
            same = (small == first) & (np.signbit(small) == np.signbit(first))
            if small.shape[axis] > 1 and same.all():
                small = first
        if small.size < value.size:
            name = f"{original_name(ctx, node)}/row"
            inputs = list(node.inputs)
            inputs[side] = add_constant(ctx, name, small)
            node.inputs = inputs
            return True
    return False
