"""Weights of few levels beside float32 activations, found by their values, are stored as codes.

Matches `Conv` (1-D and 2-D), `Gemm` and `MatMul` with a constant float32 weight on the right whose activations are not signs,
and whose weights are one of (``weight_codes`` and ``levels`` say how they are found)
* signed powers of two times a scale per output channel: `ShiftGemm`, `ShiftConv`;
* codes of 1 to 4 bits on evenly spaced levels, with a scale (and zero, and offset) per output channel or for each 128, 64 or
  32 neighbours along K: `LowBitGemm`, `LowBitConv`. ±s is the case of one bit, and so is mean ± s;
* one bit as above, but for up to 30% of the weights, which lie on a grid of 8 bits a channel: `SparseResidualGemm`.

Gives the operator, then `Mul` by alpha and `Add` of the bias. The encoding that takes the fewest bytes is chosen, and only
where it takes at most half of the float weights' bytes.

Why it is right: the operator decodes the very weights (bit for bit where the record says so, else within 4 ulp of the
largest of their group, and validation accounts for the difference) and sums the same products in float32, in another order.

Does not fire for layers of signs (``pack`` has those, or says why not), for depthwise convolutions of at most 64 KiB (a
blur of fixed weights, say), for weights of more levels, or of levels that are
not evenly spaced, for a transposed activation of a `Gemm`, and for a weight on the left of a `MatMul`. It then leaves the
record as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import original_name
from ..graph import remove_node
from ..pack.pack import reshape
from ..signs.sign_residue import is_binarize
from ..windows import window
from .weight_codes import Encoded, encode

SMALL_BYTES = 64 << 10
"""Depthwise weights up to this size are left in float."""

_TRANSPARENT = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Identity"}


class LowBitWeights(Pass):
    """See the module."""

    name: ClassVar[str] = "low_bit"
    requires: ClassVar[tuple[str, ...]] = ("pack",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every layer that matches."""
        known: dict[Any, tuple[Encoded | str | None, list[gs.Tensor]]] = {}
        changed = False
        for node in [node for node in graph.nodes if node.op in ("Conv", "Gemm", "MatMul") and not node.domain]:
            rows = weight_rows(node)
            if rows is None or _of_signs(node.inputs[0]):
                continue
            key = (id(node.inputs[1]), node.op == "Conv", rows.shape)
            if key not in known:
                encoded = encode(rows, grouped=node.op != "Conv")
                base = node.inputs[1].name
                constants = encoded.constants if isinstance(encoded, Encoded) else {}
                known[key] = encoded, [add_constant(ctx, f"{base}/{name}", v) for name, v in constants.items()]
            found = known[key]
            if isinstance(found[0], str):
                ctx.note(node, Status.FLOAT, found[0])
            elif found[0] is not None and _small_depthwise(node, rows):
                ctx.note(
                    node,
                    Status.FLOAT,
                    "its weights have few levels, but as a depthwise layer it has too few to store as codes",
                )
            elif found[0] is not None:
                _rewrite(graph, ctx, node, rows.shape, found[0], found[1])
                changed = True
        return changed


def _of_signs(tensor: gs.Tensor) -> bool:
    """Whether a tensor holds signs, moved, pooled or padded at most: their layers are for ``pack``."""
    while not is_binarize(tensor):
        node = producer(tensor)
        if node is None or node.domain or node.op not in _TRANSPARENT:
            return False
        tensor = node.inputs[0]
    return True


def weight_rows(node: gs.Node) -> np.ndarray | None:
    """The weights as float32 ``[O, K]``, or None where the node has none that fit."""
    x, w = node.inputs[0], constant(node.inputs[1])
    if w is None or constant(x) is not None or w.dtype != np.float32 or x.dtype != np.float32 or not w.size:
        return None
    if node.op == "Conv":
        return w.reshape(len(w), -1) if w.ndim in (3, 4) else None
    if w.ndim != 2 or len(static_shape(x)) < 2 or node.attrs.get("transA", 0):
        return None
    return w if node.attrs.get("transB", 0) else np.ascontiguousarray(w.T)


def _small_depthwise(node: gs.Node, rows: np.ndarray) -> bool:
    """Whether a layer has one input channel a group, and so few weights that codes would cost time for next to nothing."""
    return node.op == "Conv" and static_shape(node.inputs[1])[1] == 1 and rows.nbytes <= SMALL_BYTES


def _rewrite(
    graph: gs.Graph, ctx: Context, node: gs.Node, sizes: tuple[int, ...], encoded: Encoded, constants: list[gs.Tensor]
) -> None:
    x, out, base = node.inputs[0], node.outputs[0], original_name(ctx, node)
    attrs: dict[str, Any] = {"k": sizes[1], **encoded.attrs}
    shape, third = static_shape(out), node.inputs[2] if len(node.inputs) > 2 else None
    third = None if third is None or third.is_empty() else third
    tail: list[tuple[str, gs.Tensor]] = []
    kind = "Gemm"
    if node.op == "Conv":
        kind, size = "Conv", static_shape(x)[2:]
        own = window(node, size, static_shape(node.inputs[1])[2:])
        attrs |= {
            "kernel_shape": list(own.kernel), "strides": list(own.strides), "dilations": list(own.dilations),
            "pads": list(own.pads), "group": int(node.attrs.get("group", 1)),
        }  # fmt: skip
        if third is not None:
            tail.append(("Add", of_channels(graph, ctx, third, len(shape), base, node)))
        if len(size) == 1:
            x = reshape(graph, ctx, x, (*static_shape(x)[:2], 1, size[0]), node)
    else:
        alpha, beta = (np.float32(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
        if alpha != 1:
            tail.append(("Mul", add_constant(ctx, f"{base}/alpha", np.asarray(alpha))))
        if third is not None and beta != 0:
            if beta != 1:
                factor = add_constant(ctx, f"{base}/beta", np.asarray(beta))
                third = add_node(
                    graph, ctx, "Mul", [third, factor], stands_for=node, shape=third.shape, dtype=np.float32
                )
            tail.append(("Add", third))
    remove_node(graph, node)
    flat = node.op == "Conv" and len(shape) == 3
    last = None if tail or flat else out
    value = add_node(graph, ctx, encoded.family + kind, [x, *constants], stands_for=node, domain=DOMAIN, output=last,
                     **attrs)  # fmt: skip
    if flat:
        value = reshape(graph, ctx, value, shape, node, None if tail else out)
    for i, (op, operand) in enumerate(tail):
        last = out if i == len(tail) - 1 else None
        value = add_node(graph, ctx, op, [value, operand], stands_for=node, output=last, shape=shape, dtype=np.float32)
    text = f"{encoded.family}{kind} {sizes[1]}→{sizes[0]}: {encoded.text}, decoded in the kernel"
    before = ctx.records.get(base)
    if before is not None and "its signs" in before.reason:  # why a layer that comes from signs is not on bits
        text += f"; its activations are floats: {before.reason}"
    ctx.note(node, Status.PACKED, text)


def of_channels(graph: gs.Graph, ctx: Context, bias: gs.Tensor, rank: int, base: str, node: gs.Node) -> gs.Tensor:
    """A Conv's bias ``[O]`` as an addend of its output."""
    value, shape = constant(bias), (1, -1, *[1] * (rank - 2))
    if value is not None:
        return add_constant(ctx, f"{base}/bias", value.reshape(shape))
    return reshape(graph, ctx, bias, (1, *static_shape(bias), *[1] * (rank - 2)), node)
