"""Removes what has no effect.

Matches `Identity`, inference `Dropout`, `Reshape`-like nodes and `Expand` and `Slice` that give back their input, `Transpose`
by the identity, `Cast` to the same dtype, `Pad` by nothing, `Mul` and `Div` by 1, `Sub` of 0, `Concat`, `Sum`, `Max`, `Min`,
`Mean` of one tensor; dead code. Rewrites `auto_pad` of convolutions and pools to explicit pads.

Why it is right: each of them gives its input's values back, bit for bit (x·1, x/1 and x − 0 are exact, for −0 and infinities
too). `SAME_UPPER` and `SAME_LOWER` are computed from the static shapes as ONNX defines them.

Does not fire where a dtype or shape is unknown, for `Add` of 0 (which turns −0 to +0), and where the node joins an input of
the model, or a constant, to an output: a model must have a node there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, constant, static_shape
from ..graph import bypass, dead_nodes, remove_node

_SAME_SHAPE_IS_NOTHING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"}
_OF_ONE = {"Concat", "Sum", "Max", "Min", "Mean"}
_WINDOWED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}


class Clean(Pass):
    """See the module."""

    name: ClassVar[str] = "clean"

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """One sweep in graph order, then dead code."""
        changed = False
        for node in list(graph.nodes):
            if node.domain:
                continue
            if node.op in _WINDOWED:
                changed |= explicit_pads(node)
                continue
            reason = _no_effect(node)
            if reason and bypass(graph, node, node.inputs[0]):
                ctx.note(node, Status.REMOVED, reason)
                changed = True
        return remove_dead(graph, ctx) or changed


def remove_dead(graph: gs.Graph, ctx: Context) -> bool:
    """Remove the nodes that no output depends on; those without a record get one."""
    dead = dead_nodes(graph)
    for node in dead:
        if node.name in ctx.original and node.name not in ctx.records:
            ctx.note(node.name, Status.REMOVED, "no output depends on it")
        remove_node(graph, node)
    return bool(dead)


def _no_effect(node: gs.Node) -> str | None:
    """Why ``node`` gives back its first input, or None."""
    if len(node.inputs) == 0 or any(out.outputs for out in node.outputs[1:]):
        return None
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(node)
    if node.op in _SAME_SHAPE_IS_NOTHING and _same_type(node):
        return "input and output have the same shape"
    if node.op in _OF_ONE and len(node.inputs) == 1:
        return "it has one input only"
    return None


def _same_type(node: gs.Node) -> bool:
    """Whether the first input and output have the same, known, static type."""
    before, after = node.inputs[0], node.outputs[0]
    shapes = (before.shape, after.shape)
    static = all(shape is not None and all(isinstance(s, (int, np.integer)) for s in shape) for shape in shapes)
    known = before.dtype is not None and after.dtype is not None
    return static and known and list(before.shape) == list(after.shape) and before.dtype == after.dtype


def _identity(node: gs.Node) -> str | None:
    return "it is the identity"


def _dropout(node: gs.Node) -> str | None:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else np.array(False)
    return "dropout does nothing in inference" if training is not None and not training.any() else None


def _transpose(node: gs.Node) -> str | None:
    perm = node.attrs.get("perm")
    return "it transposes nothing" if perm is not None and list(perm) == list(range(len(perm))) else None


def _cast(node: gs.Node) -> str | None:
    return "it casts to the dtype that the tensor has" if _same_type(node) else None


def _pad(node: gs.Node) -> str | None:
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return "it pads nothing" if pads is not None and not pads.any() else None


def _slice(node: gs.Node) -> str | None:
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 and not node.inputs[4].is_empty() else np.array(1)
    forward = steps is not None and bool((steps > 0).all())
    return "it slices nothing off" if forward and _same_type(node) else None


def _neutral(value: float, what: str) -> Callable[[gs.Node], str | None]:
    def rule(node: gs.Node) -> str | None:
        operand = constant(node.inputs[1])
        if operand is None:
            return None
        fits = operand.dtype.kind in "fiu" and bool((operand == value).all())
        if fits and value == 0 and operand.dtype.kind == "f":
            fits = not np.signbit(operand).any()  # x − (−0) turns −0 to +0
        return what if fits and _same_type(node) else None

    return rule


def _multiply(node: gs.Node) -> str | None:
    """The constant 1 may stand on either side; it is moved to the right."""
    left = constant(node.inputs[0])
    if left is not None and left.dtype.kind in "fiu" and bool((left == 1).all()) and constant(node.inputs[1]) is None:
        node.inputs = [node.inputs[1], node.inputs[0]]
    return _neutral(1, "it multiplies by 1")(node)


_RULES: dict[str, Callable[[gs.Node], str | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Cast": _cast,
    "Pad": _pad,
    "Slice": _slice,
    "Mul": _multiply,
    "Div": _neutral(1, "it divides by 1"),
    "Sub": _neutral(0, "it subtracts 0"),
}


def explicit_pads(node: gs.Node) -> bool:
    """Replace ``auto_pad`` of a convolution or pool by the pads that it stands for; returns whether it did."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        had = "auto_pad" in node.attrs
        node.attrs.pop("auto_pad", None)
        return had
    if node.op == "ConvTranspose" and mode != "VALID":
        return False  # its pads follow from output_shape
    shape = static_shape(node.inputs[0])
    rank = len(shape) - 2
    kernel = node.attrs.get("kernel_shape") or static_shape(node.inputs[1])[2:]
    strides = node.attrs.get("strides") or [1] * rank
    dilations = node.attrs.get("dilations") or [1] * rank
    begin, end = [0] * rank, [0] * rank
    if mode != "VALID":
        for axis in range(rank):
            size, step = shape[axis + 2], strides[axis]
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-size // step) - 1) * step + reach - size, 0)
            small, large = total // 2, total - total // 2
            begin[axis], end[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
    del node.attrs["auto_pad"]
    node.attrs["pads"] = begin + end
    return True
