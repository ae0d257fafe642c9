"""Few evenly spaced levels: the codes and scales behind weights that are known by their values only.

A quantizer leaves in each group of weights a few values ``(code − zero)·scale`` or ``code·scale + offset``, with codes of 1 to
4 bits. Which scale it was must be found out: the spacing gives it but for some ulp, and of the float32 numbers near it one
gives all levels back bit for bit, mostly. Where none does, the nearest is taken if it misses by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TOLERANCE_ULP = 4
"""How far a level may be from the one that its code stands for, in float32 ulp of the group's largest magnitude."""
MOST_BITS = 4
_NEAR = 3
"""Float32 numbers that are tried on each side of an estimate."""


@dataclass(frozen=True)
class Levels:
    """Rows of weights as codes: weight = (code − zero)·scale + offset, each operation rounded to float32."""

    codes: np.ndarray
    """uint8 ``[R, n]``."""
    scale: np.ndarray
    zero: np.ndarray
    offset: np.ndarray
    """float32 ``[R]`` each."""
    bits: int
    exact: bool
    """Whether every weight comes back bit for bit."""


def decode(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The weights, rounded as the operators round them."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (codes.astype(np.float32) - zero[:, None]) * scale[:, None] + offset[:, None]


def ulp(rows: np.ndarray) -> np.ndarray:
    """float64 ``[R]``: the spacing of float32 numbers at each row's largest magnitude."""
    return np.spacing(np.abs(rows).max(axis=1)).astype(np.float64)


def spacing(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Spacing (float64 ``[R]``, 0 for a row of one level) and codes, or None where the levels do not lie on so few steps.

    ``rows``: float32 ``[R, n]``; ``most``: largest code. The spacing is the smallest gap between two levels, or a part of it.
    """
    ordered = np.sort(rows, axis=1).astype(np.float64)
    gaps = np.diff(ordered, axis=1)
    near = 2 * TOLERANCE_ULP * ulp(rows)
    real = gaps > near[:, None]
    if (real.sum(axis=1) > most).any():
        return None
    low, high = ordered[:, 0], ordered[:, -1]
    gap = np.where(real, gaps, np.inf).min(axis=1, initial=np.inf)
    flat = ~np.isfinite(gap)
    gap = np.where(flat, 1.0, gap)
    found = np.zeros(len(rows))
    open_rows = ~flat
    for part in range(1, most + 1):
        count = np.rint((high - low) / (gap / part))
        fits = open_rows & (count <= most) & (count >= 1)
        if not fits.any():
            if (open_rows & (count > most)).any():
                return None
            continue
        step = (high - low)[fits] / count[fits]
        steps = (rows[fits].astype(np.float64) - low[fits, None]) / step[:, None]
        off = np.abs(steps - np.rint(steps)).max(axis=1) * step
        good = np.flatnonzero(fits)[off <= near[fits]]
        found[good] = ((high - low) / np.maximum(count, 1))[good]
        open_rows[good] = False
        if not open_rows.any():
            break
    if open_rows.any():
        return None
    codes = np.where(flat[:, None], 0, np.rint((rows - low[:, None]) / np.where(flat, 1.0, found)[:, None]))
    return np.where(flat, 0.0, found), codes.astype(np.uint8)


def _beside(value: np.ndarray, steps: int) -> np.ndarray:
    """float32 ``value`` moved by ``steps`` float32 numbers."""
    moved = value.astype(np.float32)
    toward = np.float32(np.inf if steps > 0 else -np.inf)
    for _ in range(abs(steps)):
        moved = np.nextafter(moved, toward)
    return moved


def _near(value: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    yield value.astype(np.float32)
    for i in range(1, steps + 1):
        yield _beside(value, i)
        yield _beside(value, -i)


def _candidates(
    rows: np.ndarray, step: np.ndarray, codes: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(form, scale, zero, offset) that may give ``rows`` back, the forms that need the fewest numbers first."""
    low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
    nothing = np.zeros(len(rows), np.float32)
    flat = step == 0
    safe = np.where(flat, 1.0, step)
    # A row of one level v is code 0 of (0 − (−1))·v.
    half = np.where(flat, -1.0, np.rint(-2 * low / safe) / 2)
    top = codes.max(axis=1)
    up, down = top - half, -half
    far = np.where(np.abs(up) >= np.abs(down), high / np.where(up == 0, 1, up), low / np.where(down == 0, 1, down))
    for scale in _near(np.where(flat, low, far), _NEAR):
        yield "centred", scale, half.astype(np.float32), nothing
    for scale in _near(step, _NEAR):
        yield "offset", np.where(flat, np.float32(0), scale), nothing, low.astype(np.float32)
    if top.max(initial=0) <= 1:
        for middle in _near((low + high) / 2, 2):
            for scale in _near(step / 2, 2):
                yield "mean", 2 * scale, np.full_like(nothing, 0.5), middle
    for zero in _near(np.where(flat, -1.0, -low / safe), 1):
        for scale in _near(np.where(flat, low, step), _NEAR):
            yield "zero", scale, zero, nothing


def find_levels(rows: np.ndarray, bits: int = MOST_BITS) -> Levels | None:
    """See float32 ``rows [R, n]`` as codes of at most ``bits`` bits on evenly spaced levels of each row, or None.

    One form is kept for all rows where one gives all of them back; else each row takes its best.
    """
    if not np.isfinite(rows).all():
        return None
    seen = spacing(rows, 2**bits - 1)
    if seen is None:
        return None
    step, codes = seen
    best: dict[str, list[np.ndarray]] = {}
    for form, *tables in _candidates(rows, step, codes):
        error = np.abs(decode(codes, *tables).astype(np.float64) - rows).max(axis=1)
        kept = best.setdefault(form, [np.full(len(rows), np.inf), *(np.zeros(len(rows), np.float32) for _ in range(3))])
        better = error < kept[0]
        for old, new in zip(kept, (error, *tables), strict=True):
            old[better] = new[better]
    exact = [kept for kept in best.values() if not kept[0].any()]
    chosen = exact[0] if exact else None
    if chosen is None:
        errors = np.stack([kept[0] for kept in best.values()])
        which = errors.argmin(axis=0)
        chosen = [np.choose(which, [kept[i] for kept in best.values()]) for i in range(4)]
    if (chosen[0] > TOLERANCE_ULP * ulp(rows)).any():
        return None
    needed = max(1, int(codes.max(initial=0)).bit_length())
    return Levels(codes, chosen[1], chosen[2], chosen[3], needed, not chosen[0].any())


@dataclass(frozen=True)
class Powers:
    """Rows of weights as ±2^exponent · scale. ``codes``: the exponent, and above it a sign bit (1 is −)."""

    codes: np.ndarray
    """uint8 ``[R, n]``."""
    scale: np.ndarray
    """float32 ``[R]``."""
    bits: int
    exact: bool


def find_powers(rows: np.ndarray) -> Powers | None:
    """See float32 ``rows [R, n]`` as signed powers of two, from 2^0 to at most 2^7, times a scale a row; or None.

    No weight may be zero. The scale is the row's smallest magnitude: then 2^e times it is exact.
    """
    magnitude = np.abs(rows)
    if not np.isfinite(rows).all() or (magnitude == 0).any():
        return None
    scale = magnitude.min(axis=1)
    exponent = np.rint(np.log2(magnitude.astype(np.float64) / scale[:, None]))
    most = int(exponent.max(initial=0))
    if most < 1 or most > 7:
        return None
    bits = most.bit_length()
    given = np.ldexp(scale[:, None], exponent.astype(np.int32))
    error = np.abs(given.astype(np.float64) - magnitude)
    if (error > TOLERANCE_ULP * np.spacing(magnitude)).any():
        return None
    codes = exponent.astype(np.uint8) | ((rows < 0).astype(np.uint8) << np.uint8(bits))
    return Powers(codes, scale, bits + 1, not error.any())
