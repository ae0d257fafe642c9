"""``transpose``: matrices of float32 from rows to columns, a square of vectors at a time, in registers.

A task is a strip of some columns of a matrix, a cache line of each row wide: it reads and writes whole lines.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import PER_ELEMENT, Expr, elements, function, outer_loop, shuffle, tile_start, tiles

LINE = 16
"""Elements of a cache line."""
STRIP = 64
"""Rows of a task."""


def transpose(call: KernelCall) -> Kernel:
    """Input: ``batch`` matrices of ``rows`` × ``columns``, one behind the other, neither less than `FEWEST`."""
    batch, rows, columns = (call.attrs[key] for key in ("batch", "rows", "columns"))
    widest = min(8, max(4, call.target.vector_bytes // 4))
    lanes = min(tiles(size, widest)[1] for size in (rows, columns))
    down, across = -(-rows // lanes), -(-columns // lanes)
    wide, high = LINE // lanes, STRIP // lanes
    strips, heights = -(-across // wide), -(-down // high)
    with function(call) as fn:
        source, out = fn.input(0), fn.output()
        with outer_loop(batch * strips * heights, elements(call.output) * PER_ELEMENT) as task:
            matrix = T.Bind(task // (strips * heights) * (rows * columns))
            strip, height = T.Bind(task // heights % strips * wide), T.Bind(task % heights * high)
            mine = [tirx.min(size, most - first) for size, most, first in ((high, down, height), (wide, across, strip))]
            with T.serial(0, mine[0]) as i, T.serial(0, mine[1]) as j:
                row = T.Bind(tile_start(height + i, rows, lanes))
                column = T.Bind(tile_start(strip + j, columns, lanes))
                square = [source.load(matrix + (row + r) * columns + column, lanes) for r in range(lanes)]
                for c, vector in enumerate(turned([T.Bind(vector) for vector in square])):
                    out.store(matrix + (column + c) * rows + row, vector, lanes)
    return fn.kernel()


FEWEST = 4
"""Rows and columns from which on there are squares."""


def turned(square: list[Expr]) -> list[Expr]:
    """The columns of a square of 4 × 4 or 8 × 8, given by rows.

    Pairs of rows are interleaved by elements, then by pairs of elements, both within 128 bits, as AVX2's ``unpck`` and
    Arm's ``zip`` do it; last, of eight, halves are put together.
    """
    lanes = len(square)
    blocks = [_turned_quarters(square[start : start + 4], lanes) for start in range(0, lanes, 4)]
    if len(blocks) == 1:
        return blocks[0]
    halves = [[*range(half, half + 4), *range(lanes + half, lanes + half + 4)] for half in (0, 4)]
    return [shuffle(list(pair), half) for half in halves for pair in zip(*blocks, strict=True)]


def _turned_quarters(rows: list[Expr], lanes: int) -> list[Expr]:
    """Four vectors; vector c has, in every 128 bits, element c of the same 128 bits of the four rows."""

    def interleaved(first: Expr, second: Expr, group: int, half: int) -> Expr:
        picked = []
        for start in range(half * 2, lanes, 4):
            for at in range(start, start + 2, group):
                picked += [*range(at, at + group), *range(lanes + at, lanes + at + group)]
        return T.Bind(shuffle([first, second], picked))

    pairs = [interleaved(rows[i], rows[i + 1], 1, half) for i in (0, 2) for half in (0, 1)]
    return [interleaved(pairs[i], pairs[i + 2], 2, half) for i in (0, 1) for half in (0, 1)]
