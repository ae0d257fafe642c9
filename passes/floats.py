"""All float32 numbers in their order, for searches over them: a bisection ends at the very number where something changes."""

from __future__ import annotations

import numpy as np

LARGEST = 0x7F7FFFFF
"""Key of the largest finite float32."""
_INFINITY = LARGEST + 1
_MAGNITUDE = 0x7FFFFFFF
COUNT = 2 * (_INFINITY + 1)
"""How many ``floats`` there are: the place of +∞ is the last."""


def to_keys(values: np.ndarray) -> np.ndarray:
    """float32 → int64 in the same order; both zeros are 0, neighbours differ by 1."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & _MAGNITUDE))


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Inverse of ``to_keys``; 0 gives +0."""
    bits = np.where(keys >= 0, keys, -keys | (1 << 31)).astype(np.uint32)
    return bits.view(np.float32)


def floats(order: np.ndarray) -> np.ndarray:
    """The float32 of each place in their order: 0 for −∞ up to the last for +∞. −0 lies right below +0."""
    keys = order.astype(np.int64) - (_INFINITY + 1)
    return np.copysign(from_keys(keys + (keys < 0)), np.where(keys < 0, np.float32(-1), np.float32(1)))
