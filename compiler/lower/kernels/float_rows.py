"""``softmax`` and ``layer_norm`` over rows that lie side by side, in float32.

A row is read two or three times while it lies in the first-level cache. Sums and maxima run in four vectors at once, so that
the latency of an addition does not hold them up. The exponential is a polynomial.
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
    apart,
    broadcast,
    elements,
    function,
    intrinsic,
    kept,
    number,
    outer_loop,
    scratch,
    shuffle,
    typed,
)

AT_ONCE = 4
"""Vectors of a row that are under way together."""

_LIFT = 12582912.0
"""1.5·2^23: added to a number that is small beside it, it leaves the nearest integer in the lowest bits."""
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4
"""ln 2 in two parts; the first has 9 bits, so that its products with the exponents of float32 are exact."""
_LEAST = -87.33654
"""About ln 2^-126: below, the exponential is a subnormal number, and is taken for 0."""
_MOST = 89.0
"""Above ln 2^128 = 88.72…: from there on the exponential is infinite."""
_EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Taylor's series, whose rest is below 2^-26 for |f| ≤ ln 2 / 2 (f^8 / 8! ≤ 2^-27.5): less than half an ulp."""


def exponential(x: Expr, lanes: int, any_sign: bool = False) -> Expr:
    """exp(x) for x ≤ 0 (or NaN), or for any x, within 4 ulp; 0 where it is less than 2^-126.

    x = n·ln 2 + f with an integer n and |f| ≤ ln 2 / 2; exp(x) = 2^n · exp(f). (W. Cody and W. Waite, "Software Manual for
    the Elementary Functions", 1980, chapter 6.)
    """

    def const(value: float) -> Expr:
        return number(value, "float32", lanes)

    below = x < const(_LEAST)
    held = kept(tirx.Select(below, const(_LEAST), x), lanes)
    if any_sign:
        held = kept(tirx.Select(held > const(_MOST), const(_MOST), held), lanes)
    lifted = kept(apart(held * const(_LOG2_E) + const(_LIFT), lanes), lanes)
    n = kept(lifted - const(_LIFT), lanes)
    f = kept(held - n * const(_LN2_HIGH), lanes)
    f = kept(f - n * const(_LN2_LOW), lanes)
    y = const(_EXP[0])
    for coefficient in _EXP[1:]:
        y = kept(y * f + const(coefficient), lanes)
    bits = tirx.reinterpret(typed("int32", lanes), lifted)  # n, and higher bits that the shift throws away
    bias = number(127 << 23, "int32", lanes)
    if any_sign:  # 2^128 is no float32: 2^(n−1) · 2
        above = x > const(0)
        bias = tirx.Select(above, number(126 << 23, "int32", lanes), bias)
        y = tirx.Select(above, y + y, y)
    power = tirx.reinterpret(typed("float32", lanes), (bits << number(23, "int32", lanes)) + bias)
    return kept(tirx.Select(below, const(0), y * power), lanes)


