"""How a second operand lies beside an accumulator: what the passes may hand to an epilogue is what kernels can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the row-major order of the elements."""


class Lies(NamedTuple):
    """Along which axes of the output an operand varies; along the others it is one number.

    Its elements are in row-major order of those axes: images, channels, pixels where the channels come first; pixels (those
    of all images), channels where they come last.
    """

    image: bool
    channel: bool
    pixel: bool


def operand_lies(shape: Sequence[int], output: Sequence[int], channels_first: bool) -> Lies | None:
    """How an operand of ``shape`` lies beside an ``output`` ``[N, C, pixels…]`` or ``[pixels…, C]``.

    Of the operand's axes the pixels together must be those of the output or all 1, and so must the others. None where they
    are not, or where the operand would make the output grow.
    """
    rank = len(output)
    if len(shape) > rank or rank < (2 if channels_first else 1):
        return None
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    groups = ([0], [1], range(2, rank)) if channels_first else ([], [rank - 1], range(rank - 1))
    found = []
    for axes in groups:
        mine, whole = [sizes[i] for i in axes], [output[i] for i in axes]
        if mine != whole and any(size != 1 for size in mine):
            return None
        found.append(mine == whole and any(size != 1 for size in whole))
    return Lies(*found)


def keeps_places(before: Sequence[int], after: Sequence[int], channels_first: bool) -> bool:
    """Whether a reshape leaves ``[N, C, pixels…]`` or ``[pixels…, C]`` what it is: a kernel then stores the same bytes."""
    if channels_first:
        return len(after) >= 2 and tuple(after[:2]) == tuple(before[:2])
    return len(after) >= 1 and after[-1] == before[-1]
