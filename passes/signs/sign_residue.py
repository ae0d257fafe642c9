"""The straight-through residue: what a straight-through estimator leaves in an exported graph, and how it cancels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import constant, producer
from ..graph import node_proto

_DEPTH = 8
"""Longest chain that is followed backwards."""


@dataclass
class SameAs:
    """A node that gives back ``tensor``."""

    tensor: gs.Tensor
    reason: str
    nodes: list[gs.Node] = field(default_factory=list)


def is_binarize(tensor: gs.Tensor) -> bool:
    """Whether a Binarize computes ``tensor``."""
    node = producer(tensor)
    return node is not None and node.domain == DOMAIN and node.op == "Binarize"


def match_residue(node: gs.Node, like: Callable[[gs.Tensor], bool] | None = None) -> SameAs | None:
    """The forms of a straight-through estimator whose parts cancel: what is left is the sign.

    ``like``: what counts as the sign; default: a ``Binarize``, or one times a scale.
    """
    like = like or _is_sign_like
    if node.op not in ("Add", "Sub") or len(node.inputs) != 2:
        return None
    reason = "straight-through residue: (s − y) + y is the sign s"
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op == "Add":
        pairs.append((node.inputs[1], node.inputs[0]))
    for first, second in pairs:
        inner = producer(first)
        if inner is not None and not inner.domain and len(inner.inputs) == 2:
            a, b = inner.inputs
            if node.op == "Add" and inner.op == "Sub" and _same(b, second) and like(a):
                return _if_same_shape(node, SameAs(a, reason, [inner]))
            if node.op == "Sub" and inner.op == "Add":
                for sign, other in ((a, b), (b, a)):
                    if _same(other, second) and like(sign):
                        return _if_same_shape(node, SameAs(sign, reason, [inner]))
        nothing = producer(second)
        cancels = nothing is not None and nothing.op == "Sub" and not nothing.domain and _same(*nothing.inputs)
        if nothing is not None and cancels and like(first):
            return _if_same_shape(node, SameAs(first, "straight-through residue: s ± (y − y) is s", [nothing]))
    return None


def _if_same_shape(node: gs.Node, found: SameAs) -> SameAs | None:
    shapes = found.tensor.shape, node.outputs[0].shape
    return found if None not in shapes and list(shapes[0]) == list(shapes[1]) else None


def _is_sign_like(tensor: gs.Tensor, depth: int = 3) -> bool:
    """A Binarize output, or one times a scale, or with a constant added: two levels."""
    node = producer(tensor)
    if node is None or is_binarize(tensor) or depth == 0:
        return is_binarize(tensor)
    if node.op == "Add" and not node.domain and constant(node.inputs[1]) is not None:
        return _is_sign_like(node.inputs[0], depth - 1)
    return node.op == "Mul" and not node.domain and any(_is_sign_like(t, depth - 1) for t in node.inputs)


def _same(a: gs.Tensor, b: gs.Tensor, depth: int = _DEPTH) -> bool:
    """Whether two tensors hold the same values because the same operators compute them from the same tensors."""
    if a is b:
        return True
    left, right = constant(a), constant(b)
    if left is not None and right is not None:
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    first, second = producer(a), producer(b)
    if first is None or second is None or depth == 0 or len(first.outputs) != 1 or len(second.outputs) != 1:
        return False
    if (first.op, first.domain) != (second.op, second.domain) or first.op.startswith(
        ("Random", "Bernoulli", "Multinom")
    ):
        return False
    if len(first.inputs) != len(second.inputs) or _attributes(first) != _attributes(second):
        return False
    return all(_same(x, y, depth - 1) for x, y in zip(first.inputs, second.inputs, strict=True))


def _attributes(node: gs.Node) -> bytes:
    only = onnx.NodeProto()
    only.attribute.extend(sorted(node_proto(node).attribute, key=lambda attr: attr.name))
    return only.SerializeToString(deterministic=True)
