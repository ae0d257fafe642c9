"""Error bounds of functions of one tensor: approximations, normalizations, steps. ``bounds`` applies them to a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

U = 2.0**-24
FLUSH = 2.0**-126
"""What flushing subnormal numbers to zero may change (32-bit NEON does)."""
FUNCTION = 2.0**-22
"""Absolute error allowed to an approximation of exp, tanh, erf and their like, on top of 4 ulp of the result."""

NOTHING = 1e30
"""A bound so large that it says nothing. Divisions are held to it, so that no bound becomes infinite, and then no number."""

Error = np.ndarray | float
"""Bound of a tensor: an array of its shape (float64), or one number for all elements."""


def gamma(n: int) -> float:
    """Relative error of ``n`` roundings."""
    return n * U / (1 - n * U)


def contracted(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Products that one result of an ``Einsum`` adds up, for operands of these shapes."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for labels, shape in zip(left.split(","), shapes, strict=True):
        before, _, after = labels.partition("...")
        sizes |= dict(zip(before, shape, strict=False)) | dict(zip(after[::-1], shape[::-1], strict=False))
    kept = right if arrow else [label for label in sizes if left.count(label) == 1]
    return math.prod(size for label, size in sizes.items() if label not in kept)


# Lipschitz constants: how much a change of the argument can change the result.
SMOOTH = {
    "Sigmoid": 0.25, "Tanh": 1.0, "Erf": 1.13, "Softplus": 1.0, "Gelu": 1.13, "HardSwish": 1.5, "HardSigmoid": 1.0,
    "Mish": 1.09, "Softsign": 1.0, "Elu": 1.0, "Selu": 1.76, "Celu": 1.0, "Sin": 1.0, "Cos": 1.0,
}  # fmt: skip
"""Of Elu and HardSigmoid: with their default ``alpha`` or less; a larger one counts (``lipschitz``)."""
JUMPS = {"Sign", "Round", "Floor", "Ceil", "ThresholdedRelu"}


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number that a node has as an attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """A text that a node has as an attribute."""
    return next((a.s.decode() for a in node.attribute if a.name == name), default)


# ---- functions of one tensor: (node, inputs as float64, result, bound of the first input) → bound ----


def growth(e: Error) -> Error:
    """exp(e) − 1, held below ``NOTHING``."""
    return np.minimum(np.expm1(np.minimum(e, 69.0)), NOTHING)


def _exp(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    return np.abs(y) * growth(e) + 8 * U * np.abs(y) + FLUSH


def _log(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    return e / np.maximum(np.abs(x[0]) - e, FLUSH) + 8 * U * np.abs(y) + FUNCTION


def _sqrt(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    return np.minimum(e / np.maximum(y, FLUSH), np.sqrt(e)) + 2 * U * np.abs(y) + FLUSH


def _reciprocal(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    return np.minimum(np.abs(y) * e / np.maximum(np.abs(x[0]) - e, FLUSH), NOTHING) + 4 * U * np.abs(y) + FLUSH


def _pow(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    base, power = np.abs(x[0]), np.abs(x[1])
    return np.abs(y) * growth(power * e / np.maximum(base - e, FLUSH)) + 8 * U * np.abs(y) + FLUSH


def _softmax(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    # A change of at most d in every argument changes a result by at most a factor exp(2 d).
    axis = int(attribute(node, "axis", -1))
    # And both results lie between 0 and 1.
    return np.minimum(y * growth(2 * np.max(e)), 1.0) + gamma(2 * (y.shape[axis] + 16)) * y + FUNCTION * U


def _log_softmax(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    axis = int(attribute(node, "axis", -1))
    return 2 * np.max(e) + gamma(y.shape[axis] + 16) * (1 + np.abs(y) + np.abs(x[0])) + FUNCTION


def _batch_norm(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    shape = (-1,) + (1,) * (x[0].ndim - 2)
    scale, bias, mean, variance = (value.reshape(shape) for value in x[1:5])
    factor = np.abs(scale) / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor * e + gamma(8) * (factor * (np.abs(x[0]) + np.abs(mean)) + np.abs(bias)) + FLUSH


def affine(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    """ONNX Runtime's BatchNormalization as x·a + b with float32 a and b: the error of x, a product, a sum."""
    shape = (-1,) + (1,) * (x[0].ndim - 2)
    scale, _, _, variance = (value.reshape(shape) for value in x[1:5])
    factor = np.abs(scale) / np.sqrt(variance + attribute(node, "epsilon", 1e-5)) * (1 + gamma(8))
    return factor * e + U * (1 + 2 * U) * (factor * (np.abs(x[0]) + e) + np.abs(y)) + FLUSH


