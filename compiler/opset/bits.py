"""Bit packing in NumPy: the one definition of how bits lie in bytes.

Element ``c`` of the packed axis is bit ``c % 8`` (0 = least significant) of byte ``c // 8``. A bit of 1 is the value
+1, a bit of 0 is −1. Bits past the last element are zero.
"""

from __future__ import annotations

import numpy as np


def packed_bytes(count: int) -> int:
    """Bytes that ``count`` bits take."""
    return (count + 7) // 8


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Pack booleans (or 0/1) ``[..., C]`` into ``uint8 [..., ceil(C/8)]`` along the last axis."""
    return np.packbits(np.asarray(bits, dtype=bool), axis=-1, bitorder="little")


def unpack_bits(packed: np.ndarray, count: int) -> np.ndarray:
    """Inverse of ``pack_bits``: ``uint8 [..., ceil(count/8)]`` → ``bool [..., count]``."""
    return np.unpackbits(packed, axis=-1, count=count, bitorder="little").astype(bool)


def to_signs(packed: np.ndarray, count: int) -> np.ndarray:
    """Packed bits → ``int32 [..., count]`` of −1 and +1."""
    return unpack_bits(packed, count).astype(np.int32) * 2 - 1
