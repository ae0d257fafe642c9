"""``max_pool``: the largest float32 of each window of a channel; vectors along a row.

The largest of a window is that of its rows' largest. So a task, which takes a channel, finds for each row of the output the
largest of every column first, side by side as they lie, and then the largest of neighbouring columns. Tasks of some rows of
a channel each, of which a thread would find more in its own cache, were slower: rows are read ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import PER_ELEMENT, Expr, elements, function, number, outer_loop, scratch, tile_start, tiles
from .float_product import load_columns

UNROLLED = 8
"""Windows up to so many rows, or columns, become straight-line code."""


def _largest(count: int, lanes: int, value: Callable[[Expr], Expr]) -> Expr:
    """Of ``value(0)`` … ``value(count - 1)``."""
    best = scratch(lanes, "float32")
    best.store(0, value(0), lanes)
    if count <= UNROLLED:
        for i in range(1, count):
            best.store(0, tirx.max(best.load(0, lanes), value(i)), lanes)
    else:
        with T.serial(1, count) as i:
            best.store(0, tirx.max(best.load(0, lanes), value(i)), lanes)
    return best.load(0, lanes)


def max_pool(call: KernelCall) -> Kernel:
    """Input: data ``[N, C, ...]``. Every window holds at least one element of it; dilated ones are not padded."""
    data, out_shape = call.inputs[0].shape, call.output.shape
    height, width = data[2:] if len(data) == 4 else (1, data[2])
    out_height, out_width = out_shape[2:] if len(data) == 4 else (1, out_shape[2])
    (kh, kw), (sh, sw) = call.attrs["window"], call.attrs["strides"]
    (dh, dw), (top, left, _, _) = call.attrs["dilations"], call.attrs["pads"]
    widest = max(4, call.target.vector_bytes // 4)
    across, lanes = tiles(out_width, widest)
    # The columns that windows reach: with padding, and without what lies behind the last window.
    reach = (out_width - 1) * sw + (kw - 1) * dw + 1
    inside = min(width, reach - left)
    chunks, wide = tiles(inside, widest)

    with function(call) as fn:
        source = fn.input(0)
        out = fn.output()
        with outer_loop(data[0] * data[1], elements(call.output) * kh * kw * PER_ELEMENT) as channel:
            columns = scratch(reach, "float32")
            for start, count in ((0, left), (left + inside, reach - left - inside)):
                if count:
                    with T.serial(0, count) as x:
                        columns.store(start + x, number(-math.inf, "float32"))
            with T.serial(0, out_height) as y:
                first = T.Bind(y * sh - top)
                with T.serial(0, chunks) as chunk:
                    x = T.Bind(tile_start(chunk, inside, wide))

                    def row(i: Expr, first: Expr = first, x: Expr = x) -> Expr:
                        # Outside stands a row of the same window that is inside: one more of it changes nothing.
                        at = first + i * dh
                        at = tirx.min(tirx.max(at, 0), height - 1) if any(call.attrs["pads"]) else at
                        return source.load((channel * height + at) * width + x, wide)

                    columns.store(left + x, _largest(kh, wide, row), wide)
                with T.serial(0, across) as tile:
                    x = T.Bind(tile_start(tile, out_width, lanes))

                    def column(j: Expr, x: Expr = x) -> Expr:
                        return load_columns(columns, x * sw + j * dw, lanes, sw)

                    out.store((channel * out_height + y) * out_width + x, _largest(kw, lanes, column), lanes)
    return fn.kernel()