def _normalized(x: np.ndarray, e: Error, axes: tuple[int, ...], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """|n| of n = (x - mean) / sigma over ``axes``, and its bound.

    When every x moves by at most d, x - mean moves by at most 2 d and sigma by at most d (centring does not lengthen a
    vector): n moves by at most (2 + |n|) d / (sigma - d). The sums over k elements count as a move of γ(k + 4) max|x|. Where
    d is not small beside sigma, |n| <= √k says all.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    sigma = np.sqrt(x.var(axes, keepdims=True) + epsilon)
    normal = np.abs(x - x.mean(axes, keepdims=True)) / sigma
    moved = np.broadcast_to(np.asarray(e, np.float64), x.shape).max(axes, keepdims=True)
    d = moved + gamma(count + 4) * np.abs(x).max(axes, keepdims=True)
    return normal, np.where(d <= 0.05 * sigma, (2 + normal) * d / sigma * 1.1, 2 * math.sqrt(count))


def _scaled(normal: np.ndarray, moved: np.ndarray, scale: Any, bias: Any) -> Error:
    scale, bias = np.abs(scale), np.abs(bias)
    return scale * moved + gamma(8) * (scale * (normal + moved) + bias) + FLUSH


def _layer_norm(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    axes = tuple(range(int(attribute(node, "axis", -1)) % x[0].ndim, x[0].ndim))
    normal, moved = _normalized(x[0], e, axes, attribute(node, "epsilon", 1e-5))
    return _scaled(normal, moved, x[1] if len(x) > 1 else 1.0, x[2] if len(x) > 2 else 0.0)


def _instance_norm(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    normal, moved = _normalized(x[0], e, tuple(range(2, x[0].ndim)), attribute(node, "epsilon", 1e-5))
    shape = (-1,) + (1,) * (x[0].ndim - 2)
    return _scaled(normal, moved, x[1].reshape(shape), x[2].reshape(shape))


def _group_norm(node: onnx.NodeProto, x: Sequence[np.ndarray], y: np.ndarray, e: Error) -> Error:
    groups, shape = int(attribute(node, "num_groups", 1)), x[0].shape
    grouped = (shape[0], groups, -1)
    error = np.broadcast_to(np.asarray(e, np.float64), shape).reshape(grouped)
    found = _normalized(x[0].reshape(grouped), error, (2,), attribute(node, "epsilon", 1e-5))
    normal, moved = (part.reshape(shape) for part in found)
    # One scale a channel; before opset 21, one a group.
    scale, bias = (np.repeat(v, shape[1] // v.size).reshape((-1,) + (1,) * (len(shape) - 2)) for v in x[1:3])
    return _scaled(normal, moved, scale, bias)


def jump(node: onnx.NodeProto, x: np.ndarray, e: Error) -> Error:
    """Steps: nothing, unless the argument is so near a step that two evaluations, 2 e apart, may be on either side of it.

    Then Sign moves by at most 2, a rounding by at most 1 and the error, ThresholdedRelu by its whole argument.
    """
    e = np.broadcast_to(np.asarray(e, np.float64), x.shape)
    op = node.op_type
    if op == "ThresholdedRelu":
        alpha = attribute(node, "alpha", 1.0)
        near = (np.abs(x - alpha) <= 2 * e) & (e > 0)
        return np.where(near, np.abs(x) + e, np.where(x > alpha, e, 0.0))
    if op == "Sign":
        return np.where((np.abs(x) <= 2 * e) & (e > 0), 2.0, 0.0)
    shifted = x - 0.5 if op == "Round" else x
    near = (np.abs(shifted - np.rint(shifted)) <= 2 * e) & (e > 0)
    return np.where(near, 1 + e, 0.0)


def lipschitz(node: onnx.NodeProto) -> float:
    """How much a change of the argument can change the result of a node of ``SMOOTH``."""
    own = SMOOTH[node.op_type]
    return max(own, abs(attribute(node, "alpha", own))) if node.op_type in ("Elu", "HardSigmoid") else own


FUNCTIONS: dict[str, Callable[[onnx.NodeProto, Sequence[np.ndarray], np.ndarray, Error], Error]] = {
    "Exp": _exp, "Log": _log, "Sqrt": _sqrt, "Reciprocal": _reciprocal, "Pow": _pow, "Softmax": _softmax,
    "LogSoftmax": _log_softmax, "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm,
}  # fmt: skip
