"""``BitFloatGemm``: bits are widened to float rows a few at a time, and multiplied as ``float_product`` multiplies."""

from __future__ import annotations

import math

from tvm.tirx.script import builder as T

from ...opset import packed_bytes
from ..kernel import Kernel, KernelCall
from .common import Expr, broadcast, cast, constant_input, function, number, outer_loop, scratch, tile_start
from .float_product import Operands, Product, choose_tile, lay_out, micro, panel_places, panel_width

LANES = 8
"""Bits of a byte."""


def bit_float_gemm(call: KernelCall) -> Kernel:
    """The kernel."""
    weights = constant_input(call, 1, "the weights")
    depth, columns = weights.shape
    rows, clear = math.prod(call.output.shape[:-1]), int(call.attrs["clear"])
    tile = choose_tile(call.target, rows, columns)
    made = Product(1, 1, rows, columns, depth, None, tile)
    size = packed_bytes(depth)
    blocks = -(-rows // tile.rows)
    with function(call) as fn:
        packed, panels = fn.input(0), fn.constant("weights", lay_out(weights))
        out = fn.output()
        with outer_loop(blocks, rows * columns * depth) as block:
            row = T.Bind(tile_start(block, rows, tile.rows))
            wide = scratch(tile.rows * depth + LANES, "float32")
            # What the last byte of a row has too many the next row, or nothing, overwrites.
            with T.serial(0, tile.rows) as r, T.serial(0, size) as i:
                byte = broadcast(cast(packed.load((row + r) * size + i), "int32"), LANES)
                bits = (byte >> T.ramp(0, 1, LANES)) & number(1, "int32", LANES)
                if clear:
                    bits = bits * number(2, "int32", LANES) - number(1, "int32", LANES)
                wide.store(r * depth + i * LANES, cast(bits, "float32", LANES), LANES)
            given = Operands(wide, panels, None, None, out, call.target)

            def one(column: Expr, count: int, row: Expr = row, given: Operands = given) -> None:
                micro(
                    made, given, 0, panel_places(made, column), panel_width(columns), row * columns + column, 0, count
                )

            if made.tiles:
                with T.serial(0, made.tiles) as j:
                    one(j * tile.columns, tile.columns)
            if made.rest:
                one(made.tiles * tile.columns, made.rest)
    return fn.kernel()
