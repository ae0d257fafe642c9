"""The pure arithmetic of few-bit numbers: levels as integers times a scale, and integers as bit planes.

Scales are found by value: a number belongs to a scale s and an integer q when it is within ``TOLERANCE_ULP`` float32 ulp of
s·q. Exporters fold the scale into weights with a rounding or two; random floats do not fit a scale by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...opset.levels import MAX_PLANES

TOLERANCE_ULP = 4
"""How far a number may be from a scale times an integer, in float32 ulp of the number."""
_MOST = 128
"""Largest integer that a level stands for: 8 bits with a sign."""


@dataclass(frozen=True)
class Coding:
    """Integers as bit planes: ``q = Σ coeffs[i]·bit_i + offset``; with ``bipolar`` a bit of 0 counts −1."""

    coeffs: tuple[int, ...]
    offset: int = 0
    bipolar: bool = False


def ulp(values: np.ndarray) -> np.ndarray:
    """Distance of float32 neighbours at these magnitudes (float64)."""
    return np.spacing(np.abs(values).astype(np.float32)).astype(np.float64)


def common_scale(values: np.ndarray, most: int = _MOST) -> tuple[float, np.ndarray] | None:
    """The largest scale s of which all ``values`` (float32 [K]) are integer multiples q, ``|q| <= most``; and q (int64).

    Zeros fit every scale; without any other number s is 1. None when there is no such scale.
    """
    exact = values.astype(np.float64)
    levels = np.unique(np.abs(exact[exact != 0]))
    if not len(levels):
        return 1.0, np.zeros(values.shape, np.int64)
    # Numbers that differ by an ulp or two count as one level each, so there are a few for each integer.
    if not np.isfinite(levels).all() or levels[-1] > levels[0] * (most + 1) or len(levels) > 8 * most:
        return None
    tolerance = TOLERANCE_ULP * ulp(levels)
    for part in range(1, most + 1):
        scale = levels[0] / part
        multiple = np.rint(levels / scale)
        if multiple[-1] > most:
            return None
        if (np.abs(levels - scale * multiple) <= tolerance).all():
            scale = _refined(levels, multiple, scale)
            return scale, np.rint(exact / scale).astype(np.int64)
    return None


def _refined(levels: np.ndarray, multiple: np.ndarray, scale: float) -> float:
    """``scale``, or a float32 near it that fits as well: one of which a power-of-two multiple is there, or the best fit."""
    powers = (multiple.astype(np.int64) & (multiple.astype(np.int64) - 1)) == 0
    candidates = list(levels[powers] / multiple[powers])[:1]
    candidates.append((levels * multiple).sum() / (multiple * multiple).sum())
    for candidate in candidates:
        found = float(np.float32(candidate))
        if (np.abs(levels - found * multiple) <= TOLERANCE_ULP * ulp(levels)).all():
            return found
    return scale


def encode_levels(levels: np.ndarray) -> tuple[Coding, list[int]] | str:
    """Bit planes for the rising integers ``levels`` of a quantizer, and each level's code; or why there are none.

    Preferred is a coding without an offset, which needs no correction at zero padding, where it takes no more planes.
    """
    low, high = int(levels[0]), int(levels[-1])
    gaps = np.diff(levels)
    step = int(np.gcd.reduce(gaps)) if len(gaps) else 1
    plain = Coding(tuple(step << i for i in range(_bits((high - low) // step))), low)
    plain_codes = [int(value - low) // step for value in levels]
    found = plain, plain_codes
    if low >= 0 and low % step == 0:
        own = Coding(tuple(step << i for i in range(_bits(high // step))))
        if len(own.coeffs) <= len(plain.coeffs):
            found = own, [int(value) // step for value in levels]
    elif low < 0 and low % step == 0:
        own = _twos_complement(low // step, high // step, step)
        if len(own.coeffs) <= len(plain.coeffs):
            found = own, [int(value) // step % (1 << len(own.coeffs)) for value in levels]
    planes = len(found[0].coeffs)
    return (
        found if planes <= MAX_PLANES else f"its levels from {low} to {high} need {planes} bits, more than {MAX_PLANES}"
    )


def encode_weights(weights: np.ndarray) -> tuple[Coding, np.ndarray] | str:
    """Bit planes bool ``[m, ...]`` for integer weights: bases of ±1 where all are odd, else (two's complement) bits."""
    low, high = int(weights.min()), int(weights.max())
    if (weights % 2 != 0).all():
        planes = _bits((max(abs(low), abs(high)) + 1) // 2 * 2 - 1)
        coding = Coding(tuple(1 << i for i in range(planes)), bipolar=True)
        codes = (weights + (1 << planes) - 1) // 2
    elif low >= 0:
        coding = Coding(tuple(1 << i for i in range(_bits(high))))
        codes = weights
    else:
        coding = _twos_complement(low, high, 1)
        codes = weights % (1 << len(coding.coeffs))
    planes = len(coding.coeffs)
    if planes > MAX_PLANES:
        return f"its integer weights from {low} to {high} need {planes} bits, more than {MAX_PLANES}"
    return coding, np.stack([(codes >> i) & 1 == 1 for i in range(planes)])


def _bits(largest: int) -> int:
    return max(1, int(largest).bit_length())


def _twos_complement(low: int, high: int, step: int) -> Coding:
    planes = max(_bits(high) if high > 0 else 0, _bits(-low - 1) if low < -1 else 0) + 1
    return Coding((*(step << i for i in range(planes - 1)), -(step << (planes - 1))))


@dataclass(frozen=True)
class Term:
    """A part of a weight: integers ``[O, ...]`` (int64) times a scale an output channel (float64 ``[O]``)."""

    integers: np.ndarray
    scale: np.ndarray


def weight_terms(rows: np.ndarray) -> list[Term] | str:
    """A weight ``[O, K]`` (float32) as a sum of integers times scales an output channel; or why it is none.

    One term where each channel's weights are integer multiples of a scale, up to 8 bits. Two terms of ±1, for
    ``σ1·b1 + σ2·b2`` with any real σ, where each channel has at most two magnitudes: σ1 + σ2 and σ1 − σ2.
    """
    found = [common_scale(row) for row in rows]
    if all(item is not None for item in found):
        integers = np.stack([item[1] for item in found if item is not None])
        return [Term(integers, np.array([item[0] for item in found if item is not None]))]
    bases = [_two_bases(row) for row in rows]
    if all(item is not None for item in bases):
        pairs = [item for item in bases if item is not None]
        return [
            Term(np.stack([pair[part][0] for pair in pairs]), np.array([pair[part][1] for pair in pairs]))
            for part in (0, 1)
        ]
    channel = next(i for i, item in enumerate(found) if item is None)
    return (
        f"weights are not of few bits: output channel {channel} has {len(np.unique(rows[channel]))} levels that are no "
        f"small integers times a scale"
    )


def _two_bases(row: np.ndarray) -> tuple[tuple[np.ndarray, float], tuple[np.ndarray, float]] | None:
    """``σ1·b1 + σ2·b2`` of a channel: ((b1, σ1), (b2, σ2)); None when it has more than two magnitudes."""
    magnitude = np.abs(row.astype(np.float64))
    large = magnitude >= (magnitude.max() + magnitude.min()) / 2
    means = []
    for part in (magnitude[large], magnitude[~large]):
        if len(part) and part.max() - part.min() > TOLERANCE_ULP * ulp(magnitude.max()):
            return None
        means.append(float(np.median(part)) if len(part) else None)
    high = means[0] or 0.0
    low = high if means[1] is None else means[1]
    first = np.where(row < 0, -1, 1)
    second = np.where(large, first, -first)
    return (first, (high + low) / 2), (second, (high - low) / 2)
