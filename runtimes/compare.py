"""Comparisons of arrays, and nothing else: equal bits, floats within a bound, signs, the largest of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..opset import pack_bits, unpack_bits
from .bounds import Error


@dataclass(frozen=True)
class Difference:
    """What two arrays of one shape differ in. ``bits`` is true when the counts are of bits."""

    compared: int
    differing: int
    """Elements that are not the same number."""
    outside: int
    """Elements that differ by more than they may."""
    max_error: float
    """The largest error; of those outside their bounds, when there are any."""
    bound: float
    """The bound of the element with that error; the largest bound when nothing differs."""
    used: float
    """The largest part of its bound that an error takes: more than 1 when one is outside."""

    @property
    def ok(self) -> bool:
        """Whether every element is as it must be."""
        return self.outside == 0

    def __add__(self, other: Difference) -> Difference:
        """Both together, as if compared in one."""
        worse = max(self, other, key=lambda one: (one.outside > 0, one.max_error, one.bound))
        return Difference(
            self.compared + other.compared,
            self.differing + other.differing,
            self.outside + other.outside,
            worse.max_error,
            worse.bound,
            max(self.used, other.used),
        )


def compare_integers(expected: np.ndarray, actual: np.ndarray) -> Difference:
    """Integers must be equal."""
    unequal = expected != actual
    count = int(unequal.sum())
    error = np.abs(expected[unequal].astype(np.float64) - actual[unequal].astype(np.float64)).max() if count else 0.0
    return Difference(expected.size, count, count, float(error), 0.0, np.inf if count else 0.0)


def compare_bits(
    expected: np.ndarray, actual: np.ndarray, channels: int, open_bits: np.ndarray | None = None
) -> Difference:
    """Packed bits, counted one by one: equal, except where ``open_bits`` (packed alike) leaves them open.

    A tail bit of ``actual`` that is not zero counts as differing too: nothing may be there.
    """
    differing = expected ^ actual
    outside = differing if open_bits is None else differing & ~open_bits
    count, beyond = int(np.bitwise_count(differing).sum()), int(np.bitwise_count(outside).sum())
    return Difference(
        expected.size // max(1, expected.shape[-1]) * channels,
        count,
        beyond,
        2.0 if count else 0.0,
        2.0 if not beyond and open_bits is not None and open_bits.any() else 0.0,
        np.inf if beyond else 1.0 if count else 0.0,
    )


def compare_floats(expected: np.ndarray, actual: np.ndarray, bound: Error) -> Difference:
    """Floats must lie within ``bound`` of each other; NaN equals NaN, an infinity only itself."""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    bounds = np.broadcast_to(np.asarray(bound, np.float64), a.shape)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    error = np.where(np.isnan(error), np.inf, error)
    outside = error > bounds
    if not a.size:
        return Difference(0, 0, 0, 0.0, 0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = float(np.where(error > 0, error / bounds, 0.0).max())
    shown = np.where(outside, error, -1.0) if outside.any() else error if error.any() else bounds
    worst = np.unravel_index(int(np.argmax(shown)), a.shape)
    return Difference(a.size, int((~same).sum()), int(outside.sum()), float(error[worst]), float(bounds[worst]), used)


@dataclass(frozen=True)
class Flips:
    """Signs of a packed tensor that are not those of the original tensor."""

    bits: int
    flips: int
    ties: int
    """Bits whose original is exactly zero: neither sign is wrong. They are not counted as flips."""
    max_margin: float
    """Largest distance from zero of an original whose sign flipped."""

    def __add__(self, other: Flips) -> Flips:
        """Both together."""
        return Flips(
            self.bits + other.bits,
            self.flips + other.flips,
            self.ties + other.ties,
            max(self.max_margin, other.max_margin),
        )


NO_FLIPS = Flips(0, 0, 0, 0.0)


def sign_flips(
    packed: np.ndarray, original: np.ndarray, margin: np.ndarray, perm: list[int], channels: int
) -> tuple[Flips, np.ndarray]:
    """Compare packed bits with the signs of ``original``, which is transposed by ``perm`` first.

    ``margin``: how far each original was from changing sign, in the original's layout. The second result is the mask of
    flipped bits, packed like ``packed``.
    """
    signs = np.transpose(original, perm)
    shape = (*packed.shape[:-1], channels)
    bits = unpack_bits(packed, channels)
    values = signs.reshape(shape)
    tie = values == 0
    flipped = (bits != (values > 0)) & ~tie
    count = int(flipped.sum())
    margins = np.transpose(margin, perm).reshape(shape)[flipped]
    worst = float(np.abs(margins).max()) if count else 0.0
    return Flips(bits.size, count, int(tie.sum()), worst), pack_bits(flipped)


def classes(output: np.ndarray) -> np.ndarray | None:
    """The index of the largest of each sample of ``[samples, …]``, or None when a sample is not one row of numbers."""
    rows = output.reshape(len(output), -1)
    is_row = output.ndim >= 2 and output.shape[-1] == rows.shape[1] and rows.shape[1] >= 2
    return rows.argmax(axis=1) if is_row else None
