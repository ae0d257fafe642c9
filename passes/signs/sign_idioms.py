"""What the sign idioms look like: matchers that read the graph and change nothing. ``recognise_sign`` applies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from ..base import constant, consumers, producer
from .affine_signs import feeds_layer
from .sign_residue import SameAs, is_binarize, match_residue

# Operator → (the condition is true above the constant, equality counts as above), for `x op constant`.
_COMPARISONS = {
    "Greater": (True, False),
    "GreaterOrEqual": (True, True),
    "Less": (False, True),
    "LessOrEqual": (False, False),
}
_MIRRORED = {"Greater": "Less", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "LessOrEqual": "GreaterOrEqual"}
_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_DEPTH = 8
"""Longest chain that is followed backwards."""


@dataclass
class Sign:
    """A node that computes ``coefficient · Binarize(±(x − threshold), zero) + offset``."""

    x: gs.Tensor
    zero: int
    idiom: str
    threshold: np.ndarray | None = None
    """None: 0."""
    negate: bool = False
    coefficient: np.ndarray | None = None
    """None: 1."""
    offset: np.ndarray | None = None
    """None: 0."""
    nodes: list[gs.Node] = field(default_factory=list)
    """Nodes of the idiom other than the matched one."""


@dataclass
class _Condition:
    """A boolean tensor that says whether ``x`` is above ``threshold``, or below it."""

    x: gs.Tensor
    threshold: np.ndarray
    true_above: bool
    equal_is_above: bool
    nodes: list[gs.Node]


@dataclass
class _Levels:
    """A tensor that holds one of two constants, as a condition says."""

    condition: _Condition
    above: np.ndarray
    below: np.ndarray
    nodes: list[gs.Node]


def match(node: gs.Node, sign_zero: int | None = None) -> Sign | SameAs | None:
    """What ``node`` computes, if it is the end of a sign idiom or of a straight-through residue."""
    if node.domain:
        return None
    if node.op == "Sign":
        return _match_sign(node, sign_zero)
    for matcher in (_match_zero_fill, match_residue, _match_levels, _match_two_levels):
        found = matcher(node)
        if found is not None:
            return found
    return None


def strip_clip(tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]]:
    """The tensor behind clips that contain 0 strictly inside, which keep the sign; and these clips."""
    nodes: list[gs.Node] = []
    while (node := producer(tensor)) is not None and node.op == "Clip" and not node.domain:
        low = constant(node.inputs[1]) if len(node.inputs) > 1 and not node.inputs[1].is_empty() else np.array(-1)
        high = constant(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else np.array(1)
        if low is None or high is None or low.size != 1 or high.size != 1 or not low.item() < 0 < high.item():
            break
        nodes.append(node)
        tensor = node.inputs[0]
    return tensor, nodes


def _match_sign(node: gs.Node, sign_zero: int | None) -> Sign | None:
    affine = _of_binarize(node.inputs[0])
    if affine is not None:
        binarize, values, nodes = affine
        below, middle, above = (np.sign(value) for value in values)
        inner_zero = binarize.attrs["zero"]
        if (below == -1).all() and (above == 1).all() and (middle == middle.flat[0]).all():
            zero = int(middle.flat[0]) if inner_zero == 0 else inner_zero
            if zero == 0 and sign_zero is not None:
                zero = sign_zero
            return Sign(binarize.inputs[0], zero, "sign of a sign", nodes=[*nodes, binarize])
    if sign_zero is None and (rectified := _of_relu(node)) is not None:
        return rectified
    x, clips = strip_clip(node.inputs[0])
    return Sign(x, 0 if sign_zero is None else sign_zero, "Sign", nodes=clips)


def _of_relu(node: gs.Node) -> Sign | None:
    """``sign(ReLU(x))`` in front of a layer: 1 for x > 0, else 0, which is ``0.5 · (x > 0 ? 1 : −1) + 0.5``."""
    relu = producer(node.inputs[0])
    if relu is None or relu.domain or relu.op not in ("Relu", "Clip") or not feeds_layer(node.outputs[0]):
        return None
    if relu.op == "Clip":
        low = constant(relu.inputs[1]) if len(relu.inputs) > 1 and not relu.inputs[1].is_empty() else None
        high = constant(relu.inputs[2]) if len(relu.inputs) > 2 and not relu.inputs[2].is_empty() else np.array(1)
        if low is None or high is None or low.size != 1 or high.size != 1 or low.item() != 0 or high.item() <= 0:
            return None
    half = np.full(1, 0.5, np.float32)
    return Sign(relu.inputs[0], -1, "sign of a ReLU", coefficient=half, offset=half, nodes=[relu])


def _of_binarize(tensor: gs.Tensor) -> tuple[gs.Node, list[np.ndarray], list[gs.Node]] | None:
    """For constants combined with a Binarize output: that node, the values at −1, 0, +1, the nodes on the way."""
    chain: list[gs.Node] = []
    while not is_binarize(tensor):
        node = producer(tensor)
        side = _constant_side(node) if node is not None and len(chain) < _DEPTH else None
        if node is None or side is None:
            return None
        chain.append(node)
        tensor = node.inputs[1 - side]
    values = [np.float32(level).reshape(1) for level in (-1, 0, 1)]
    for node in reversed(chain):
        values = [_apply(node, value) for value in values]
    binarize = producer(tensor)
    assert binarize is not None
    return binarize, values, chain


def _constant_side(node: gs.Node) -> int | None:
    """Index of the one constant input of an Add, Sub, Mul or Div, else None."""
    if node.op not in _ARITHMETIC or node.domain:
        return None
    sides = [index for index, tensor in enumerate(node.inputs) if constant(tensor) is not None]
    return sides[0] if len(sides) == 1 else None


def _apply(node: gs.Node, value: np.ndarray) -> np.ndarray:
    """The node's result when its variable input is ``value``, in the dtype of ``value``, as IEEE 754 rounds it."""
    if node.op == "Neg":
        return -value
    if node.op == "Cast":
        return value.astype(helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    side = _constant_side(node)
    assert side is not None
    other = np.asarray(constant(node.inputs[side]))
    with np.errstate(all="ignore"):
        pair = (other, value) if side == 0 else (value, other)
        return np.asarray(_ARITHMETIC[node.op](*pair))


def _is_cast_to_bool(node: gs.Node) -> bool:
    return node.op == "Cast" and node.attrs.get("to") == TensorProto.BOOL


def _unwrap_bool(tensor: gs.Tensor) -> tuple[gs.Node | None, bool, list[gs.Node]]:
    """Behind `Not` and casts that keep a boolean: the node that decides, whether it counts as it is, nodes on the way."""
    positive = True
    nodes: list[gs.Node] = []
    for _ in range(_DEPTH):
        node = producer(tensor)
        if node is None or node.domain:
            return None, True, []
        if node.op == "Not":
            positive = not positive
        elif not (node.op == "Cast" and (_is_cast_to_bool(node) or node.inputs[0].dtype == np.bool_)):
            return node, positive, nodes
        nodes.append(node)
        tensor = node.inputs[0]
    return None, True, []


def _condition(tensor: gs.Tensor) -> _Condition | None:
    node, positive, nodes = _unwrap_bool(tensor)
    if node is None or node.op not in _COMPARISONS:
        return None
    left, right = (constant(t) for t in node.inputs)
    if (left is None) == (right is None):
        return None
    op, x, threshold = (node.op, node.inputs[0], right) if right is not None else (
        _MIRRORED[node.op], node.inputs[1], left)  # fmt: skip
    if x.dtype != np.float32 or threshold is None or not np.isfinite(threshold).all():
        return None
    if not _broadcasts_into(threshold.shape, x.shape):
        return None
    true_above, equal_is_above = _COMPARISONS[op]
    nodes = [*nodes, node]
    if not threshold.any():
        x, clips = strip_clip(x)
        nodes += clips
    return _Condition(x, threshold, true_above == positive, equal_is_above, nodes)


def _broadcasts_into(shape: Sequence[int], into: Sequence[int] | None) -> bool:
    if into is None or len(shape) > len(into):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(into), strict=False))


