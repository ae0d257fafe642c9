"""Products of 8-bit integers: ``IntegerConv``, ``IntegerGemm``, ``TernaryGemm``, and those with weights rounded at run time.

The work is cut as for bits (``product``): a task gathers the windows of a block of pixels, a byte a term, and runs over
blocks of 8 channels. Where the inner loop (``int_inner``) multiplies 16 bits, rows are widened once a task; weights stay 8
bits in memory and are widened as they are read, once for the pixels of a tile.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import unpack_bits
from ..kernel import Kernel, KernelCall
from . import int_depthwise
from .common import (
    Expr,
    Flat,
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
from .conv import segments_of
from .int_inner import GRAIN, PIXELS, lay_out_codes, row_starts, select, sums
from .outputs import Finished, IntegerOutput
from .product import (
    CHANNELS,
    FEWEST_BLOCKS,
    FEWEST_PIXELS,
    MOST_PIXELS,
    ROWS_BYTES,
    TASK_PIXELS,
    TASKS,
    Gather,
    Plan,
    Product,
    emit_rows,
    rows_of_task,
    work,
)

DECODED = 16
"""Codes of 2 bits that are decoded at once, where the inner loop does not do it."""
_BIT_PRODUCTS = 16
"""Bit operations that an 8-bit product costs about as much as: what ``work`` counts."""


def plan(call: KernelCall, product: Product, length: int) -> Plan:
    """Choose block sizes: as for bits, with rows of 16-bit terms."""
    pixels = max(PIXELS, call.target.vector_bytes // 4) if call.epilogue.channels_first else PIXELS
    _, lanes = tiles(product.pixels, pixels)
    most = max(1, min(MOST_PIXELS, ROWS_BYTES // (2 * length)))
    most = call.knobs.choose("pixels", most, TASK_PIXELS)
    threads = work(product) >= 1 << 20
    if threads:
        most = min(most, max(FEWEST_PIXELS, -(-product.images * product.pixels // TASKS)))
    rows = rows_of_task(product.pixels, lanes, most)
    row_tasks = -(-product.pixels // rows)
    blocks = product.weights.shape[0] // CHANNELS // len(product.segments)
    others = product.images * row_tasks * len(product.segments)
    each = blocks
    if threads and others < TASKS:
        each = max(-(-blocks // -(-TASKS // others)), min(blocks, FEWEST_BLOCKS))
    return Plan(length, False, lanes, rows, row_tasks, each, -(-blocks // each))


def _round_block(source: Flat, target: Flat, place: Expr, size: int, shift: Expr) -> None:
    """``target[:size] = min(round(source[place:] / 2^shift), 2^(7−shift) − 1)``, ties to even."""
    lanes = 16
    one, zero = number(1, "int16", lanes), number(0, "int16", lanes)
    k = T.Bind(broadcast(cast(shift, "int16"), lanes))
    half = T.Bind((one << k) >> one)
    greatest = T.Bind((number(128, "int16", lanes) >> k) - one)
    with T.serial(0, size // lanes) as i:
        w = T.Bind(cast(source.load(place + i * lanes, lanes), "int16", lanes))
        quotient = T.Bind(w >> k)
        rest = T.Bind(w - (quotient << k))
        # With k = 0 there is no rest, and half is 0 as well: a rest of zero is no tie.
        tie = tirx.all(rest == half, rest > zero, (quotient & one) > zero)
        up = tirx.Select(tirx.Or(rest > half, tie), one, zero)
        target.store(i * lanes, cast(tirx.min(quotient + up, greatest), "int8", lanes), lanes)


def _ternary_block(source: Flat, target: Flat, place: Expr, size: int) -> None:
    """``target[:size]`` = the weights whose codes are those from the ``place``-th weight on."""
    lanes = DECODED
    with T.serial(0, size // (4 * lanes)) as i:
        codes = T.Bind(source.load(place // 4 + i * lanes, lanes))
        for j in range(4):
            code = (codes >> number(2 * j, "uint8", lanes)) & number(3, "uint8", lanes)
            target.store(i * 4 * lanes + j * lanes, cast(code, "int8", lanes) - number(1, "int8", lanes), lanes)


def make(call: KernelCall, product: Product, switched: bool, ternary: bool = False) -> Kernel:
    """The kernel of a product with the call's epilogue. ``switched``: input 2 says how far weights are rounded.

    ``ternary``: weights are stored as codes of 2 bits, and decoded once a task and block, or by the inner loop.
    """
    inner = select(call, product.weights, switched, ternary)
    ternary = ternary and not inner.codes
    size = product.weights.shape[1]
    length = -(-size // GRAIN) * GRAIN
    cut = plan(call, product, length)
    segments = list(product.segments)
    blocks = product.weights.shape[0] // CHANNELS // len(segments)
    dtype = str(call.inputs[0].dtype)
    with function(call) as fn:
        source = fn.input(0)
        laid = inner.stored(product.weights, length)
        stored = fn.constant("weights", lay_out_codes(laid, DECODED) if ternary else laid)
        shift = fn.input(2) if switched else None
        starts = fn.constant("starts", np.array(segments, np.int32)) if len(segments) > 1 else None
        output = IntegerOutput(fn, product.weights.shape[0], product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(len(segments) * cut.block_tasks * spans, work(product)) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            segment, block_task = share // cut.block_tasks, share % cut.block_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes
            offset = T.Bind(starts.load(segment)) if starts is not None else segments[0]

            held = min(cut.rows, product.pixels) * length
            gathered = rows = scratch(held, dtype)
            emit_rows(product, cut, source, gathered, None, None, None, image, first, count, offset)
            if inner.row_type != dtype:
                rows = scratch(held, inner.row_type)
                with T.serial(0, count * (length // GRAIN)) as i:
                    rows.store(i * GRAIN, cast(gathered.load(i * GRAIN, GRAIN), "int16", GRAIN), GRAIN)

            starts_of = row_starts(inner, rows, count, min(cut.rows, product.pixels), length)
            rounded = scratch(CHANNELS * length, "int8") if ternary or shift is not None else None
            k = None if shift is None else T.Bind(tirx.min(tirx.max(shift.load(0), 0), 7))
            first_block = block_task * cut.blocks
            share_blocks = cut.blocks if blocks % cut.blocks == 0 else tirx.min(cut.blocks, blocks - first_block)
            with T.serial(0, share_blocks) as b:
                block = T.Bind(segment * blocks + first_block + b)
                weights, place = stored, block * (CHANNELS * length)
                if rounded is not None:
                    if ternary:
                        _ternary_block(stored, rounded, place, CHANNELS * length)
                    else:
                        _round_block(stored, rounded, place, CHANNELS * length, k)
                    weights, place = rounded, 0
                with T.serial(0, tile_count) as t:
                    pixel = T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))
                    found: list[Expr] = []
                    for p in range(0, cut.lanes, PIXELS):
                        many = min(PIXELS, cut.lanes - p)
                        found += sums(inner, weights, place, rows, pixel - first + p, many, length, starts_of)
                    output.store(Finished(found, [0] * cut.lanes, image, pixel, block))
    return fn.kernel()


def widen(weights: np.ndarray, group: int, segments: list[int], window: int) -> np.ndarray:
    """Weights int8 ``[O, taps, C/group]`` placed in their segment's window: ``[8·blocks, taps·window]``, else zeros."""
    out, taps, every = weights.shape
    blocks = -(-out // CHANNELS)
    wide = np.zeros((blocks * CHANNELS, taps, window), np.int8)
    for o in range(out):
        begin = o // (out // group) * every - segments[o // CHANNELS // (blocks // len(segments))]
        wide[o, :, begin : begin + every] = weights[o]
    return wide.reshape(len(wide), -1)


def _conv(call: KernelCall, switched: bool) -> Kernel:
    weights, attrs = constant_input(call, 1, "the weights"), call.attrs
    group = int(attrs["group"])
    images, height, width, channels = call.inputs[0].shape
    out, kh, kw, every = weights.shape
    (sh, sw), (dh, dw), pads = attrs["strides"], attrs["dilations"], tuple(attrs["pads"])
    out_height = (height + pads[0] + pads[2] - dh * (kh - 1) - 1) // sh + 1
    out_width = (width + pads[1] + pads[3] - dw * (kw - 1) - 1) // sw + 1
    segments, window = segments_of(8 * channels, out, group)  # a term is a byte here
    gather = Gather(
        height=height, width=width, bytes=channels, out_width=out_width, kernel=(kh, kw), strides=(sh, sw),
        dilations=(dh, dw), pads=pads,
    )  # fmt: skip
    pixels = out_height * out_width
    if not switched and int_depthwise.suits(call, weights):
        taps = weights.reshape(out, kh * kw)
        return int_depthwise.make(call, _product(images, pixels, gather, window, [0], taps), taps)
    wide = widen(weights.reshape(out, kh * kw, every), group, segments, window)
    return make(call, _product(images, pixels, gather, window, segments, wide), switched)


def _gemm(call: KernelCall, weights: np.ndarray, switched: bool = False, ternary: bool = False) -> Kernel:
    size = weights.shape[1]
    rows = elements(call.inputs[0]) // size
    images = call.inputs[0].shape[0] if call.epilogue.channels_first else 1
    pixels = rows // images
    gather = Gather(height=1, width=pixels, bytes=size, out_width=pixels)
    wide = np.pad(weights, ((0, -len(weights) % CHANNELS), (0, 0)))
    return make(call, _product(images, pixels, gather, size, [0], wide), switched, ternary)


def _product(images: int, pixels: int, gather: Gather, window: int, segments: list[int], wide: np.ndarray) -> Product:
    return Product(
        images=images, pixels=pixels, gather=gather, window=window, segments=segments, weights=wide, masks=None,
        corrections=np.zeros((1, len(wide)), np.int32), bits=_BIT_PRODUCTS * math.prod(wide.shape[1:]),
    )  # fmt: skip


def integer_conv(call: KernelCall) -> Kernel:
    """``IntegerConv`` with its epilogue."""
    return _conv(call, False)


def integer_gemm(call: KernelCall) -> Kernel:
    """``IntegerGemm`` with its epilogue."""
    return _gemm(call, constant_input(call, 1, "the weights"))


def ternary_gemm(call: KernelCall) -> Kernel:
    """``TernaryGemm`` with its epilogue."""
    k = int(call.attrs["k"])
    plus, minus = (unpack_bits(plane, k) for plane in constant_input(call, 1, "the weights"))
    return _gemm(call, plus.astype(np.int8) - minus, ternary=True)


def switched_conv(call: KernelCall) -> Kernel:
    """``SwitchedConv`` with its epilogue."""
    return _conv(call, True)


def switched_gemm(call: KernelCall) -> Kernel:
    """``SwitchedGemm`` with its epilogue."""
    return _gemm(call, constant_input(call, 1, "the weights"), switched=True)
