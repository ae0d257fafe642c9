"""``TopK`` for Relax: TVM's sorts by a function of its own runtime, which a device does not have.

The best of float32 rows, along the last axis, are picked by a kernel with a heap (``kernels/top_k.py``). Of other elements and
along other axes every element's rank is counted, by comparing it with all others (ties: the lower index first, as ONNX has
it); place r of the result is taken by the element of rank r. That is n² comparisons for n elements, without a branch or a
buffer. One element of n (``k`` = 1) is a maximum and its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx

from .converters import converter, dtype_of, shape_of
from .kernels import float_calls

LONGEST = 1 << 13
"""Most elements that are ranked: 64 million comparisons, some 50 ms on a Pi 4."""


@converter("TopK")
def top_k(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Values and int64 indices of the k largest (or smallest) elements along an axis, sorted."""
    x, shape = inputs[0], shape_of(inputs[0])
    if values[1] is None:
        raise ValueError("k must be constant")
    k, axis = int(values[1].reshape(-1)[0]), attrs.get("axis", -1) % len(shape)
    size, largest = shape[axis], bool(attrs.get("largest", 1))
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}, the axis has {size} elements")
    if k == 1:
        best, place = (relax.op.max, relax.op.argmax) if largest else (relax.op.min, relax.op.argmin)
        return relax.Tuple([best(x, axis, keepdims=True), place(x, axis, keepdims=True)])
    if not attrs.get("sorted", 1):
        raise ValueError("sorted is 0, which leaves the order open: export with sorted = 1")
    if dtype_of(x) == "float32" and axis == len(shape) - 1:
        return _picked(bb, x, shape, k, largest)
    if size > LONGEST:
        raise ValueError(f"the axis has {size} elements, at most {LONGEST} are ranked")
    ranks = bb.emit_te(_ranks, x, axis, largest, primfunc_name_hint="topk_ranks")
    indices = bb.emit_te(_places, ranks, axis, k, primfunc_name_hint="topk_indices")
    return relax.Tuple([bb.emit_te(_taken, x, indices, axis, primfunc_name_hint="topk_values"), indices])


def _picked(bb: Any, x: Any, shape: tuple[int, ...], k: int, largest: bool) -> Any:
    rows = math.prod(shape[:-1])
    flat = bb.emit(relax.op.reshape(x, (rows, shape[-1])))
    attrs = {"k": k, "largest": int(largest)}
    pairs = bb.emit(float_calls.emit(bb, "top_k", attrs, [flat], (rows, k, 2), "int32"))
    places = bb.emit_te(_second, pairs, primfunc_name_hint="topk_indices")
    values = bb.emit_te(_taken, flat, places, 1, primfunc_name_hint="topk_values")
    return relax.Tuple([relax.op.reshape(part, (*shape[:-1], k)) for part in (values, places)])


def _second(pairs: te.Tensor) -> te.Tensor:
    """int64: the places of pairs (key, place)."""
    return te.compute(pairs.shape[:2], lambda row, rank: pairs(row, rank, 1).astype("int64"), name="place")


def _at(index: Sequence[Any], axis: int, place: Any) -> list[Any]:
    return [*index[:axis], place, *index[axis + 1 :]]


def _ranks(x: te.Tensor, axis: int, largest: bool) -> te.Tensor:
    """int32, shape of ``x``: how many elements along the axis come before each."""
    other = te.reduce_axis((0, int(x.shape[axis])), "other")

    def rank(*index: Any) -> Any:
        mine, theirs = x(*index), x(*_at(index, axis, other))
        better = theirs > mine if largest else theirs < mine
        first = tirx.any(better, tirx.all(theirs == mine, other < index[axis]))
        return te.sum(first.astype("int32"), axis=other)

    return te.compute(x.shape, rank, name="rank")


def _places(ranks: te.Tensor, axis: int, k: int) -> te.Tensor:
    """int64: the index of the element of rank 0, 1, … k − 1."""
    other = te.reduce_axis((0, int(ranks.shape[axis])), "other")
    shape = [*ranks.shape[:axis], k, *ranks.shape[axis + 1 :]]

    def place(*index: Any) -> Any:
        found = ranks(*_at(index, axis, other)) == index[axis].astype("int32")
        return te.sum(tirx.Select(found, other.astype("int64"), tirx.IntImm("int64", 0)), axis=other)

    return te.compute(shape, place, name="place")


def _taken(x: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    return te.compute(indices.shape, lambda *index: x(*_at(index, axis, indices(*index))), name="taken")
