"""``pad_exact``: explicit padding of signs becomes padding of the layer that reads them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, consumers, producer, static_shape
from ..chain import absorbed
from ..graph import dead_nodes, remove_node
from ..windows import ConstantPad, constant_pad, window
from .bit_route import SIGNS, Route, channels_last, find_route


class PadExact(Pass):
    """Bring every constant ``Pad`` of signs into the one place where packing can keep it: right before a Conv.

    * ``Binarize(Pad(x, c))`` before a Conv → ``Pad(Binarize(x), sign(c))``. The sign acts on each element by itself, so
      it can be taken before padding; sign(0) is what the Binarize says that it is.
    * ``Conv(Pad(bits, 0))`` → the amounts join the Conv's own ``pads``, which pad with 0 as well. Bits may pass
      MaxPool, Transpose and reshapes on their way. A Pad with several readers stays for those that are no Conv.
    * ``Conv(Pad(bits, ±1))`` stays as it is: a Conv cannot say it. ``pack`` looks through it and sets the ``pad_value``
      of the BinaryConv.

    Zeros around the levels of a quantizer (``Quantize``) join the Conv in the same way.

    It does not fire, and says so, for other modes (reflect, edge, wrap), for other values after a sign (such a position
    is no bit), for negative amounts (crops), for padded channels, and for ±1 before a Conv that pads zeros itself.
    """

    name: ClassVar[str] = "pad_exact"

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        moved = [self._sign_first(graph, ctx, node) for node in list(graph.nodes)]
        merged = [self._merge(graph, ctx, node) for node in list(graph.nodes) if node.op == "Conv" and not node.domain]
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return any(moved) or any(merged)

    def _sign_first(self, graph: gs.Graph, ctx: Context, node: gs.Node) -> bool:
        pad = producer(node.inputs[0]) if node.op == "Binarize" and node.domain == DOMAIN else None
        if pad is None or pad.op != "Pad" or not any(reader.op == "Conv" for reader in consumers(node.outputs[0])):
            return False
        amounts = constant_pad(pad)
        if isinstance(amounts, str):
            ctx.note(pad, Status.FLOAT, amounts)
            return False
        zero, source, output = node.attrs["zero"], pad.inputs[0], node.outputs[0]
        value = zero if amounts.value == 0 else int(np.sign(amounts.value))
        signs = add_node(graph, ctx, "Binarize", [source], stands_for=node, domain=DOMAIN, zero=zero)
        every = [0, 0, *amounts.begin, 0, 0, *amounts.end]
        ctx.move_sign(signs, output, pad.outputs[0], [("crop", every)])
        amount = add_constant(ctx, f"{pad.name}/pads", np.array(every, np.int64))
        fill = add_constant(ctx, f"{pad.name}/value", np.array(value, np.float32))
        add_node(
            graph, ctx, "Pad", [signs, amount, fill],
            stands_for=pad, output=output, shape=static_shape(output), dtype=output.dtype, mode="constant",
        )  # fmt: skip
        node.inputs.clear()
        return True

    def _merge(self, graph: gs.Graph, ctx: Context, conv: gs.Node) -> bool:
        pad = producer(conv.inputs[0])
        if pad is None or pad.op != "Pad" or pad.domain:
            return False
        source = pad.inputs[0]
        rank = len(static_shape(source))
        if not isinstance(find_route(source, channels_last(rank, 1), SIGNS | {"Quantize"}), Route):
            return False
        amounts = constant_pad(pad)
        refusal = amounts if isinstance(amounts, str) else self._refusal(pad, conv, amounts)
        if refusal is not None:
            ctx.note(pad, Status.FLOAT, refusal)
            return False
        if not isinstance(amounts, ConstantPad) or amounts.value != 0:
            return False
        own = window(conv, static_shape(conv.inputs[0])[2:], static_shape(conv.inputs[1])[2:]).pads
        axes = rank - 2
        begin = [a + b for a, b in zip(amounts.begin, own[2 - axes : 2], strict=True)]
        end = [a + b for a, b in zip(amounts.end, own[4 - axes :], strict=True)]
        conv.attrs.pop("auto_pad", None)
        conv.attrs["pads"] = begin + end
        conv.inputs[0] = source
        absorbed(ctx, pad, Status.FUSED, f"part of the padding of '{conv.name}'")
        return True

    @staticmethod
    def _refusal(pad: gs.Node, conv: gs.Node, amounts: ConstantPad) -> str | None:
        if amounts.value not in (-1, 0, 1):
            return f"pads signs with {amounts.value:g}, which is no sign: only −1, 0 and +1 are packed"
        own = window(conv, static_shape(conv.inputs[0])[2:], static_shape(conv.inputs[1])[2:])
        if amounts.value != 0 and own.padded:
            return f"pads with {amounts.value:+g} where Conv '{conv.name}' pads with 0: one layer pads one value"
        return None