def _levels(tensor: gs.Tensor, depth: int = _DEPTH) -> _Levels | None:
    node = producer(tensor)
    if node is None or node.domain or depth == 0:
        return None
    if node.op == "Where":
        condition = _condition(node.inputs[0])
        chosen, other = constant(node.inputs[1]), constant(node.inputs[2])
        if condition is None or chosen is None or other is None:
            return None
        pair = (chosen, other) if condition.true_above else (other, chosen)
        return _Levels(condition, *pair, [*condition.nodes, node])
    if node.op == "Cast" and node.inputs[0].dtype == np.bool_ and not _is_cast_to_bool(node):
        condition = _condition(node.inputs[0])
        if condition is None:
            return None
        kind = helper.tensor_dtype_to_np_dtype(node.attrs["to"])
        one, nothing = np.ones(1, kind), np.zeros(1, kind)
        pair = (one, nothing) if condition.true_above else (nothing, one)
        return _Levels(condition, *pair, [*condition.nodes, node])
    if node.op in ("Neg", "Cast") and not _is_cast_to_bool(node):
        inner = _levels(node.inputs[0], depth - 1)
    elif (side := _constant_side(node)) is not None:
        inner = _levels(node.inputs[1 - side], depth - 1)
    else:
        return None
    if inner is None:
        return None
    return _Levels(inner.condition, _apply(node, inner.above), _apply(node, inner.below), [*inner.nodes, node])