class _Row:
    """The loops over one row: whole vectors, four at a time where there are as many, then single elements."""

    def __init__(self, size: int, lanes: int) -> None:
        self.size, self.lanes = size, lanes

    def each(self, body: Callable[[Expr, int, int], None]) -> None:
        """``body(offset, lanes, which)``: ``which`` counts those under way together."""
        block = AT_ONCE * self.lanes
        blocks, vectors = self.size // block, self.size % block // self.lanes
        if blocks:
            with T.serial(0, blocks) as i:
                for which in range(AT_ONCE):
                    body(i * block + which * self.lanes, self.lanes, which)
        for which in range(vectors):
            body(blocks * block + which * self.lanes, self.lanes, which)
        whole = blocks * block + vectors * self.lanes
        if whole < self.size:
            with T.serial(0, self.size - whole) as i:
                body(whole + i, 1, 0)

    def reduce(self, start: float, value: Callable[[Expr, int], Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
        """``value`` of every element, joined in any order."""
        lanes, wide = self.lanes, self.size >= self.lanes
        vectors = min(AT_ONCE, self.size // lanes)
        held = scratch(AT_ONCE * lanes, "float32")
        single = scratch(1, "float32")
        single.store(0, number(start, "float32"))
        for which in range(vectors):
            held.store(which * lanes, number(start, "float32", lanes), lanes)

        def take(offset: Expr, width: int, which: int) -> None:
            if width == 1:
                single.store(0, join(single.load(0), value(offset, 1)))
            else:
                held.store(which * lanes, join(held.load(which * lanes, lanes), value(offset, lanes)), lanes)

        self.each(take)
        if not wide:
            return T.Bind(single.load(0))
        total = T.Bind(held.load(0, lanes))
        for which in range(1, vectors):
            total = T.Bind(join(total, held.load(which * lanes, lanes)))
        while lanes > 1:
            lanes //= 2
            halves = [shuffle([total], range(first, first + lanes)) for first in (0, lanes)]
            total = T.Bind(join(*halves))
        return T.Bind(join(total, single.load(0)))


def _rows(call: KernelCall, size: int, body: Callable[..., None], inputs: int) -> Kernel:
    """``body(row, x, out, start, *other inputs)`` for every row, which begins at ``start``."""
    lanes = max(4, call.target.vector_bytes // 4)
    rows = elements(call.output) // size
    with function(call) as fn:
        x = fn.input(0)
        more = [fn.input(i) for i in range(1, inputs)]
        out = fn.output()
        with outer_loop(rows, elements(call.output) * 16) as row:
            body(_Row(size, lanes), x, out, T.Bind(row * size), *more)
    return fn.kernel()


def softmax(call: KernelCall) -> Kernel:
    """Input: rows of ``size`` elements. Largest element, exponentials and their sum, quotients."""
    size = int(call.attrs["size"])

    def body(row: _Row, x: Flat, out: Flat, start: Expr) -> None:
        largest = row.reduce(-math.inf, lambda at, lanes: x.load(start + at, lanes), tirx.max)

        def power(at: Expr, lanes: int) -> Expr:
            value = exponential(T.Bind(x.load(start + at, lanes) - broadcast(largest, lanes)), lanes)
            out.store(start + at, value, lanes)
            return value

        total = row.reduce(0.0, power, lambda a, b: a + b)
        inverse = T.Bind(number(1, "float32") / total)
        row.each(
            lambda at, lanes, _: out.store(start + at, out.load(start + at, lanes) * broadcast(inverse, lanes), lanes)
        )

    return _rows(call, size, body, 1)


def layer_norm(call: KernelCall) -> Kernel:
    """Inputs: rows of ``size`` elements, scale and maybe bias ``[size]``. Mean, variance about it, result."""
    size, epsilon = int(call.attrs["size"]), float(np.float32(call.attrs["epsilon"]))

    def body(row: _Row, x: Flat, out: Flat, start: Expr, scale: Flat, bias: Flat | None = None) -> None:
        part = number(1 / size, "float32")
        mean = T.Bind(row.reduce(0.0, lambda at, lanes: x.load(start + at, lanes), lambda a, b: a + b) * part)

        def square(at: Expr, lanes: int) -> Expr:
            distance = T.Bind(x.load(start + at, lanes) - broadcast(mean, lanes))
            return distance * distance

        variance = T.Bind(row.reduce(0.0, square, lambda a, b: a + b) * part)
        root = intrinsic("float32", "llvm.sqrt.f32", variance + number(epsilon, "float32"))
        inverse = T.Bind(number(1, "float32") / root)

        def store(at: Expr, lanes: int, _: int) -> None:
            y = (x.load(start + at, lanes) - broadcast(mean, lanes)) * broadcast(inverse, lanes) * scale.load(at, lanes)
            out.store(start + at, y if bias is None else y + bias.load(at, lanes), lanes)

        row.each(store)

    return _rows(call, size, body, len(call.inputs))
