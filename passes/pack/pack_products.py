"""``pack_products``: products whose operands are both signs, or 0 and 1, computed at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, packed_bytes
from ..base import Context, Origin, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import ELEMENTWISE, RESHAPES, absorbed, is_anchor, original_name
from ..graph import dead_nodes, remove_node, toposort
from ..signs.bit_route import Route, find_route
from ..signs.sign_residue import is_binarize
from ..signs.zero_one import MOVES, ZeroOne, zero_one
from .pack import Packer, reshape

_FLOAT = 1
"""ONNX element type of float32."""


@dataclass(frozen=True)
class Flags:
    """A left operand of 0 and 1: ``moves`` (Reshape, Transpose; last axis kept) lead from ``tensor`` to the operand."""

    found: ZeroOne
    tensor: gs.Tensor
    moves: tuple[gs.Node, ...]


class PackProducts(Pass):
    """``MatMul`` of two tensors of signs → ``BinaryMatMul → Cast``; of 0 and 1 by signs → ``AndMatMul → Cast``.

    The operands are bits packed along the axis that is summed over: the right one is packed with a permutation. Their
    sums are integers below 2^24, so the accumulator is the original's float32 sum, whatever its order.

    * Transpose and Reshape between a sign and the product act on bytes (``bit_route``).
    * 0 and 1 come from a comparison (``zero_one``), whose bits are packed along the last axis.
    * Where a sign can be 0, ``sign = (ge + gt) / 2`` as in ``pack``. The product is then the sum of two or four products of
      bits; they are laid end to end along the axis that is summed over, and are one product of a longer row.
    * A ``Pack`` of a float chain behind such a product that also moves rows becomes a ``Pack`` that does not, and a
      Transpose of bytes: then ``fuse_threshold`` can find integer thresholds for it.

    It does not fire where the operands' leading axes differ (broadcasting), where the right operand is 0 and 1, or for a
    sum of 2^24 terms and more; the record says so.
    """

    name: ClassVar[str] = "pack_products"
    requires: ClassVar[tuple[str, ...]] = ("pack",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        maker = Products(graph, ctx)
        for node in list(graph.nodes):
            if node.op == "MatMul" and not node.domain and all(constant(x) is None for x in node.inputs):
                maker.product(node)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        toposort(graph)
        for binarize, readers in maker.packer.readers.values():
            maker.packer.note_sign(binarize, readers)
        for node in list(graph.nodes):
            if node.op == "Pack" and node.domain == DOMAIN:
                _pack_before_moving(graph, ctx, node)
        return maker.count > 0


class Products:
    """What packs the operands of products of one graph, and shares what is packed."""

    def __init__(self, graph: gs.Graph, ctx: Context) -> None:
        self.graph, self.ctx = graph, ctx
        self.packer = Packer(graph, ctx)
        self.flags: dict[int, gs.Tensor] = {}
        self.count = 0

    def product(self, node: gs.Node) -> None:
        """Rewrite one MatMul, or record why not."""
        left, right = node.inputs
        shape, other = static_shape(left), static_shape(right)
        if len(shape) < 2 or len(other) != len(shape) or shape[:-2] != other[:-2]:
            reason = f"operands of shape {list(shape)} and {list(other)}: the leading axes must be equal"
            self._refuse(node, reason, _is_bits(left) or _is_bits(right))
            return
        a, b = self.operand(node, 0), self.operand(node, 1)
        if isinstance(a, str) or isinstance(b, str):
            reasons = [f"{side}: {why}" for side, why in (("left", a), ("right", b)) if isinstance(why, str)]
            self._refuse(node, "; ".join(reasons), len(reasons) == 1)
            return
        if shape[-1] * 4 >= 1 << 24:
            self._refuse(node, f"{shape[-1]} terms are more than float32 counts", True)
            return
        self._replace(node, self.packed(node, 0, a), self.packed(node, 1, b), isinstance(a, Flags))

    def operand(self, node: gs.Node, side: int) -> Route | Flags | str:
        """How to get the bits of an operand, packed along the axis that is summed over, or why there are none."""
        tensor = node.inputs[side]
        rank = len(static_shape(tensor))
        if side:
            found = self._route(tensor, (*range(rank - 2), rank - 1, rank - 2), node)
            both = isinstance(found, str) and zero_one(_behind_moves(tensor)) is not None
            return "it is 0 and 1, which xnorc packs on the left side only" if both else found
        return _flags(tensor) or self._route(tensor, tuple(range(rank)), node)

    def packed(self, node: gs.Node, side: int, found: Route | Flags) -> list[gs.Tensor]:
        """The packed operand, once for each pass."""
        return self._pack_flags(found) if isinstance(found, Flags) else self._pack_signs(node, side, found)

    def _route(self, tensor: gs.Tensor, perm: tuple[int, ...], node: gs.Node) -> Route | str:
        """A way to the bits of an operand. Signs that were moved as floats are packed where they are, as signs of signs."""
        found = find_route(tensor, perm)
        binarize = producer(_behind_moves(tensor))
        if not isinstance(found, str) or binarize is None or not is_binarize(binarize.outputs[0]):
            return found
        zero = binarize.attrs["zero"]
        again = add_node(self.graph, self.ctx, "Binarize", [tensor], stands_for=node, domain=DOMAIN, zero=zero)
        return find_route(again, perm)

    def _pack_signs(self, node: gs.Node, side: int, route: Route) -> list[gs.Tensor]:
        """The packed operand, once for each pass; the original's tensor that it holds, where its signs have none."""
        operand, sign = node.inputs[side], route.binarize.outputs[0].name
        rank = len(static_shape(operand))
        perm = [*range(rank - 2), rank - 1, rank - 2] if side else list(range(rank))
        packed = self.packer.activations(route, node)
        if operand.name not in self.ctx.made and sign in self.ctx.made and sign not in self.ctx.moved:
            for tensor in packed:
                self.ctx.origins.setdefault(tensor.name, Origin(operand.name, perm, static_shape(operand)[perm[-1]]))
        return packed

    def _replace(self, node: gs.Node, first: list[gs.Tensor], second: list[gs.Tensor], masked: bool) -> None:
        ctx, output = self.ctx, node.outputs[0]
        terms = static_shape(node.inputs[0])[-1]
        ways = len(first) * len(second)
        a = self._end_to_end([x for x in first for _ in second], node)
        b = self._end_to_end([y for _ in first for y in second], node)
        op = "AndMatMul" if masked else "BinaryMatMul"
        value = add_node(self.graph, ctx, op, [a, b], stands_for=node, domain=DOMAIN, k=terms * ways)
        shape = static_shape(value)
        value = add_node(
            self.graph, ctx, "Cast", [value], stands_for=node, shape=shape, dtype=np.float32, to=_FLOAT,
            output=output if ways == 1 else None,
        )  # fmt: skip
        if ways > 1:
            scale = add_constant(ctx, f"{original_name(ctx, node)}/scale", np.array(1 / ways, np.float32))
            add_node(
                self.graph, ctx, "Mul", [value, scale], stands_for=node, shape=shape, dtype=np.float32, output=output
            )
        node.inputs.clear()
        self.count += 1
        text = f"{op} of {terms} bits, {shape[-2]}x{shape[-1]}"
        if ways > 1:
            text += f"; zero can reach its signs: {ways} times the bits to stay exact; --sign-zero=+1 takes them away"
        ctx.note(node, Status.PACKED, text)

    def _end_to_end(self, parts: list[gs.Tensor], node: gs.Node) -> gs.Tensor:
        if len(parts) == 1:
            return parts[0]
        shape = static_shape(parts[0])
        return add_node(
            self.graph, self.ctx, "Concat", parts, stands_for=node, axis=len(shape) - 1, dtype=np.uint8,
            shape=(*shape[:-1], shape[-1] * len(parts)),
        )  # fmt: skip

    def _pack_flags(self, flags: Flags) -> list[gs.Tensor]:
        graph, ctx, found = self.graph, self.ctx, flags.found
        if id(flags.tensor) not in self.flags:
            shape = static_shape(flags.tensor)
            name, keys = flags.tensor.name, shape[-1]
            maker = producer(flags.tensor)
            assert maker is not None
            packed = add_node(
                graph, ctx, "Pack",
                [found.x, add_constant(ctx, f"{name}/threshold", np.full(keys, found.threshold, np.float32)),
                 add_constant(ctx, f"{name}/flip", np.full(keys, found.flip, np.uint8))],
                stands_for=maker, domain=DOMAIN, perm=list(range(len(shape))), strict=int(found.strict),
            )  # fmt: skip
            if name not in ctx.made:
                ctx.origins[packed.name] = Origin(name, list(range(len(shape))), keys, unsigned=True)
            self.flags[id(flags.tensor)] = packed
            for node in found.nodes:
                absorbed(ctx, node, Status.FUSED, f"0 and 1 ({found.idiom}), packed into bits")
            ctx.note(maker, Status.PACKED, f"0 and 1 ({found.idiom}), packed into bits")
        value = self.flags[id(flags.tensor)]
        for node in flags.moves:
            target = static_shape(node.outputs[0])
            if node.op == "Transpose":
                value = add_node(
                    graph, ctx, "Transpose", [value], stands_for=node, perm=list(node.attrs["perm"]), dtype=np.uint8,
                    shape=(*target[:-1], packed_bytes(target[-1])),
                )  # fmt: skip
            else:
                value = reshape(graph, ctx, value, (*target[:-1], packed_bytes(target[-1])), node)
            absorbed(ctx, node, Status.FUSED, "moves packed bits, not floats")
        return [value]

    def _refuse(self, node: gs.Node, reason: str, near: bool) -> None:
        """``near``: one operand is bits, so that the reader wants to know; else it is plain float attention."""
        if near:
            self.ctx.note(node, Status.FLOAT, f"a product of two computed operands that is not packed: {reason}")
        else:
            self.ctx.note(node, Status.FLOAT, "a product of two computed operands that are no signs")


