"""``hoist_signs``: signs around a product of run-time operands are taken before their tensor is moved."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_node, constant, consumers, producer, static_shape
from ..chain import ELEMENTWISE, RESHAPES, absorbed
from ..graph import dead_nodes, remove_node, toposort
from .sign_residue import is_binarize

MOVES = RESHAPES | {"Transpose"}


class HoistSigns(Pass):
    """``Binarize(Transpose(Reshape(x)))`` → ``Transpose(Reshape(Binarize(x)))``, which is the same, element by element.

    Attention cuts its operands into heads, and joins the heads of its result, by Reshape and Transpose. Behind them, the
    channels of the layer that made the values are no axis any more, and no integer threshold could be found; before them they
    are, and what is moved is bits. It fires where a product of two computed operands reads the sign, through any such
    moves, or where one made the value that the sign is taken of; every reader of the sign may stay as it is.

    It does not fire elsewhere: the signs of a feature map are packed along its channels wherever it is moved. Nor does it
    pass a Reshape that cuts the last axis inside a byte.
    """

    name: ClassVar[str] = "hoist_signs"
    requires: ClassVar[tuple[str, ...]] = ("recognise_sign",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            if node.op != "Binarize" or node.domain != DOMAIN:
                continue
            first = producer(node.inputs[0])
            if first is None or first.domain or first.op not in MOVES:
                continue
            if _read_by_product(node.outputs[0]) or _made_by_product(node.inputs[0]):
                changed |= _hoist(graph, ctx, node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        toposort(graph)
        return changed


def _is_product(node: gs.Node | None) -> bool:
    return (
        node is not None and not node.domain and node.op == "MatMul" and all(constant(x) is None for x in node.inputs)
    )


def _read_by_product(tensor: gs.Tensor) -> bool:
    return any(
        _is_product(node) or (not node.domain and node.op in MOVES and _read_by_product(node.outputs[0]))
        for node in consumers(tensor)
    )


def _made_by_product(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    while node is not None and not node.domain and node.op in MOVES | ELEMENTWISE:
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        node = producer(live[0]) if len(live) == 1 else None
    return _is_product(node)


def _hoist(graph: gs.Graph, ctx: Context, node: gs.Node) -> bool:
    moves: list[gs.Node] = []
    source = node.inputs[0]
    while (maker := producer(source)) is not None and not maker.domain and maker.op in MOVES:
        before, after = static_shape(maker.inputs[0]), static_shape(source)
        if maker.op != "Transpose" and before[-1:] != after[-1:] and (before[-1] % 8 or after[-1] % 8):
            break
        moves.append(maker)
        source = maker.inputs[0]
    if not moves or is_binarize(source):
        return False
    output, zero = node.outputs[0], node.attrs["zero"]
    value = add_node(graph, ctx, "Binarize", [source], stands_for=node, domain=DOMAIN, zero=zero)
    ctx.move_sign(value, output, node.inputs[0], [_undone(move) for move in moves])
    for move in reversed(moves):
        value = add_node(
            graph, ctx, move.op, [value, *move.inputs[1:]], stands_for=move, dtype=np.float32,
            shape=static_shape(move.outputs[0]), output=output if move is moves[0] else None, **move.attrs,
        )  # fmt: skip
        absorbed(ctx, move, Status.FUSED, "moves signs, not what they are taken of")
    node.inputs.clear()
    remove_node(graph, node)
    return True


def _undone(move: gs.Node) -> tuple[str, list[int]]:
    shape = static_shape(move.inputs[0])
    if move.op != "Transpose":
        return "reshape", list(shape)
    perm = list(move.attrs.get("perm") or range(len(shape))[::-1])
    return "transpose", [perm.index(axis) for axis in range(len(shape))]
