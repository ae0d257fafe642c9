"""``SignMatMul``: bits times floats.

A task takes a few rows of one image. It unpacks their bits to ±1 (or 0 and 1) as floats once, and then runs over tiles of
columns: each float that is read serves all rows of the task. A product with ±1 is exact, so that a fused multiply-add is an
addition or a subtraction; processors that take one a cycle take the other one a cycle.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, bit_weights, broadcast, cast, function, number, outer_loop, scratch, tile_start, tiles

ROWS = 4
"""Rows of a task."""


def sign_matmul(call: KernelCall) -> Kernel:
    """``SignMatMul``."""
    *lead, rows, size = call.inputs[0].shape
    terms, columns = call.inputs[1].shape[-2:]
    images = math.prod(lead)
    low = 0.0 if call.attrs["unsigned"] else -1.0
    row_tiles, together = tiles(rows, ROWS)
    # NEON of 32-bit Arm flushes denormals to zero; its scalar unit does not.
    widest = 1 if call.target.arch == "arm" else 2 * call.target.vector_bytes // 4
    column_tiles, lanes = tiles(columns, widest)
    with function(call) as fn:
        bits, floats = fn.input(0), fn.input(1)
        out = fn.output()
        with outer_loop(images * row_tiles, images * rows * columns * terms) as task:
            image, first = T.Bind(task // row_tiles), T.Bind(tile_start(task % row_tiles, rows, together))
            signs = scratch(together * size * 8, "float32")
            with T.serial(0, together) as r, T.serial(0, size) as byte:
                value = T.Bind(bits.load((image * rows + first + r) * size + byte))
                picked = broadcast(value, 8) & cast(bit_weights("uint16"), "uint8", 8)
                chosen = tirx.Select(
                    picked != number(0, "uint8", 8), number(1.0, "float32", 8), number(low, "float32", 8)
                )
                signs.store((r * size + byte) * 8, chosen, 8)
            with T.serial(0, column_tiles) as tile:
                start = T.Bind(tile_start(tile, columns, lanes))
                sums = scratch(together * lanes, "float32")
                for r in range(together):
                    sums.store(r * lanes, number(0.0, "float32", lanes), lanes)
                with T.serial(0, terms) as k:
                    value = T.Bind(floats.load((image * terms + k) * columns + start, lanes))

                    def add(r: int, k: Expr = k, value: Expr = value) -> None:
                        sign = broadcast(signs.load(r * size * 8 + k), lanes)
                        sums.store(r * lanes, sums.load(r * lanes, lanes) + sign * value, lanes)

                    for r in range(together):
                        add(r)
                for r in range(together):
                    out.store((image * rows + first + r) * columns + start, sums.load(r * lanes, lanes), lanes)
    return fn.kernel()
