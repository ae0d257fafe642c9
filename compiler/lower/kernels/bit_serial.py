"""``BitSerialConv`` and ``BitSerialGemm``: the binary product once for each pair of planes, added with coefficients.

The rows of all planes of a task's pixels are gathered first, and weights lie plane after plane, so the micro-kernels of the
binary product do all the counting. For weights that are {0, 1} bits they count bits that both have: ``x·w`` is that
count. For bases of ±1 they count bits that differ, D: with W the bits that a weight plane has,
``Σ x·(2w − 1) = 2·(x&w) − x = W − D``, so that −D is added and W is a constant. A padded position has zero bits: it adds
nothing to ``x&w``, and to W − D nothing either. Only an offset of x needs a correction by border class.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import unpack_bits
from ...opset.bit_serial import weight_values
from ..kernel import Kernel, KernelCall
from . import micro as micros
from .common import Expr, broadcast, cast, constant_input, function, number, outer_loop, scratch, tile_start
from .conv import border_classes, segments_of, widen
from .outputs import Finished, Output
from .product import CHANNELS, Gather, Product, class_tables, emit_rows, plan, work


@dataclasses.dataclass(frozen=True)
class Serial:
    """A product of bit planes. ``product.weights`` are those of the first plane, ``weights`` (and ``masks``) of all:
    uint8 ``[m, 8·blocks, taps·window]``. ``factors``: int32 ``[n, m]``, what a count of planes i and j is worth."""

    product: Product
    weights: np.ndarray
    masks: np.ndarray | None
    factors: np.ndarray
    common: bool
    """Whether bits are counted that both have, not those that differ."""


class Sums(Output):
    """An output whose counts are int32 sums: the accumulator is ``correction + sum``."""

    def _limits(self, corrections: np.ndarray, threshold: np.ndarray, bits: int) -> np.ndarray:
        """``correction + sum >= threshold`` is the same as ``sum >= limit``; the tail's limit is out of reach."""
        limit = threshold.astype(np.int64) - corrections[:, : self.channels].astype(np.int64)
        ends, tail = np.iinfo(np.int32), ((0, 0), (0, self.width - self.channels))
        return np.pad(np.clip(limit, ends.min, ends.max).astype(np.int32), tail, constant_values=ends.max)

    def _fires(self, count: Expr, limit: Expr) -> Expr:
        return count >= limit

    def _accumulators(self, tile: Finished) -> list[Expr]:
        return [T.Bind(self._correction(tile, p) + found) for p, found in enumerate(tile.counts)]


def make(call: KernelCall, serial: Serial) -> Kernel:
    """The kernel with the call's epilogue. Its structure is that of ``product.make``, with loops over planes inside."""
    product, (n, m) = serial.product, serial.factors.shape
    micro = micros.select(call.target)
    # The work of all pairs of planes decides about threads.
    cut = plan(call, dataclasses.replace(product, bits=product.bits * n * m), micro, n)
    gather, segments = product.gather, list(product.segments)
    blocks = product.weights.shape[0] // CHANNELS // len(segments)
    block_bytes = CHANNELS * cut.row_bytes
    every_block = blocks * len(segments)
    pixels_of_plane = product.images * product.pixels
    most = min(cut.rows, product.pixels)

    def laid_out(planes: np.ndarray) -> np.ndarray:
        return np.stack([micros.lay_out(plane, cut.row_bytes, micro.unit) for plane in planes])

    with function(call) as fn:
        source = fn.input(0)
        weights = fn.constant("weights", laid_out(serial.weights))
        masks = None if serial.masks is None else fn.constant("masks", laid_out(serial.masks))
        factors = fn.constant("factors", serial.factors.astype(np.int32))
        starts = fn.constant("starts", np.array(segments, np.int32)) if len(segments) > 1 else None
        tables = class_tables(fn, gather, product.corrections)
        output = Sums(fn, product.corrections, product.bits, "uint32", product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(len(segments) * cut.block_tasks * spans, work(product) * n * m) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            segment, block_task = share // cut.block_tasks, share % cut.block_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes
            offset = T.Bind(starts.load(segment)) if starts is not None else segments[0]

            rows, classes = source, None
            if not cut.in_place:
                rows = scratch(n * most * cut.row_bytes, "uint8")
                classes = None if tables is None else scratch(most, "int32")
                with T.serial(0, n) as i:
                    emit_rows(
                        product, cut, source, rows, None, classes, tables, image + i * product.images, first, count,
                        offset, i * (most * cut.row_bytes),
                    )  # fmt: skip

            first_block = block_task * cut.blocks
            share_blocks = cut.blocks if blocks % cut.blocks == 0 else tirx.min(cut.blocks, blocks - first_block)
            with T.serial(0, share_blocks) as b, T.serial(0, tile_count) as t:
                block = segment * blocks + first_block + b
                pixel = T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))
                base = image * product.pixels + pixel if cut.in_place else pixel - first
                sums = scratch(CHANNELS * cut.lanes, "int32")
                for p in range(cut.lanes):
                    sums.store(p * CHANNELS, number(0, "int32", CHANNELS), CHANNELS)
                with T.serial(0, n) as i, T.serial(0, m) as j:
                    plane = i * (pixels_of_plane if cut.in_place else most)
                    place = (j * every_block + block) * block_bytes
                    factor = T.Bind(factors.load(i * m + j))
                    for p in range(0, cut.lanes, micro.pixels):
                        places = [
                            (plane + base + p + q) * cut.row_bytes for q in range(min(micro.pixels, cut.lanes - p))
                        ]
                        tile = micros.Tile(rows, places, weights, masks, place, cut.row_bytes, serial.common)
                        for q, found in enumerate(micros.count(micro, tile, product.bits)):
                            more = cast(found, "int32", CHANNELS) * broadcast(factor, CHANNELS)
                            at = (p + q) * CHANNELS
                            sums.store(at, sums.load(at, CHANNELS) + more, CHANNELS)
                totals: list[Expr] = [sums.load(p * CHANNELS, CHANNELS) for p in range(cut.lanes)]
                at_class = [0 if classes is None else classes.load(pixel - first + p) for p in range(cut.lanes)]
                output.store(Finished(totals, at_class, image, pixel, block))
    return fn.kernel()