def _symmetric(tensor: gs.Tensor) -> _Levels | None:
    """The levels of ``tensor`` when they are c and −c, float32, finite and not 0."""
    levels = _levels(tensor)
    if levels is None:
        return None
    above, below = levels.above, levels.below
    if above.dtype != np.float32 or below.dtype != np.float32 or tensor.shape is None:
        return None
    fits = np.isfinite(above).all() and (above != 0).all() and (above == -below).all()
    same_shape = levels.condition.x.shape is not None and list(levels.condition.x.shape) == list(tensor.shape)
    return levels if fits and same_shape else None


def _two_levels(tensor: gs.Tensor) -> _Levels | None:
    """The levels of ``tensor`` when they are two single float32 values, not opposite: 0 and 1, say."""
    levels = _levels(tensor)
    if levels is None or tensor.shape is None or levels.condition.x.shape is None:
        return None
    above, below = levels.above, levels.below
    fits = above.dtype == below.dtype == np.float32 and above.size == below.size == 1
    fits = fits and bool(np.isfinite(above).all() and np.isfinite(below).all() and (above != below).all())
    return levels if fits and list(levels.condition.x.shape) == list(tensor.shape) else None


def _match_two_levels(node: gs.Node) -> Sign | None:
    """Two levels a and b in front of a layer: ``(a − b)/2`` times a sign, plus ``(a + b)/2``, where this is exact."""
    levels = _two_levels(node.outputs[0]) if len(node.outputs) == 1 else None
    if levels is None or not feeds_layer(node.outputs[0]):
        return None
    following = node
    for _ in range(_DEPTH):
        readers = consumers(following.outputs[0])
        if len(readers) != 1 or len(readers[0].outputs) != 1 or _levels(readers[0].outputs[0]) is None:
            break
        following = readers[0]
        if _symmetric(following.outputs[0]) is not None:
            return None  # that node has the better form
    above, below = (np.float64(level.reshape(()).item()) for level in (levels.above, levels.below))
    half, middle = np.float32((above - below) / 2), np.float32((above + below) / 2)
    if half + middle != np.float32(above) or middle - half != np.float32(below):
        return None
    condition, zero = levels.condition, 1 if levels.condition.equal_is_above else -1
    return Sign(
        condition.x,
        zero if half > 0 else -zero,
        "two levels by a comparison",
        threshold=condition.threshold if condition.threshold.any() else None,
        negate=bool(half < 0),
        coefficient=np.abs(half).reshape(1),
        offset=middle.reshape(1),
        nodes=[other for other in levels.nodes if other is not node],
    )


def _match_levels(node: gs.Node) -> Sign | None:
    levels = _symmetric(node.outputs[0]) if len(node.outputs) == 1 else None
    if levels is None:
        return None
    coefficient = np.broadcast_arrays(levels.above, levels.below)[0]
    if not (np.abs(coefficient) == 1).all():
        # `((x > 0) − 0.5) · 2`: the next node has the better form.
        readers = consumers(node.outputs[0])
        if len(readers) == 1 and readers[0].outputs and _symmetric(readers[0].outputs[0]) is not None:
            return None
    condition = levels.condition
    found = Sign(
        condition.x,
        1 if condition.equal_is_above else -1,
        "two levels by a comparison",
        threshold=condition.threshold if condition.threshold.any() else None,
        nodes=[other for other in levels.nodes if other is not node],
    )
    if (coefficient == 1).all():
        return found
    if (coefficient == -1).all():
        found.negate, found.zero = True, -found.zero
        return found
    found.coefficient = coefficient
    return found


