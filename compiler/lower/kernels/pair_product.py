"""``BinaryMatMul`` and ``AndMatMul``: products of rows of bits that are both known at run time only.

The loops and micro-kernels are those of ``product``; what differs is that the right operand plays the weights, so a task
first lays the rows of its image out as the micro-kernel reads them. That is one pass over N rows, for M·N products.

A {0, 1} operand needs no inner loop of its own: ``2·pop(a & b) − pop(a) = pop(b) − pop(a xor b)``, and a micro-kernel counts
``pop(a xor b)``. The ``pop(b)`` of each row is taken once, when the rows are laid out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ..kernel import Kernel, KernelCall
from . import micro as micros
from .common import PARALLEL_WORK, Expr, Flat, Function, byte_of, cast, copy_bytes, function, outer_loop, scratch, tiles
from .common import tile_start as start_of_tile
from .outputs import Finished, Output
from .product import MOST_PIXELS, ROWS_BYTES, TASKS, pixels_of_tile, rows_of_task

CHANNELS = micros.CHANNELS


@dataclass(frozen=True)
class Pair:
    """Sizes of a product: ``images`` times ``[rows, bytes]`` by ``[columns, bytes]``; at most ``bits`` bits differ."""

    images: int
    rows: int
    columns: int
    bytes: int
    bits: int

    @staticmethod
    def of(call: KernelCall) -> Pair:
        """The sizes that a call has."""
        *lead, rows, size = call.inputs[0].shape
        return Pair(math.prod(lead), rows, call.inputs[1].shape[-2], size, int(call.attrs["k"]))

    @property
    def blocks(self) -> int:
        """Blocks of 8 columns."""
        return -(-self.columns // CHANNELS)


class AndOutput(Output):
    """``Output`` for accumulators ``pop(b) − count``, where pop(b) of each column is found at run time."""

    def __init__(self, fn: Function, width: int, pixels: int, bits: int, total: str) -> None:
        super().__init__(fn, np.zeros((1, width), np.int32), bits, total, pixels)
        self.ones: Flat | None = None
        """int32 [width]: the popcounts, set once the kernel has its scratch memory."""

    def _parts(self, tile: Finished) -> list[Expr]:
        assert self.ones is not None
        ones = T.Bind(self.ones.load(tile.block * CHANNELS, CHANNELS))
        return [T.Bind(ones - cast(count, "int32", CHANNELS)) for count in tile.counts]

    def _accumulators(self, tile: Finished) -> list[Expr]:
        return self._parts(tile)

    def _bits(self, tile: Finished) -> None:
        row = -(-self.channels // CHANNELS)
        limits = T.Bind(self.table.load(tile.block * CHANNELS, CHANNELS))
        flip = None if self.flips is None else T.Bind(self.flips.load(tile.block))
        for p, acc in enumerate(self._parts(tile)):
            byte = byte_of(acc >= limits, self.call.target, "uint32")
            place = (tile.image * self.pixels + tile.pixel + p) * row + tile.block
            self.out.store(place, byte if flip is None else byte ^ flip)

    def _limits(self, corrections: np.ndarray, threshold: np.ndarray, bits: int) -> np.ndarray:
        """The thresholds themselves; past the last channel, one that is never reached."""
        table = np.full((1, self.width), np.iinfo(np.int32).max, np.int32)
        table[0, : len(threshold)] = threshold
        return table


def lay_out_rows(pair: Pair, row_bytes: int, unit: int, source: Flat, image: Expr, target: Flat) -> None:
    """Emit what ``micro.lay_out`` does with steps of ``unit`` bytes, at run time, for the rows of one image; rows past the last
    are zero."""
    whole, half = row_bytes // unit, row_bytes % unit
    full, rest = pair.bytes // unit, pair.bytes % unit

    def row(block: Expr, c: Expr, known: bool) -> None:
        base = block * (CHANNELS * row_bytes)
        place = (image * pair.columns + block * CHANNELS + c) * pair.bytes

        def step(k: Expr, size: int, count: int) -> None:
            at = base + k * (CHANNELS * unit) + c * size
            if count:
                copy_bytes(target, at, source, place + k * unit, count)
            if count < size:
                copy_bytes(target, at + count, None, 0, size - count)

        if known:
            if full:
                with T.serial(0, full) as k:
                    step(k, unit, unit)
            if full < whole:  # the last step, a part of which is padding
                step(full, unit, rest)
            elif half:
                step(whole, half, rest)
        else:
            if whole:
                with T.serial(0, whole) as k:
                    step(k, unit, 0)
            if half:
                step(whole, half, 0)

    blocks, last = divmod(pair.columns, CHANNELS)
    if blocks:
        with T.serial(0, blocks) as block, T.serial(0, CHANNELS) as c:
            row(block, c, True)
    if last:
        with T.serial(0, last) as c:
            row(blocks, c, True)
        with T.serial(last, CHANNELS) as c:
            row(blocks, c, False)


def count_ones(pair: Pair, row_bytes: int, unit: int, rows: Flat, ones: Flat) -> None:
    """Emit the popcount of every laid-out row, into int32 ``ones``."""
    whole, half = row_bytes // unit, row_bytes % unit

    def word(place: Expr) -> Expr:
        return cast(tirx.popcount(tirx.reinterpret("uint64", rows.load(place, 8))), "int32")

    with T.serial(0, pair.blocks) as block, T.serial(0, CHANNELS) as c:
        at = block * CHANNELS + c
        base = block * (CHANNELS * row_bytes)
        ones.store(at, tirx.const(0, "int32"))
        if whole:
            with T.serial(0, whole) as k:
                place = base + (k * CHANNELS + c) * unit
                for part in range(0, unit, micros.WORD):
                    ones.store(at, ones.load(at) + word(place + part))
        if half:
            ones.store(at, ones.load(at) + word(base + whole * CHANNELS * unit + c * half))


def copy_rows(pair: Pair, row_bytes: int, source: Flat, first: Expr, count: Expr, rows: Flat) -> None:
    """Emit the copy of ``count`` rows of the left operand, each padded with zeros to ``row_bytes``."""
    with T.serial(0, count) as i:
        copy_bytes(rows, i * row_bytes, source, (first + i) * pair.bytes, pair.bytes)
        copy_bytes(rows, i * row_bytes + pair.bytes, None, 0, row_bytes - pair.bytes)


def make(call: KernelCall, masked: bool) -> Kernel:
    """The kernel with the call's epilogue. ``masked``: the left operand is {0, 1}."""
    pair = Pair.of(call)
    micro = micros.select(call.target)
    total = micro.total(pair.bits)
    row_bytes = -(-pair.bytes // micro.grain) * micro.grain
    in_place = row_bytes == pair.bytes
    _, lanes = tiles(pair.rows, pixels_of_tile(call, micro, pair.rows))
    work = pair.images * pair.rows * pair.blocks * CHANNELS * pair.bits
    most = pair.rows if in_place else min(MOST_PIXELS, ROWS_BYTES // row_bytes)
    if work >= PARALLEL_WORK and pair.images < TASKS:  # rows are shared among threads, each laying the columns out
        most = min(most, max(2 * CHANNELS, -(-pair.images * pair.rows // TASKS)))
    each = rows_of_task(pair.rows, lanes, most)
    row_tasks = -(-pair.rows // each)
    images = call.inputs[0].shape[0] if call.epilogue.channels_first else pair.images
    if call.epilogue.channels_first and len(call.inputs[0].shape) != 4:
        raise UnsupportedError(call.name, call.op, "its result is transposed as a feature map but has not four axes")
    merged = pair.images // images
    """Images that the output stores as one, end to end."""
    width = pair.blocks * CHANNELS

    with function(call) as fn:
        left, right = fn.input(0), fn.input(1)
        pixels = merged * pair.rows
        output = (
            AndOutput(fn, width, pixels, pair.bits, total)
            if masked
            else Output(fn, np.full((1, width), pair.bits, np.int32), pair.bits, total, pixels)
        )
        with outer_loop(pair.images * row_tasks, work) as task:
            image, row_task = T.Bind(task // row_tasks), T.Bind(task % row_tasks)
            first = row_task * each
            count = each if pair.rows % each == 0 else tirx.min(each, pair.rows - first)
            columns = scratch(width * row_bytes, "uint8")
            lay_out_rows(pair, row_bytes, micro.unit, right, image, columns)
            if isinstance(output, AndOutput):
                output.ones = scratch(width, "int32")
                count_ones(pair, row_bytes, micro.unit, columns, output.ones)
            rows = left
            if not in_place:
                rows = scratch(min(each, pair.rows) * row_bytes, "uint8")
                copy_rows(pair, row_bytes, left, image * pair.rows + first, count, rows)
            with T.serial(0, pair.blocks) as block, T.serial(0, (count + (lanes - 1)) // lanes) as t:
                row = T.Bind(start_of_tile(row_task * (each // lanes) + t, pair.rows, lanes))
                base = image * pair.rows + row if in_place else row - first
                counts: list[Expr] = []
                for p in range(0, lanes, micro.pixels):
                    places = [(base + p + i) * row_bytes for i in range(min(micro.pixels, lanes - p))]
                    tile = micros.Tile(rows, places, columns, None, block * (CHANNELS * row_bytes), row_bytes)
                    counts += micros.count(micro, tile, pair.bits)
                pixel = image % merged * pair.rows + row
                output.store(Finished(counts, [0] * lanes, image // merged, pixel, block))
    return fn.kernel()


def binary_matmul(call: KernelCall) -> Kernel:
    """``BinaryMatMul`` with its epilogue."""
    return make(call, masked=False)


def and_matmul(call: KernelCall) -> Kernel:
    """``AndMatMul`` with its epilogue."""
    return make(call, masked=True)