def _factors(call: KernelCall) -> np.ndarray:
    """What a count of planes i and j is worth: int64 ``[n, m]``."""
    factors = np.outer(np.asarray(call.attrs["x_coeffs"], np.int64), np.asarray(call.attrs["w_coeffs"], np.int64))
    return -factors if call.attrs["bipolar"] else factors


def _constant_part(call: KernelCall, ones: np.ndarray) -> np.ndarray:
    """What the bases add whatever the input: Σ x_coeffs · Σ w_coeffs·W, int64 ``[8·blocks]``; ``ones``: W ``[m, 8·blocks]``."""
    if not call.attrs["bipolar"]:
        return np.zeros(ones.shape[1], np.int64)
    return int(sum(call.attrs["x_coeffs"])) * (np.asarray(call.attrs["w_coeffs"], np.int64) @ ones)


def bit_serial_conv(call: KernelCall) -> Kernel:
    """``BitSerialConv`` with its epilogue."""
    weights, attrs = constant_input(call, 1, "the weights"), call.attrs
    channels, group, shift = int(attrs["channels"]), int(attrs["group"]), int(attrs["x_offset"])
    (sh, sw), (dh, dw), pads = attrs["strides"], attrs["dilations"], tuple(attrs["pads"])
    _, images, height, width, size = call.inputs[0].shape
    _, out, kh, kw, _ = weights.shape
    out_height = (height + pads[0] + pads[2] - dh * (kh - 1) - 1) // sh + 1
    out_width = (width + pads[1] + pads[3] - dw * (kw - 1) - 1) // sw + 1
    every, taps = channels // group, kh * kw

    segments, window = segments_of(channels, out, group)
    placed = [widen(plane, channels, group, segments, window) for plane in weights]
    wide, mask = np.stack([w for w, _ in placed]), placed[0][1]
    ones = np.bitwise_count(wide).sum(-1, dtype=np.int64)
    fixed = _constant_part(call, ones)
    row_class = column_class = None
    if shift:
        row_inside, row_class = border_classes(height, out_height, kh, sh, dh, pads[0])
        column_inside, column_class = border_classes(width, out_width, kw, sw, dw, pads[1])
        inside = (row_inside[:, None, :, None] & column_inside[None, :, None, :]).reshape(-1, taps)
        values = weight_values(unpack_bits(weights, every), attrs).sum(-1).reshape(out, taps)
        padded = np.pad(values, ((0, wide.shape[1] - out), (0, 0)))
        corrections = fixed + shift * (inside.astype(np.int64) @ padded.T)
    else:
        corrections = fixed[None]
    needs_mask = bool(attrs["bipolar"]) and group > 1 and not (every % 8 == 0 and window * 8 == every)
    gather = Gather(
        height=height, width=width, bytes=size, out_width=out_width, kernel=(kh, kw), strides=(sh, sw),
        dilations=(dh, dw), pads=pads, row_class=row_class, column_class=column_class,
    )  # fmt: skip
    product = Product(
        images=images, pixels=out_height * out_width, gather=gather, window=window, segments=segments, weights=wide[0],
        masks=None, corrections=corrections.astype(np.int32), bits=every * taps,
    )  # fmt: skip
    masks = np.broadcast_to(mask, wide.shape) if needs_mask else None
    return _fastest(call, Serial(product, wide, masks, _factors(call), not attrs["bipolar"]), fixed)


def _fastest(call: KernelCall, serial: Serial, fixed: np.ndarray) -> Kernel:
    """By lookups, on bits plane by plane, or on integers, whichever costs less; ``fixed`` is what only bits need added."""
    from . import decoded_product, plane_tables

    if plane_tables.suits(call, serial):
        return plane_tables.make(call, serial)
    if serial.masks is None and decoded_product.suits(call, serial.product, serial.factors.shape):
        return decoded_product.make(call, serial, serial.product.corrections - fixed)
    return make(call, serial)


def bit_serial_gemm(call: KernelCall) -> Kernel:
    """``BitSerialGemm`` with its epilogue. Bits that do not count are zero in both operands: neither common nor different."""
    weights, attrs = constant_input(call, 1, "the weights"), call.attrs
    lead, size = call.inputs[0].shape[1:-1], call.inputs[0].shape[-1]
    images = lead[0] if call.epilogue.channels_first else 1
    rows = math.prod(lead) // images
    padding = -weights.shape[1] % CHANNELS
    wide = np.pad(weights, ((0, 0), (0, padding), (0, 0)))
    ones = np.bitwise_count(wide).sum(-1, dtype=np.int64)
    k = int(attrs["k"])
    counted = 2 * ones - k if attrs["bipolar"] else ones
    shift = int(attrs["x_offset"]) * (np.asarray(attrs["w_coeffs"], np.int64) @ counted)
    product = Product(
        images=images, pixels=rows, gather=Gather(height=1, width=rows, bytes=size, out_width=rows), window=size,
        segments=[0], weights=wide[0], masks=None, corrections=(_constant_part(call, ones) + shift)[None].astype(np.int32),
        bits=k,
    )  # fmt: skip
    serial = Serial(product, wide, None, _factors(call), not attrs["bipolar"])
    return _fastest(call, serial, _constant_part(call, ones))
