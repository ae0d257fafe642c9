"""``pad_pools``: explicit padding in front of a MaxPool becomes padding of the pool."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, constant, producer, static_shape
from ..chain import absorbed
from ..graph import dead_nodes, remove_node
from ..windows import ConstantPad, constant_pad, window

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Abs", "Exp", "Softmax")


class PadPools(Pass):
    """``MaxPool(Pad(x, c))`` → ``MaxPool(x)`` with the amounts in its own ``pads``, which take no part in the maximum.

    Exact where c is −∞, and where c is 0 and x cannot be negative (what a Relu or a Clip from 0 gives, say): a window
    then holds at least one value that is no less than what was padded. For that every amount must be smaller than the
    window, as ONNX demands of a pool's pads. It is how networks that were written for TensorFlow's ``SAME`` arrive.

    It does not fire for dilated pools, pools that give indices or whose own pads would come between, and Pads that are not
    by a constant around the spatial axes.
    """

    name: ClassVar[str] = "pad_pools"

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for pool in [node for node in graph.nodes if node.op == "MaxPool" and not node.domain]:
            pad = producer(pool.inputs[0])
            if pad is None or pad.op != "Pad" or pad.domain:
                continue
            amounts = constant_pad(pad)
            if isinstance(amounts, str) or not _fits(pool, pad, amounts):
                continue
            pool.attrs["pads"] = [*amounts.begin, *amounts.end]
            pool.inputs[0] = pad.inputs[0]
            absorbed(ctx, pad, Status.FUSED, f"padding of '{pool.name}'")
            changed = True
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return changed


def _fits(pool: gs.Node, pad: gs.Node, amounts: ConstantPad) -> bool:
    shape, kernel = static_shape(pool.inputs[0]), list(pool.attrs["kernel_shape"])
    own = window(pool, shape[2:], kernel)
    return (
        len(pool.outputs) == 1
        and not own.padded
        and own.dilations == (1, 1)
        and not pool.attrs.get("ceil_mode", 0)
        and all(amount < size for amount, size in zip(amounts.begin + amounts.end, kernel * 2, strict=True))
        and (amounts.value == -np.inf or (amounts.value == 0 and _never_negative(pad.inputs[0])))
    )


def _never_negative(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    if node is None or node.domain:
        return False
    if node.op == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 and not node.inputs[1].is_empty() else None
        return low is not None and bool((low >= 0).all())
    return node.op in _NEVER_NEGATIVE
