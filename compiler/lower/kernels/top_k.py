"""The k best of float32 rows: ``TopK`` along the last axis, by the heap that searches use (``select_largest``)."""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, Flat, function, number, outer_loop, pieces, scratch
from .select import RUN, select_largest

LANES = 8


def _key(bits: Expr, largest: bool, lanes: int) -> Expr:
    """int32 that rise (``largest``) or fall with the float32 of these bits, −0 and +0 being one number."""
    lowest = number(np.iinfo(np.int32).min, "int32", lanes)
    one_zero = tirx.Select(bits == lowest, number(0, "int32", lanes), bits)
    rising = one_zero ^ ((one_zero >> number(31, "int32", lanes)) & number(np.iinfo(np.int32).max, "int32", lanes))
    return rising if largest else rising ^ number(-1, "int32", lanes)


def top_k(call: KernelCall) -> Kernel:
    """``float32 [R, N]`` → int32 ``[R, k, 2]``: a key of the value, which means nothing outside, and the place. In order,
    ties by the lower place."""
    rows, size = call.inputs[0].shape
    k, largest = int(call.attrs["k"]), bool(call.attrs["largest"])
    room = -(-size // RUN) * RUN
    with function(call) as fn:
        given = fn.input(0)
        out = fn.output()
        with outer_loop(rows, rows * size * 4) as row:
            keys = scratch(room, "int32")
            keys.store(room - RUN, number(np.iinfo(np.int32).min, "int32", RUN), RUN)

            def convert(place: Expr, lanes: int, row: Expr = row, keys: Flat = keys) -> None:
                dtype = "int32" if lanes == 1 else f"int32x{lanes}"
                bits = T.Bind(T.reinterpret(dtype, given.load(row * size + place, lanes)))
                keys.store(place, _key(bits, largest, lanes), lanes)

            with T.serial(0, size // LANES) as i:
                convert(i * LANES, LANES)
            for shift, lanes in pieces(size % LANES, LANES):
                convert(size // LANES * LANES + shift, lanes)
            select_largest(keys, 0, size, k, out, row, lambda place: place)
    return fn.kernel()
