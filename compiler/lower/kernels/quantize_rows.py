"""``QuantizeRows``: scale, round and clamp to 8 bits, in one pass over a tensor."""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import PARALLEL_WORK, Expr, apart, broadcast, cast, elements, function, number, outer_loop, pieces

ROUND = 12582912.0
"""1.5·2^23: added and taken away again, it rounds what is small beside it to an integer, ties to even."""


def quantize_rows(call: KernelCall) -> Kernel:
    """The kernel. Clamping first is the same, as the limits are integers, and keeps the sum in range."""
    shape, given = call.inputs[0].shape, call.inputs[1].shape
    size, rows = shape[-1], math.prod(shape[:-1])
    low, high = float(call.attrs["low"]), float(call.attrs["high"])
    # NEON of 32-bit Arm flushes denormals to zero; its scalar unit does not.
    widest = 1 if call.target.arch == "arm" else max(4, call.target.vector_bytes // 4)

    def scale_at(row: Expr) -> Expr:
        """Offset of a row's scale: axes of size 1 count nothing."""
        place: Expr = 0
        stride = 1
        for axis in reversed(range(len(shape) - 1)):
            if given[axis] > 1:
                place = place + row % shape[axis] * stride
                stride *= given[axis]
            row = row // shape[axis]
        return place

    with function(call) as fn:
        x, scale = fn.input(0), fn.input(1)
        out = fn.output()

        def convert(place: Expr, by: Expr, lanes: int) -> None:
            factor, value = broadcast(by, lanes), x.load(place, lanes)
            scaled = value / factor if call.attrs["divide"] else value * factor
            clamped = tirx.min(tirx.max(scaled, number(low, "float32", lanes)), number(high, "float32", lanes))
            lifted = T.Bind(apart(clamped + number(ROUND, "float32", lanes), lanes))
            rounded = lifted - number(ROUND, "float32", lanes)
            out.store(place, cast(cast(rounded, "int32", lanes), "int8", lanes), lanes)

        with outer_loop(rows, elements(call.inputs[0]) if rows > 1 else PARALLEL_WORK - 1) as row:
            by = T.Bind(scale.load(scale_at(row)))
            whole = size // widest
            if whole:
                with T.serial(0, whole) as i:
                    convert(row * size + i * widest, by, widest)
            for shift, lanes in pieces(size - whole * widest, widest):
                convert(row * size + whole * widest + shift, by, lanes)
    return fn.kernel()
