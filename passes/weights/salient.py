"""Weights of two levels but for a few salient ones of 8 bits (PB-LLM), known by their values only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .levels import TOLERANCE_ULP, Levels, find_levels

MOST_SALIENT = 0.3
"""Largest part of the weights that may be salient: beyond, a list of them is no smaller than all of them in 8 bits."""
_RANGE = 255
"""Steps of an 8-bit grid."""


@dataclass(frozen=True)
class Salient:
    """``levels``: one bit for each weight of rows of groups; the lists (CSR over channels) replace some of them."""

    levels: Levels
    values: np.ndarray
    """int8 ``[n]``."""
    columns: np.ndarray
    """uint16, or int32 where K needs it, ``[n]``."""
    starts: np.ndarray
    """int32 ``[O + 1]``."""
    scale: np.ndarray
    zero: np.ndarray
    """float32 ``[O]``: a salient weight is (value − zero)·scale."""
    exact: bool


def two_commonest(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two commonest values of each row (lower, higher), and how many weights have neither: ``[R]`` each."""
    count, size = rows.shape
    ordered = np.sort(rows, axis=1)
    begins = np.ones((count, size), bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, count * size))
    row = first // size
    order = np.lexsort((-length, row))
    at = np.searchsorted(row[order], np.arange(count))
    best = order[at]
    more = np.minimum(at + 1, len(order) - 1)
    second = np.where(row[order[more]] == np.arange(count), order[more], best)
    flat = ordered.reshape(-1)
    a, b = flat[first[best]], flat[first[second]]
    rest = size - length[best] - np.where(second == best, 0, length[second])
    return np.minimum(a, b), np.maximum(a, b), rest


def grid(values: np.ndarray, hint: float) -> tuple[np.ndarray, np.float32, float, float] | None:
    """float32 ``values`` as whole multiples of a scale that span 8 bits: (int8, scale, zero, largest error), or None.

    ``hint``: a scale to try first (that of the channel before: a tensor may have one for all).
    """
    exact, top = values.astype(np.float64), float(np.abs(values).max())
    allowed = TOLERANCE_ULP * float(np.spacing(np.float32(top)))
    steps = top / np.arange(1, _RANGE + 1)
    if hint and top / hint <= _RANGE + 0.5:
        steps = np.append(hint, steps)
    near = np.rint(exact[:1024] / steps[:, None])
    fits = np.abs(near * steps[:, None] - exact[:1024]).max(axis=1) <= allowed
    for step in steps[fits]:
        multiples = np.rint(exact / step)
        low, high = multiples.min(), multiples.max()
        if high - low > _RANGE or np.abs(multiples * step - exact).max() > allowed:
            continue
        zero = 0.0 if low >= -128 and high <= 127 else -128 - low
        scales = [np.float32(step)]
        for toward in (-np.inf, np.inf):
            scale = np.float32(step)
            for _ in range(3):
                scale = np.nextafter(scale, np.float32(toward))
                scales.append(scale)
        errors = [np.abs((multiples.astype(np.float32) * s).astype(np.float64) - exact).max() for s in scales]
        best = int(np.argmin(errors))
        if errors[best] <= allowed:
            return (multiples + zero).astype(np.int8), scales[best], zero, float(errors[best])
    return None


def find_salient(rows: np.ndarray, size: int) -> Salient | str | None:
    """See float32 ``rows [O, K]`` as two levels for each ``size`` neighbours but for salient weights.

    None: nothing of the kind; a phrase: it looks like it, but the salient weights are not on a grid of 8 bits.
    """
    channels, k = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -k % size)), mode="edge")
    groups = padded.reshape(-1, size)
    if not np.isfinite(rows).all() or size < 8:
        return None
    low, high, rest = two_commonest(groups)
    if (2 * rest > size).any() or not 0 < rest.sum() <= MOST_SALIENT * groups.size:
        return None
    outside = (groups != low[:, None]) & (groups != high[:, None])
    levels = find_levels(np.where(outside, low[:, None], groups), 1)
    if levels is None:
        return None
    salient = outside.reshape(channels, -1)[:, :k]
    starts = np.append(0, np.cumsum(salient.sum(axis=1))).astype(np.int32)
    columns = np.nonzero(salient)[1]
    listed = rows[salient]
    values = np.zeros(len(listed), np.int8)
    scale, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    worst, hint = 0.0, 0.0
    for o in range(channels):
        part = slice(starts[o], starts[o + 1])
        if part.start == part.stop:
            continue
        found = grid(listed[part], hint)
        if found is None:
            return (
                f"its weights have two levels but for {len(listed) / rows.size:.1%} of them, and those of output channel {o} "
                "are not on a grid of 8 bits"
            )
        values[part], scale[o], zero[o], error = found
        hint, worst = float(scale[o]), max(worst, error)
    kind = np.uint16 if k <= 65535 else np.int32
    return Salient(levels, values, columns.astype(kind), starts, scale, zero, levels.exact and not worst)
