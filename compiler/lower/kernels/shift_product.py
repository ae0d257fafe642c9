"""``IntegerMatMul`` and ``ShiftMatMul``: a row of the first operand times the rows of the second, vectors of columns.

The second operand is read as it lies: a term adds one of its rows, times a number or shifted, to the row of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import (
    Expr,
    Flat,
    Function,
    broadcast,
    cast,
    constant_input,
    elements,
    function,
    number,
    outer_loop,
    scratch,
    tile_start,
    tiles,
)
from .fixed import along

VECTOR = 16
_Term = Callable[[Expr, Expr, int], Expr]
"""(code of the term, int32 columns, lanes) → what is added."""


def _make(call: KernelCall, prepare: Callable[[Function], Callable[[Flat, Expr], _Term]]) -> Kernel:
    (*lead, rows, terms), columns = call.inputs[0].shape, call.inputs[1].shape[-1]
    batches = math.prod(lead)
    count, lanes = tiles(columns, VECTOR)
    with function(call) as fn:
        first, second = fn.input(0), fn.input(1)
        term_of = prepare(fn)
        out = fn.output()
        with outer_loop(batches * rows, batches * rows * terms * columns * 16) as row:
            batch = row // rows
            with T.serial(0, count) as tile:
                column = T.Bind(tile_start(tile, columns, lanes))
                total = scratch(lanes, "int32")
                total.store(0, number(0, "int32", lanes), lanes)
                with T.serial(0, terms) as k:
                    values = cast(second.load((batch * terms + k) * columns + column, lanes), "int32", lanes)
                    more = term_of(first, row * terms + k)(None, values, lanes)
                    total.store(0, total.load(0, lanes) + more, lanes)
                out.store(row * columns + column, total.load(0, lanes), lanes)
    return fn.kernel()


def integer_matmul(call: KernelCall) -> Kernel:
    """``IntegerMatMul``."""

    def prepare(fn: Function) -> Callable[[Flat, Expr], _Term]:
        def term_of(first: Flat, place: Expr) -> _Term:
            factor = T.Bind(cast(first.load(place), "int32"))
            return lambda _, values, lanes: values * broadcast(factor, lanes)

        return term_of

    return _make(call, prepare)


def shift_matmul(call: KernelCall) -> Kernel:
    """``ShiftMatMul``: the shift of a code from a table, a level of zero as a mask."""
    shifts = np.asarray(call.attrs["shifts"], np.int32)

    def prepare(fn: Function) -> Callable[[Flat, Expr], _Term]:
        table = fn.constant("shifts", np.maximum(shifts, 0))
        masks = fn.constant("masks", np.where(shifts >= 0, -1, 0).astype(np.int32)) if (shifts < 0).any() else None

        def term_of(first: Flat, place: Expr) -> _Term:
            code = T.Bind(tirx.min(cast(first.load(place), "int32"), len(shifts) - 1))
            amount = T.Bind(table.load(code))
            mask = None if masks is None else T.Bind(masks.load(code))

            def term(_: Expr, values: Expr, lanes: int) -> Expr:
                moved = values << broadcast(amount, lanes)
                return moved if mask is None else moved & broadcast(mask, lanes)

            return term

        return term_of

    return _make(call, prepare)


def step_code(call: KernelCall) -> Kernel:
    """``StepCode``: one comparison a threshold."""
    threshold = constant_input(call, 1, "the threshold")
    widest = 1 if call.target.arch == "arm" else VECTOR  # NEON of 32-bit Arm takes denormals for zero
    with function(call) as fn:
        data, limits, out = fn.input(0), fn.constant("threshold", threshold), fn.output()

        def emit(start: Expr, lanes: int) -> None:
            value = T.Bind(data.load(start, lanes))
            total = scratch(lanes, "int32")
            total.store(0, number(0, "int32", lanes), lanes)
            with T.serial(0, len(threshold)) as t:
                reached = value >= broadcast(limits.load(t), lanes)
                one, none = number(1, "int32", lanes), number(0, "int32", lanes)
                total.store(0, total.load(0, lanes) + tirx.Select(reached, one, none), lanes)
            out.store(start, cast(total.load(0, lanes), "uint8", lanes), lanes)

        along(elements(call.inputs[0]), widest, emit)
    return fn.kernel()
