"""Depthwise convolution of 8-bit integers: vectors run along the channels, one term a tap.

A task gathers the windows of a block of pixels (``product.emit_rows``), a byte a channel and tap. Two taps are multiplied at
a time, as their products can be added in fewer bits than the sum needs:

* x86 with AVX2: the bytes of two taps are interleaved and widened; ``pmaddwd`` multiplies both and adds them in 32 bits.
* Arm: ``smull``, ``smlal`` add two products in 16 bits, which they fit if no weight is −128: 2 · 128 · 127 < 2^15.
* Everywhere else each product, which 16 bits hold (255 · 128 < 2^15), is added in 32 bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, Flat, cast, function, intrinsic, number, outer_loop, scratch, shuffle, tile_start, tiles
from .outputs import Finished, IntegerOutput
from .product import (
    CHANNELS,
    MOST_PIXELS,
    ROWS_BYTES,
    TASKS,
    Plan,
    Product,
    emit_rows,
    rows_of_task,
    work,
)

PIXELS = 4
_INTERLEAVED = [place for channel in range(CHANNELS) for place in (channel, CHANNELS + channel)]

Sum = Callable[[Flat, Expr, Flat, Expr], Expr]
"""``(rows, at, weights, place)`` → int32 sums of 8 channels: their first tap is at ``at``, their weights from ``place`` on."""


def suits(call: KernelCall, weights: np.ndarray) -> bool:
    """Whether an ``IntegerConv`` is depthwise: one output channel for each of its input's."""
    return int(call.attrs["group"]) == call.inputs[0].shape[3] == len(weights) and weights.shape[3] == 1


def _by_pairs(taps: int, pitch: int, dtype: str) -> Sum:
    """x86: weights ``[block][pair of taps][channel][tap]`` in 16 bits, an odd tap with a weight of 0 behind it."""

    def sums(rows: Flat, at: Expr, weights: Flat, place: Expr) -> Expr:
        total = number(0, "int32", CHANNELS)
        for pair in range(-(-taps // 2)):
            first = rows.load(at + 2 * pair * pitch, CHANNELS)
            last = 2 * pair + 1 == taps
            second = number(0, dtype, CHANNELS) if last else rows.load(at + (2 * pair + 1) * pitch, CHANNELS)
            both = T.Bind(cast(shuffle([first, second], _INTERLEAVED), "int16", 2 * CHANNELS))
            w = weights.load(place + pair * (2 * CHANNELS), 2 * CHANNELS)
            total = T.Bind(total + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", both, w))
        return total

    return sums


def _by_taps(taps: int, pitch: int, together: int) -> Sum:
    """Weights ``[block][tap][channel]`` in 8 bits; products of ``together`` taps are added in 16."""

    def product(rows: Flat, at: Expr, weights: Flat, place: Expr, tap: int) -> Expr:
        x = cast(rows.load(at + tap * pitch, CHANNELS), "int16", CHANNELS)
        return x * cast(weights.load(place + tap * CHANNELS, CHANNELS), "int16", CHANNELS)

    def sums(rows: Flat, at: Expr, weights: Flat, place: Expr) -> Expr:
        total = number(0, "int32", CHANNELS)
        for tap in range(0, taps, together):
            part = product(rows, at, weights, place, tap)
            if together == 2 and tap + 1 < taps:
                part = part + product(rows, at, weights, place, tap + 1)
            total = T.Bind(total + cast(T.Bind(part), "int32", CHANNELS))
        return total

    return sums


def _inner(call: KernelCall, weights: np.ndarray, pitch: int) -> tuple[Sum, np.ndarray]:
    """The sum for a call, and weights int8 ``[8·blocks, taps]`` as it wants them."""
    blocks, taps = len(weights) // CHANNELS, weights.shape[1]
    target, dtype = call.target, str(call.inputs[0].dtype)
    if target.arch == "x86_64" and "avx2" in target.features:
        pairs = np.pad(weights, ((0, 0), (0, taps % 2))).reshape(blocks, CHANNELS, -1, 2)
        return _by_pairs(taps, pitch, dtype), np.ascontiguousarray(pairs.swapaxes(1, 2), np.int16)
    together = 2 if dtype == "int8" and weights.min() > -128 else 1
    laid = np.ascontiguousarray(weights.reshape(blocks, CHANNELS, taps).swapaxes(1, 2))
    return _by_taps(taps, pitch, together), laid


def make(call: KernelCall, product: Product, weights: np.ndarray) -> Kernel:
    """The kernel. ``product`` is the convolution as ``int_product`` describes it, ``weights`` int8 ``[C, taps]``."""
    gather = product.gather
    taps, pitch = math.prod(gather.kernel), gather.bytes
    size = taps * pitch
    product = dataclasses.replace(product, window=pitch, segments=[0])
    wide = np.pad(weights, ((0, -len(weights) % CHANNELS), (0, 0)))
    blocks = len(wide) // CHANNELS
    inner, laid = _inner(call, wide, pitch)
    pixels = max(PIXELS, call.target.vector_bytes // 4) if call.epilogue.channels_first else PIXELS
    _, lanes = tiles(product.pixels, pixels)
    most = max(1, min(MOST_PIXELS, ROWS_BYTES // size))
    if work(product) >= 1 << 20:
        most = min(most, max(lanes, -(-product.images * product.pixels // TASKS)))
    each = rows_of_task(product.pixels, lanes, most)
    tasks = -(-product.pixels // each)
    cut = Plan(size, False, lanes, each, tasks, blocks, 1)
    with function(call) as fn:
        source = fn.input(0)
        stored = fn.constant("weights", laid)
        output = IntegerOutput(fn, len(wide), product.pixels)
        with outer_loop(product.images * tasks, work(product)) as task:
            image, row_task = task // tasks, task % tasks
            first = row_task * each
            count = each if product.pixels % each == 0 else tirx.min(each, product.pixels - first)
            # The last block of channels may reach past the last tap: 8 bytes more.
            rows = scratch(min(each, product.pixels) * size + CHANNELS, str(call.inputs[0].dtype))
            emit_rows(product, cut, source, rows, None, None, None, image, first, count, 0)
            with T.serial(0, blocks) as block, T.serial(0, (count + (lanes - 1)) // lanes) as t:
                pixel = T.Bind(tile_start(row_task * (each // lanes) + t, product.pixels, lanes))
                found = [
                    inner(rows, (pixel - first + p) * size + block * CHANNELS, stored, block * (laid[0].size))
                    for p in range(lanes)
                ]
                output.store(Finished(found, [0] * lanes, image, pixel, block))
    return fn.kernel()