def _behind_moves(tensor: gs.Tensor) -> gs.Tensor:
    """What Reshape and Transpose nodes moved."""
    while (node := producer(tensor)) is not None and not node.domain and node.op in MOVES:
        tensor = node.inputs[0]
    return tensor


def _is_bits(tensor: gs.Tensor) -> bool:
    rank = len(static_shape(tensor))
    return _flags(tensor) is not None or isinstance(find_route(tensor, tuple(range(rank))), Route)


def _flags(tensor: gs.Tensor) -> Flags | None:
    """``tensor`` as 0 and 1 behind moves that keep its last axis."""
    moves: list[gs.Node] = []
    while (found := zero_one(tensor)) is None:
        node = producer(tensor)
        if node is None or node.domain or node.op not in MOVES:
            return None
        before, after = static_shape(node.inputs[0]), static_shape(tensor)
        if not before or not after or before[-1] != after[-1]:
            return None
        if node.op == "Transpose" and list(node.attrs.get("perm") or [0])[-1] != len(before) - 1:
            return None
        moves.append(node)
        tensor = node.inputs[0]
    return Flags(found, tensor, tuple(reversed(moves)))


def _pack_before_moving(graph: gs.Graph, ctx: Context, pack: gs.Node) -> None:
    """``Pack(x, perm)`` → ``Transpose(Pack(x), perm)`` where perm keeps the channels last and a product of bits made x."""
    perm = list(pack.attrs["perm"])
    rank = len(perm)
    if perm == list(range(rank)) or perm[-1] != rank - 1 or np.dtype(pack.inputs[0].dtype) != np.float32:
        return
    node = producer(pack.inputs[0])
    while node is not None and not node.domain and node.op in ELEMENTWISE | RESHAPES:
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        node = producer(live[0]) if len(live) == 1 else None
    if not is_anchor(node) or is_binarize(pack.inputs[0]):
        return
    output = pack.outputs[0]
    inputs = list(pack.inputs)
    pack.inputs.clear()
    remove_node(graph, pack)
    packed = add_node(
        graph, ctx, "Pack", inputs, stands_for=pack, domain=DOMAIN, perm=list(range(rank)), strict=pack.attrs["strict"]
    )
    origin = ctx.origins.pop(output.name, None)
    if origin is not None:  # the same signs, before they are moved
        place = origin.perm
        back = [perm.index(i) for i in range(rank)]
        ctx.origins[packed.name] = replace(origin, perm=[place[i] for i in back])
        ctx.origins[output.name] = origin
    add_node(
        graph, ctx, "Transpose", [packed], stands_for=pack, perm=perm, output=output, dtype=np.uint8,
        shape=static_shape(output),
    )  # fmt: skip
