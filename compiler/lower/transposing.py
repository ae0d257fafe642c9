"""``Transpose`` for Relax: TVM's gathers element by element; matrices of float32 are turned by a kernel of our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax

from .converters import converter, dtype_of, shape_of
from .kernels import float_calls
from .kernels.transpose import FEWEST


@converter("Transpose")
def transpose(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Of any element type."""
    rank = len(shape_of(inputs[0]))
    return permuted(bb, inputs[0], attrs.get("perm") or range(rank)[::-1])


def permuted(bb: Any, value: Any, perm: Sequence[int]) -> Any:
    """``value`` with axis ``perm[i]`` in place i."""
    shape = shape_of(value)
    batch, rows, columns = matrices(shape, perm)
    if dtype_of(value) != "float32" or min(rows, columns) < FEWEST:
        return relax.op.permute_dims(value, list(perm))
    described = {"batch": batch, "rows": rows, "columns": columns}
    return float_calls.emit(bb, "transpose", described, [value], [shape[axis] for axis in perm])


def matrices(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, int, int]:
    """(batch, rows, columns) where the permutation turns matrices that lie one behind the other, else (1, 1, 1).

    Axes of one element do not count, and axes that stay neighbours are one.
    """
    order = [axis for axis in perm if shape[axis] > 1]
    place = {axis: i for i, axis in enumerate(sorted(order))}
    order = [place[axis] for axis in order]
    sizes = [shape[axis] for axis in sorted(place)]
    kept = 0
    while kept < len(order) and order[kept] == kept:
        kept += 1
    if kept == len(order):
        return 1, 1, 1
    split = order[kept]  # the rest is these axes up to the last, then those before them
    if order[kept:] != [*range(split, len(order)), *range(kept, split)]:
        return 1, 1, 1
    return math.prod(sizes[:kept]), math.prod(sizes[kept:split]), math.prod(sizes[split:])
