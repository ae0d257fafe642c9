"""The best few of a row of integers, in order, ties by document: in place of a sort.

Both walk the row in runs of ``RUN`` values and test a whole run against the worst value that is still good enough: for
documents in any usual order nearly all runs fail that test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from .common import Expr, Flat, cast, intrinsic, number, scratch

RUN = 16
"""Values that are tested together: rows are padded to a multiple of it with values that never win."""


def select_nearest(row: Flat, start: Expr, room: int, largest: int, k: int, out: Flat, query: Expr) -> None:
    """The ``k`` smallest of ``room`` values from ``start``, each 0 to ``largest`` (padding is larger), to ``out[query]``.

    Few values are possible, so they are counted: the first walk counts those up to a bound, which sinks as soon as enough
    are known below it. The counts say where each value's documents begin in the result; the second walk puts them there.
    """
    counts = scratch(largest + 1, "int32")
    state = scratch(2, "int32")  # the bound, and how many documents up to it were seen
    with T.serial(0, largest + 1) as i:
        counts.store(i, number(0, "int32"))
    state.store(0, number(largest, "int32"))
    state.store(1, number(0, "int32"))

    def value_at(place: Expr) -> Expr:
        return cast(row.load(start + place), "int32")

    def walk(visit: Callable[[Expr, Expr], None]) -> None:
        with T.serial(0, room // RUN) as run:
            least = _least(row.load(start + run * RUN, RUN), row.dtype)
            with T.If(least <= state.load(0)), T.Then(), T.serial(0, RUN) as lane:
                value = T.Bind(value_at(run * RUN + lane))
                with T.If(value <= state.load(0)), T.Then():
                    visit(value, run * RUN + lane)

    def count(value: Expr, _: Expr) -> None:
        counts.store(value, counts.load(value) + 1)
        state.store(1, state.load(1) + 1)
        with T.While(state.load(1) - counts.load(state.load(0)) >= k):
            state.store(1, state.load(1) - counts.load(state.load(0)))
            state.store(0, state.load(0) - 1)

    def put(value: Expr, document: Expr) -> None:
        place = T.Bind(counts.load(value))
        counts.store(value, place + 1)
        with T.If(place < k), T.Then():
            target = T.Bind((query * k + place) * 2)
            out.store(target, value)
            out.store(target + 1, cast(document, "int32"))

    walk(count)
    before = scratch(1, "int32")
    before.store(0, number(0, "int32"))
    with T.serial(0, largest + 1) as i:
        here = T.Bind(counts.load(i))
        counts.store(i, before.load(0))
        before.store(0, before.load(0) + here)
    walk(put)


def _least(values: Expr, dtype: str) -> Expr:
    if dtype == "uint16":
        return cast(intrinsic(dtype, f"llvm.vector.reduce.umin.v{RUN}i16", values), "int32")
    return intrinsic(dtype, f"llvm.vector.reduce.smin.v{RUN}i32", values)


def select_largest(
    row: Flat, start: Expr, count: int, k: int, out: Flat, query: Expr, document_of: Callable[[Expr], Expr]
) -> None:
    """The ``k`` largest of ``count`` int32 values (none is the least int32) from ``start``, to ``out[query]``.

    A heap of the best so far, the worst of them on top. Its keys join the value and the document, the lower one being
    better, in 64 bits: no two are equal unless a document occurs twice.
    """
    keys = scratch(k, "int64")
    state = scratch(2, "int32")  # the place in the heap, and whether to go on
    lowest = number(np.iinfo(np.int64).min, "int64")
    with T.serial(0, k) as i:
        keys.store(i, lowest)

    def sink(key: Expr, size: Expr) -> None:
        """Replace the top of the heap's first ``size`` keys."""
        state.store(0, number(0, "int32"))
        state.store(1, number(1, "int32"))
        with T.While(tirx.And(state.load(1) != 0, state.load(0) * 2 + 1 < size)):
            left = T.Bind(state.load(0) * 2 + 1)
            right = T.Bind(tirx.min(left + 1, size - 1))
            child = T.Bind(tirx.Select(keys.load(right) < keys.load(left), right, left))
            with T.If(keys.load(child) < key):
                with T.Then():
                    keys.store(state.load(0), keys.load(child))
                    state.store(0, child)
                with T.Else():
                    state.store(1, number(0, "int32"))
        keys.store(state.load(0), key)

    half = number(32, "int64")  # and a document takes 31 of the bits below
    mask = number(np.iinfo(np.int32).max, "int64")
    with T.serial(0, -(-count // RUN)) as run:
        most = intrinsic("int32", f"llvm.vector.reduce.smax.v{RUN}i32", row.load(start + run * RUN, RUN))
        with T.If(most >= cast(keys.load(0) >> half, "int32")), T.Then(), T.serial(0, RUN) as lane:
            place = run * RUN + lane
            with T.If(place < count), T.Then():
                value = cast(row.load(start + place), "int64")
                key = T.Bind((value << half) | (mask - cast(document_of(place), "int64")))
                with T.If(key > keys.load(0)), T.Then():
                    sink(key, k)
    with T.serial(0, k) as i:
        left = k - 1 - i
        best = T.Bind(keys.load(0))
        target = T.Bind((query * k + left) * 2)
        out.store(target, cast(best >> half, "int32"))
        out.store(target + 1, np.iinfo(np.int32).max - cast(best & mask, "int32"))
        last = T.Bind(keys.load(left))
        sink(last, left)
