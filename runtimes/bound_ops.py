"""Error bounds of the operators of ``ai.xnorc``. Integer operators are exact; a sign near its threshold is open.

An operator without a rule here gets the bound zero: equality is required.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..opset import REGISTRY, TensorType, pack_bits, unpack_bits
from ..opset._codes import convolution
from ..opset._windows import convolve
from ..opset.levels import level_index
from .bound_rules import FLUSH, NOTHING, Error, gamma


@dataclass(frozen=True)
class Use:
    """One use of an operator on one sample. ``errors`` and ``masks``: of the inputs, in order."""

    op: str
    attrs: Mapping[str, Any]
    inputs: Sequence[np.ndarray]
    output: np.ndarray
    errors: Sequence[Error]
    masks: Sequence[np.ndarray | None]
    """Which bits of a packed input rounding leaves open, packed like it; None: none."""


@dataclass(frozen=True)
class Bound:
    """``error`` of a float output; ``mask``: the bits of a packed output that rounding leaves open, packed like it."""

    error: Error | None = None
    mask: np.ndarray | None = None


def _pack(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    x, perm = use.inputs[0], use.attrs["perm"]
    margin = np.abs(x.astype(np.float64).transpose(perm) - use.inputs[1])
    moved = np.broadcast_to(use.errors[0], x.shape).transpose(perm)
    return Bound(mask=pack_bits(margin <= 2 * moved))


def _binarize(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    return Bound(error=np.where(np.abs(use.inputs[0]) <= 2 * np.asarray(use.errors[0]), 1.0, 0.0))


def _levels(use: Use, x: np.ndarray, error: Error) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest level of what lies within ``2 error`` of ``x``, whose channels are last."""
    threshold, flip = use.inputs[1].astype(np.float64), use.inputs[2]
    ends = [level_index(x + shift * np.asarray(error), threshold, flip) for shift in (-2, 2)]
    return np.minimum(*ends), np.maximum(*ends)


