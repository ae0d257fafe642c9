"""Which operator on codes a constant float32 weight fits, and the constants that it then needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...opset._codes import store_codes
from .levels import Levels, find_levels, find_powers
from .salient import Salient, find_salient

GROUPS = (128, 64, 32)
"""Group sizes along K that are tried beside one group a channel."""
_SAMPLE = 4
"""Output channels that are looked at first: ordinary float weights end there."""


@dataclass(frozen=True)
class Encoded:
    """A weight as codes. ``family``: ``LowBit``, ``Shift`` or ``SparseResidual``, to which Gemm or Conv is appended.

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


def encode(rows: np.ndarray, grouped: bool = True) -> Encoded | str | None:
    """The smallest encoding of float32 weights ``rows [O, K]``, or None when none fits or halves their bytes.

    ``grouped``: whether groups smaller than a channel, and lists of salient weights, may be tried. A phrase says why weights
    that look like one of few levels are not.
    """
    made = list(_encodings(rows, grouped))
    found = [item for item in made if isinstance(item, Encoded) and 2 * item.bytes <= rows.nbytes]
    reason = next((item for item in made if isinstance(item, str)), None)
    return min(found, key=lambda item: item.bytes) if found else reason


def _encodings(rows: np.ndarray, grouped: bool) -> Iterator[Encoded | str]:
    channels, k = rows.shape
    powers = find_powers(rows[:_SAMPLE]) and find_powers(rows)
    if powers:
        constants = {"w": store_codes(powers.codes, powers.bits), "scale": powers.scale}
        text = f"powers of two ±2^0…2^{int((powers.codes % (1 << (powers.bits - 1))).max())} in {powers.bits}-bit codes"
        yield Encoded("Shift", constants, {}, text + _nearly(powers.exact))
    for size in (k, *(size for size in GROUPS if size < k and grouped)):
        where = "a scale a channel" if size == k else f"a scale for each {size} weights"
        levels = _in_groups(rows[:_SAMPLE], size) and _in_groups(rows, size)
        if levels:
            text = f"{levels.bits}-bit weights with {where}{_nearly(levels.exact)}"
            yield Encoded("LowBit", _constants(levels, channels, k), {"group_size": size}, text)
            return  # smaller groups have more scales
        if grouped and (found := find_salient(rows[:_SAMPLE], size)):
            found = find_salient(rows, size) if isinstance(found, Salient) else found
            if isinstance(found, Salient):
                constants = _constants(found.levels, channels, k)
                constants |= {
                    "values": found.values, "columns": found.columns, "starts": found.starts, "value_scale": found.scale,
                    "value_zero": found.zero,
                }  # fmt: skip
                share = len(found.values) / rows.size
                text = f"1-bit weights with {where}, {share:.1%} of them replaced by a list of 8-bit ones"
                yield Encoded("SparseResidual", constants, {"group_size": size}, text + _nearly(found.exact))
                return
            if found:
                yield found


def _constants(levels: Levels, channels: int, k: int) -> dict[str, np.ndarray]:
    """The operator's inputs; a zero (or offset) that all groups share is stored once."""
    tables = [value.reshape(channels, -1) for value in (levels.scale, levels.zero, levels.offset)]
    zero, offset = (value[:1, :1] if (value == value[0, 0]).all() else value for value in tables[1:])
    codes = levels.codes.reshape(channels, -1)[:, :k]
    return {"w": store_codes(codes, levels.bits), "scale": tables[0], "zero": zero, "offset": offset}


def _nearly(exact: bool) -> str:
    return ", equal bit for bit" if exact else ", equal within 4 ulp of the largest of a group"


def _in_groups(rows: np.ndarray, size: int) -> Levels | None:
    """``find_levels`` with ``size`` neighbours of a channel as a row; the last group is filled up with its last weight."""
    k = rows.shape[1]
    if size == k:
        return find_levels(rows)
    padded = np.pad(rows, ((0, 0), (0, -k % size)), mode="edge")
    return find_levels(padded.reshape(-1, size))
