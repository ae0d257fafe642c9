"""Which operator on codes a constant float32 weight fits, and the constants that it then needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..opset._codes import store_codes
from .levels import Levels, find_levels, find_powers

GROUPS = (128, 64, 32)
"""Group sizes along K that are tried beside one group a channel."""
_SAMPLE = 4
"""Output channels that are looked at first: ordinary float weights end there."""


@dataclass(frozen=True)
class Encoded:
    """A weight as codes. ``family``: ``LowBit`` or ``Shift``, to which Gemm or Conv is appended.

    ``constants``: the operator's inputs from ``w`` on; ``attrs``: its attributes beside those of the layer.
    """

    family: str
    constants: dict[str, np.ndarray]
    attrs: dict[str, Any]
    text: str
    """What the weights are, for reports."""

    @property
    def bytes(self) -> int:
        """Bytes of the constants."""
        return sum(value.nbytes for value in self.constants.values())


def encode(rows: np.ndarray, grouped: bool = True) -> Encoded | None:
    """The smallest encoding of float32 weights ``rows [O, K]``, or None when none fits or halves their bytes.

    ``grouped``: whether groups smaller than a channel may be tried.
    """
    found = [item for item in _encodings(rows, grouped) if 2 * item.bytes <= rows.nbytes]
    return min(found, key=lambda item: item.bytes, default=None)


def _encodings(rows: np.ndarray, grouped: bool) -> Iterator[Encoded]:
    channels, k = rows.shape
    powers = find_powers(rows[:_SAMPLE]) and find_powers(rows)
    if powers:
        constants = {"w": store_codes(powers.codes, powers.bits), "scale": powers.scale}
        text = f"powers of two ±2^0…2^{int((powers.codes % (1 << (powers.bits - 1))).max())} in {powers.bits}-bit codes"
        yield Encoded("Shift", constants, {}, text + _nearly(powers.exact))
    for size in (k, *(size for size in GROUPS if size < k and grouped)):
        levels = _in_groups(rows[:_SAMPLE], size) and _in_groups(rows, size)
        if not levels:
            continue
        groups = -(-k // size)
        tables = [value.reshape(channels, groups) for value in (levels.scale, levels.zero, levels.offset)]
        zero, offset = (value[:1, :1] if (value == value[0, 0]).all() else value for value in tables[1:])
        codes = levels.codes.reshape(channels, -1)[:, :k]
        constants = {"w": store_codes(codes, levels.bits), "scale": tables[0], "zero": zero, "offset": offset}
        where = "a scale a channel" if groups == 1 else f"a scale for each {size} weights"
        text = f"{levels.bits}-bit weights with {where}{_nearly(levels.exact)}"
        yield Encoded("LowBit", constants, {"group_size": size}, text)


def _nearly(exact: bool) -> str:
    return ", equal bit for bit" if exact else ", equal within 4 ulp of the largest of a group"


def _in_groups(rows: np.ndarray, size: int) -> Levels | None:
    """``find_levels`` with ``size`` neighbours of a channel as a row; the last group is filled up with its last weight."""
    k = rows.shape[1]
    if size == k:
        return find_levels(rows)
    padded = np.pad(rows, ((0, 0), (0, -k % size)), mode="edge")
    return find_levels(padded.reshape(-1, size))