def _zero_test(tensor: gs.Tensor) -> tuple[gs.Tensor, bool, list[gs.Node]] | None:
    """For ``t == 0``: t, whether the test is true there (not negated), the nodes of the test."""
    node, positive, nodes = _unwrap_bool(tensor)
    if node is None or node.op != "Equal":
        return None
    for tested, other in (node.inputs, reversed(list(node.inputs))):
        value = constant(other)
        if value is not None and not value.any() and constant(tested) is None:
            return tested, positive, [*nodes, node]
    return None


def _uniform(tensor: gs.Tensor) -> float | None:
    """The one value that all elements of ``tensor`` have, seen through reshapes, else None."""
    for _ in range(_DEPTH):
        value = constant(tensor)
        if value is not None:
            same = value.size > 0 and value.dtype.kind in "fiu" and bool((value == value.flat[0]).all())
            return float(value.flat[0]) if same else None
        node = producer(tensor)
        if node is None or node.op not in ("Expand", "Reshape", "Squeeze", "Unsqueeze", "Identity", "ConstantOfShape"):
            return None
        if node.op == "ConstantOfShape":
            filler = node.attrs.get("value")
            return float(np.asarray(filler.values).flat[0]) if filler is not None else 0.0
        tensor = node.inputs[0]
    return None


def _match_zero_fill(node: gs.Node) -> Sign | None:
    """A sign whose zeros are given a value: by Where, by a masked assignment, or by adding ``x == 0``."""
    if node.op == "Where":
        test = _zero_test(node.inputs[0])
        if test is None:
            return None
        filled, sign = (node.inputs[1], node.inputs[2]) if test[1] else (node.inputs[2], node.inputs[1])
        return _zero_filled(node, test, sign, _uniform(filled))
    if node.op == "ScatterND" and node.attrs.get("reduction", "none") == "none":
        mask = _masked_indices(node.inputs[1])
        test = _zero_test(mask[0]) if mask is not None else None
        if mask is None or test is None or not test[1]:
            return None
        fill = [n for n in (producer(node.inputs[2]),) if n is not None]
        return _zero_filled(
            node, (test[0], True, [*test[2], *mask[1], *fill]), node.inputs[0], _uniform(node.inputs[2])
        )
    if node.op in ("Add", "Sub"):
        for index, sign in enumerate(node.inputs):
            cast = producer(node.inputs[1 - index])
            if (node.op == "Sub" and index == 1) or cast is None or cast.op != "Cast" or not is_binarize(sign):
                continue
            test = _zero_test(cast.inputs[0]) if cast.inputs[0].dtype == np.bool_ else None
            if test is not None and test[1] and producer(sign).attrs["zero"] == 0:  # type: ignore[union-attr]
                value = 1.0 if node.op == "Add" else -1.0
                return _zero_filled(node, (test[0], True, [*test[2], cast]), sign, value)
    return None


def _masked_indices(tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The mask behind ``Transpose(NonZero(mask))``."""
    transpose = producer(tensor)
    if transpose is None or transpose.op != "Transpose" or list(transpose.attrs.get("perm", [1, 0])) != [1, 0]:
        return None
    nonzero = producer(transpose.inputs[0])
    return (nonzero.inputs[0], [transpose, nonzero]) if nonzero is not None and nonzero.op == "NonZero" else None


def _zero_filled(
    node: gs.Node, test: tuple[gs.Tensor, bool, list[gs.Node]], sign: gs.Tensor, value: float | None
) -> Sign | None:
    """The sign of x with ``value`` at zero, when ``sign`` is one and the test asks that sign, or x, for zero."""
    if value not in (-1.0, 0.0, 1.0) or not is_binarize(sign):
        return None
    binarize = producer(sign)
    assert binarize is not None
    x = binarize.inputs[0]
    if test[0] is not sign and strip_clip(test[0])[0] is not strip_clip(x)[0]:
        return None
    if sign.shape != node.outputs[0].shape:
        return None
    return Sign(x, int(value), "sign with its zeros replaced", nodes=[*test[2], binarize])


def near_miss(node: gs.Node) -> str | None:
    """Why a `Where` on a comparison is not a sign, or None when it is not one of those."""
    if node.op != "Where" or node.domain:
        return None
    test = _unwrap_bool(node.inputs[0])[0]
    if test is None or test.op not in _COMPARISONS:
        return None
    if _condition(node.inputs[0]) is None:
        return "not a sign: it does not compare a float32 tensor with a finite constant"
    if any(constant(tensor) is None for tensor in node.inputs[1:]):
        return "not a sign: it chooses between tensors that are not constant"
    return "not a sign: its two levels are not opposite"