def _quantize(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    axis, value = use.attrs["axis"], use.inputs[3].astype(np.float64)
    x = np.moveaxis(use.inputs[0].astype(np.float64), axis, -1)
    error = np.moveaxis(np.broadcast_to(use.errors[0], use.inputs[0].shape), axis, -1)
    low, high = _levels(use, x, error)
    own = level_index(x, use.inputs[1].astype(np.float64), use.inputs[2])
    moved = np.maximum(np.abs(value[high] - value[own]), np.abs(value[low] - value[own]))
    return Bound(error=np.moveaxis(moved, -1, axis))


def _pack_levels(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    perm = use.attrs["perm"]
    x = use.inputs[0].astype(np.float64).transpose(perm)
    low, high = _levels(use, x, np.broadcast_to(use.errors[0], use.inputs[0].shape).transpose(perm))
    codes = np.asarray(use.attrs["codes"], np.int64)
    own = codes[level_index(x, use.inputs[1].astype(np.float64), use.inputs[2])]
    moved = np.zeros_like(own)
    for step in range(int((high - low).max(initial=0)) + 1):
        moved |= codes[np.minimum(low + step, high)] ^ own
    return Bound(mask=np.stack([pack_bits((moved >> plane) & 1) for plane in range(use.attrs["planes"])]))


def _max_pool(use: Use) -> Bound:
    if use.masks[0] is None:
        return Bound()
    flip = np.zeros_like(use.inputs[1])
    return Bound(mask=REGISTRY[use.op].reference([use.masks[0], flip], use.attrs))


def _weighted(use: Use) -> Bound:
    """A float32 sum of k products with decoded weights: γ(k + 2)·Σ|x||w|, and the error of x carried through.

    Decoding is equal everywhere, but for subnormal weights where they are flushed to zero: each moves by at most ``FLUSH``.
    """
    weights, x = np.abs(REGISTRY[use.op].weights(use.inputs, use.attrs)).astype(np.float64), np.abs(use.inputs[0])  # type: ignore[attr-defined]

    def total(of: np.ndarray, by: np.ndarray) -> np.ndarray:
        if "kernel_shape" in use.attrs:  # its result is rounded to float32: never downwards
            return convolution(of, by, use.attrs).astype(np.float64) * (1 + 2.0**-22)
        return of.astype(np.float64) @ by.T

    rounding = gamma(use.attrs["k"] + 2)
    error = rounding * total(x, weights) + FLUSH * (1 + total(x, np.ones_like(weights[:1])).max(initial=0))
    if np.any(use.errors[0]):
        moved = np.broadcast_to(np.asarray(use.errors[0], np.float64), x.shape)
        error = error + (1 + rounding) * total(moved, weights)
    return Bound(error=error)


def _bit_float(use: Use) -> Bound:
    """A float32 sum of k weights: γ(k + 2)·Σ|b||w|, and of the bits that are open what their change adds."""
    weights, clear = np.abs(use.inputs[1].astype(np.float64)), use.attrs["clear"]
    bits = unpack_bits(use.inputs[0], use.attrs["k"])
    error = gamma(use.attrs["k"] + 2) * (np.where(bits, 1.0, abs(clear)) @ weights) + FLUSH
    if use.masks[0] is not None:
        error = error + (1 - clear) * (unpack_bits(use.masks[0], use.attrs["k"]).astype(np.float64) @ weights) * (
            1 + 2.0**-20
        )
    return Bound(error=error)


def _quantize_rows(use: Use) -> Bound:
    """Integers that rounding leaves open: the value before it moves by less than ``d``, in either of two evaluations."""
    if not any(np.any(error) for error in use.errors[:2]):
        return Bound()
    x, scale = (value.astype(np.float64) for value in use.inputs)
    ex, es = (np.asarray(error, np.float64) for error in use.errors[:2])
    low, high = use.attrs["low"], use.attrs["high"]
    with np.errstate(all="ignore"):
        if use.attrs["divide"]:
            middle, below = x / scale, np.maximum(np.abs(scale) - es, FLUSH)
            moved = (ex + np.abs(middle) * es) / below
        else:
            middle, moved = x * scale, ex * np.abs(scale) + np.abs(x) * es + ex * es
        d = np.nan_to_num(2 * moved + gamma(4) * np.abs(middle), nan=np.inf)
        ends = [np.clip(np.rint(middle + side * d), low, high) for side in (-1, 1)]
    own = use.output.astype(np.float64)
    return Bound(error=np.maximum(np.abs(ends[0] - own), np.abs(ends[1] - own)))


def _quantize_map(use: Use) -> Bound:
    """As for rows, with an exact factor, behind a transposition."""
    if not np.any(use.errors[0]):
        return Bound()
    perm, factor = use.attrs["perm"], float(use.inputs[1].reshape(()))
    x = use.inputs[0].astype(np.float64).transpose(perm)
    moved = np.broadcast_to(np.asarray(use.errors[0], np.float64), use.inputs[0].shape).transpose(perm) * abs(factor)
    d = np.minimum(2 * moved + gamma(4) * np.abs(x * factor), NOTHING)
    own = use.output.astype(np.float64)
    ends = [np.clip(np.rint(x * factor + side * d), use.attrs["low"], use.attrs["high"]) for side in (-1, 1)]
    return Bound(error=np.maximum(np.abs(ends[0] - own), np.abs(ends[1] - own)))


def _integer_product(use: Use) -> Bound:
    """Integers: exact, unless rounding left the activations open."""
    if not np.any(use.errors[0]):
        return Bound()
    moved = np.broadcast_to(np.asarray(use.errors[0], np.float64), use.inputs[0].shape)
    weights = np.abs(use.inputs[1].astype(np.float64))
    if use.op == "IntegerGemm":
        return Bound(error=moved @ weights.T)
    return Bound(error=convolve(moved, weights, TensorType.of(use.output), use.attrs, np.float64))


def _ternary(use: Use) -> Bound:
    """Integers: exact, unless rounding left the activations open."""
    if not np.any(use.errors[0]):
        return Bound()
    moved = np.broadcast_to(np.asarray(use.errors[0], np.float64), use.inputs[0].shape)
    weights = REGISTRY[use.op].ternary(use.inputs, use.attrs)  # type: ignore[attr-defined]
    return Bound(error=moved @ np.abs(weights).T.astype(np.float64))


def _sign_sum(use: Use) -> Bound:
    """A float32 sum of k terms ±b in any order (every product is exact), and what an open bit may change: 2|b|."""
    b = use.inputs[1]
    terms = b.shape[-2]
    magnitude = np.abs(b.astype(np.float64)) + use.errors[1]
    error = gamma(terms + 2) * magnitude.sum(-2, keepdims=True) + np.sum(
        np.broadcast_to(np.asarray(use.errors[1], np.float64), b.shape), -2, keepdims=True
    )
    mask = use.masks[0]
    if mask is not None and mask.any():
        error = error + 2 * np.matmul(unpack_bits(mask, terms).astype(np.float64), magnitude)
    return Bound(error=np.broadcast_to(error, use.output.shape) + FLUSH)


def _lookup_sum(use: Use) -> Bound:
    """A float32 sum of M entries: γ(M)·Σ|entry|, and the errors of those that are chosen."""
    tables, codes = np.abs(use.inputs[0].astype(np.float64)), use.inputs[1]
    moved = np.broadcast_to(np.asarray(use.errors[0], np.float64), tables.shape)
    groups = np.arange(codes.shape[1])
    chosen, errors = (table[:, groups, codes].sum(-1) for table in (tables, moved))
    rounding = gamma(len(groups))
    return Bound(error=rounding * chosen + (1 + rounding) * errors + FLUSH)


_WEIGHTED = {"LowBitGemm", "LowBitConv", "ShiftGemm", "ShiftConv", "SparseResidualGemm"}
SUMS = _WEIGHTED | {"BitFloatGemm"}
"""Operators whose result is a float32 sum of ``k`` products, in any order."""

RULES: dict[str, Callable[[Use], Bound]] = {
    "Pack": _pack, "Binarize": _binarize, "BinaryMaxPool": _max_pool, **dict.fromkeys(_WEIGHTED, _weighted),
    "BitFloatGemm": _bit_float, "SignMatMul": _sign_sum, "LookupSum": _lookup_sum,
    "QuantizeRows": _quantize_rows, "TernaryGemm": _ternary,
    "Quantize": _quantize, "PackLevels": _pack_levels,
    "QuantizeMap": _quantize_map, "IntegerConv": _integer_product, "IntegerGemm": _integer_product,
}  # fmt: skip
"""Operator → its rule."""
