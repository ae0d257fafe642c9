"""All float32 numbers in their order, for searches over them."""

from __future__ import annotations

import numpy as np

_LOWEST = -0x7F800001
"""The key of −∞: keys of floats from +0 on are their bits, below they are minus their magnitude's bits minus 1."""
COUNT = 2 * 0x7F800001
"""How many there are: the place of +∞ is the last."""


def floats(order: np.ndarray) -> np.ndarray:
    """The float32 of each place in their order: 0 for −∞ up to the last for +∞. −0 lies right below +0."""
    keys = order.astype(np.int64) + _LOWEST
    bits = np.where(keys >= 0, keys, np.int64(-(2**31)) - keys - 1)
    return bits.astype(np.int64).astype(np.uint32).view(np.float32)
