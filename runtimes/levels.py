"""Level tensors in a validation: which level each element has in the original and in the packed model, and how near
rounding was to giving it another one.

A quantizer is a step function (``Levels``). A level that differs is explained where the value before the quantizer lies
within the error bound of a threshold between the two levels, as a sign is explained by a value near zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..opset import pack_bits, unpack_bits
from .bounds import Error
from .compare import Flips

Move = tuple[str, tuple[int, ...]]
"""``reshape`` to a shape, ``transpose`` by a permutation, or ``crop`` by begins and ends."""


def moves_of(entry: Mapping[str, Any]) -> tuple[Move, ...]:
    """From the packed model's metadata."""
    return tuple((str(kind), tuple(int(size) for size in sizes)) for kind, sizes in entry.get("moves", ()))


def lie(elements: np.ndarray, moves: Sequence[Move]) -> np.ndarray:
    """Something of each element of a tensor of the original, as it lies where the packed model takes signs or levels."""
    for kind, sizes in moves:
        if kind == "reshape":
            elements = elements.reshape(sizes)
        elif kind == "transpose":
            elements = elements.transpose(sizes)
        else:
            begins, ends = sizes[: elements.ndim], sizes[elements.ndim :]
            cut = zip(begins, ends, elements.shape, strict=True)
            elements = elements[tuple(slice(begin, size - end) for begin, end, size in cut)]
    return elements


@dataclass(frozen=True)
class Levels:
    """A quantizer of the original: ``value[number of t with (x >= threshold[t]) xor flip]``; values rise."""

    tensor: str
    source: str
    """The tensor that it quantizes (before max-pools, where its output was pooled)."""
    thresholds: np.ndarray
    """float64 [T], rising."""
    values: np.ndarray
    """float64 [T + 1]."""
    flip: bool
    error: float
    """How far a level may be from the integer times a scale that is in its place."""

    @staticmethod
    def of(entry: dict[str, Any]) -> Levels:
        """From the packed model's metadata."""
        return Levels(
            entry["tensor"],
            entry["source"],
            np.sort(np.asarray(entry["thresholds"], np.float64)),
            np.asarray(entry["values"], np.float64),
            bool(entry["flip"]),
            float(entry["error"]),
        )

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """The levels (int64) that a tensor of the original's levels has: the nearest of its values."""
        between = (self.values[1:] + self.values[:-1]) / 2
        return np.searchsorted(between, values.astype(np.float64), side="right")

    def of_sources(self, x: np.ndarray) -> np.ndarray:
        """The levels (int64) of values before the quantizer (float64)."""
        passed = np.searchsorted(self.thresholds, x, side="right")
        return len(self.thresholds) - passed if self.flip else passed

    def between(self, x: np.ndarray, bound: Error) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest level of what lies within ``bound`` of ``x``."""
        ends = self.of_sources(x - bound), self.of_sources(x + bound)
        return np.minimum(*ends), np.maximum(*ends)

    def margin(self, x: np.ndarray) -> np.ndarray:
        """Distance of each value from the nearest threshold."""
        place = np.searchsorted(self.thresholds, x)
        below = np.abs(x - self.thresholds[np.maximum(place - 1, 0)])
        above = np.abs(self.thresholds[np.minimum(place, len(self.thresholds) - 1)] - x)
        return np.minimum(below, above)

    def distance(self, tensor: np.ndarray, x: np.ndarray | None) -> np.ndarray:
        """How far the original's tensor is from its levels: 0, or the rounding of a straight-through residue.

        Two roundings at the magnitude of ``x`` and of the level are allowed for; what is farther away is no level, and gets 0.
        """
        apart = np.abs(tensor.astype(np.float64) - self.values[self.of_values(tensor)])
        size = np.abs(tensor.astype(np.float64))
        if x is not None and x.shape == size.shape:
            size = size + np.abs(x)
        allowed = 2 * np.spacing(size.astype(np.float32)).astype(np.float64)
        return np.where(apart <= allowed, apart, 0.0) + self.error


def decode(packed: np.ndarray, codes: Sequence[int], channels: int) -> np.ndarray:
    """Bit planes ``[n, ..., bytes]`` → level of each element (int64 ``[..., channels]``), −1 for what is no code."""
    table = np.full(1 << len(packed), -1, np.int64)
    table[np.asarray(codes)] = np.arange(len(codes))
    number = np.zeros((*packed.shape[1:-1], channels), np.int64)
    for plane, bits in enumerate(packed):
        number += unpack_bits(bits, channels).astype(np.int64) << plane
    return table[number]


def level_flips(
    packed: np.ndarray, codes: Sequence[int], expected: np.ndarray, margin: np.ndarray | None
) -> tuple[Flips, np.ndarray]:
    """Levels of ``packed`` that are not ``expected`` (``[..., C]``, as the planes lie), and the mask of what differs.

    The mask has the shape of ``packed``: every plane's bit of an element whose level differs. ``margin``: distance of each
    element's source from the nearest threshold, where that is known.
    """
    flipped = decode(packed, codes, expected.shape[-1]) != expected
    count = int(flipped.sum())
    worst = float(margin[flipped].max()) if count and margin is not None else 0.0
    return Flips(flipped.size, count, 0, worst), planes_of(flipped, len(packed))


def planes_of(elements: np.ndarray, planes: int) -> np.ndarray:
    """A mask of elements ``[..., C]`` as one of bit planes: all bits of an element."""
    return np.broadcast_to(pack_bits(elements), (planes, *elements.shape[:-1], (elements.shape[-1] + 7) // 8)).copy()
