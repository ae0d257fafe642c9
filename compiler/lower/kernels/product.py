"""The engine under ``BinaryConv`` and ``BinaryGemm``: rows of bytes of pixels against rows of bytes of channels.

A task takes a block of pixels of one image and some of the output channels. It first gathers, for each pixel, the bytes
that its window covers into one contiguous row, padded to what the micro-kernel reads (``Gather``; rows that already lie
so are read in place). Then, for each block of 8 channels, it counts differing bits tile by tile and hands the counts to
the epilogue. Weights of a block are thus read once a task and stay in the first-level cache, and so do the rows.

Padding is part of the row: zero bits (or ones). Where a padded position must add nothing, it is a matter of the
``corrections`` alone: a zero bit differs from exactly the weight bits that are one, which is known at compile time. So
there is one correction for each border class and channel, and the inner loop never sees a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from . import micro as micros
from .common import (
    PARALLEL_WORK,
    Expr,
    Flat,
    Function,
    cast,
    copy_bytes,
    function,
    outer_loop,
    scratch,
    tile_start,
    tiles,
)
from .outputs import Finished, Output
from .twin import Twin

CHANNELS = micros.CHANNELS
ROWS_BYTES = 16 << 10
"""Gathered rows of a task: half of the smallest first-level cache; the other half is for the weights."""
SMALL_WEIGHTS = 12 << 10
"""Weights of a task that stay in the first-level cache beside the rows: then its tiles are the outer loop."""
MOST_PIXELS = 64
TASK_PIXELS = (8, 16, 32, 64, 128)
"""Other choices for the pixels of a task."""
FEWEST_PIXELS = 16
"""Pixels that a task keeps when threads share the work, so that a block of weights is not read for too few."""
TASKS = 16
"""Tasks worth having when threads share the work: four for each of four cores."""
FEWEST_BLOCKS = 8
"""Blocks of channels that a task keeps, so that gathering stays a small part of its work."""


@dataclass(frozen=True)
class Gather:
    """Which bytes of an image ``[height, width, bytes]`` make a pixel's row: those of its window, tap by tap.

    ``fill``: the bytes of a padded position, or None for zeros. ``row_class`` and ``column_class`` number the border
    classes of the output's rows and columns (None: there is one class).
    """

    height: int
    width: int
    bytes: int
    out_width: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: np.ndarray | None = None
    row_class: np.ndarray | None = None
    column_class: np.ndarray | None = None


@dataclass(frozen=True)
class Product:
    """What to compute. Channels are in blocks of 8; ``segments`` share the blocks equally, in order.

    A segment reads the same ``window`` bytes of every position, from byte ``segments[i]`` on. ``weights`` (and ``masks``,
    where not every bit of the window counts for a channel) are uint8 ``[8·blocks, taps·window]``; ``corrections`` int32
    ``[classes, 8·blocks]``; ``bits`` is the largest possible count.
    """

    images: int
    pixels: int
    gather: Gather
    window: int
    segments: Sequence[int]
    weights: np.ndarray
    masks: np.ndarray | None
    corrections: np.ndarray
    bits: int


@dataclass(frozen=True)
class Plan:
    """How the work is cut: ``rows`` pixels and ``blocks`` channel blocks a task, ``row_bytes`` a row, tiles of ``lanes``."""

    row_bytes: int
    in_place: bool
    lanes: int
    rows: int
    row_tasks: int
    blocks: int
    block_tasks: int


def rows_of_task(pixels: int, lanes: int, most: int) -> int:
    """Pixels of a task: a multiple of the tile, such that the last task has none or at least one whole tile.

    The last tile of an image is moved back to end with it; so it must find enough pixels inside its own task.
    """
    whole, rest = divmod(pixels, lanes)
    most = max(1, most // lanes)
    if whole + (rest > 0) <= most:
        return (whole + (rest > 0)) * lanes
    good = [n for n in (*range(most, 0, -1), *range(most + 1, whole + 1)) if not rest or whole % n]
    return (good[0] if good else whole + 1) * lanes


WIDER = 1.05
"""How much faster a pixel is in a tile twice as wide, where a machine has both."""


def pixels_of_tile(call: KernelCall, micro: micros.Micro, pixels: int) -> int:
    """Pixels (of ``pixels``) that are stored together: those of one micro-kernel, or enough for whole vectors where they lie
    in a row. The last tile of an image overlaps: narrower ones are better where they compute much less twice."""
    widest = micro.pixels
    while widest > 4 and -(-pixels // widest) * widest > WIDER * (-(-pixels // (widest // 2)) * (widest // 2)):
        widest //= 2
    return max(widest, call.target.vector_bytes // 4) if call.epilogue.channels_first else widest


def plan(call: KernelCall, product: Product, micro: micros.Micro, planes: int = 1) -> Plan:
    """Choose block sizes. ``planes``: rows that a pixel has."""
    size = product.weights.shape[1]
    gather = product.gather
    plain = (
        product.window == gather.bytes
        and gather.kernel == (1, 1)
        and gather.strides == (1, 1)
        and not any(gather.pads)
        and len(product.segments) == 1
    )
    in_place = plain and size % micro.grain == 0
    row_bytes = -(-size // micro.grain) * micro.grain
    _, lanes = tiles(product.pixels, pixels_of_tile(call, micro, product.pixels))
    most = min(MOST_PIXELS, ROWS_BYTES // (row_bytes * planes))
    most = call.knobs.choose("pixels", most, TASK_PIXELS)
    threads = work(product) >= PARALLEL_WORK
    if threads:
        most = min(most, max(FEWEST_PIXELS, -(-product.images * product.pixels // TASKS)))
    rows = rows_of_task(product.pixels, lanes, most)
    row_tasks = -(-product.pixels // rows)
    blocks = product.weights.shape[0] // CHANNELS // len(product.segments)
    others = product.images * row_tasks * len(product.segments)
    each = blocks
    if threads and others < TASKS:
        each = max(-(-blocks // -(-TASKS // others)), 1 if in_place else min(blocks, FEWEST_BLOCKS))
    return Plan(row_bytes, in_place, lanes, rows, row_tasks, each, -(-blocks // each))


def threaded() -> int:
    """Work from which threads share it."""
    return PARALLEL_WORK


def work(product: Product) -> int:
    """Bit products."""
    return product.images * product.pixels * product.weights.shape[0] * product.bits


def class_tables(fn: Function, gather: Gather, corrections: np.ndarray) -> tuple[Flat, Flat] | None:
    """The border class of each output row (times the classes of columns) and column; None where there is one class."""
    if gather.row_class is None or gather.column_class is None or corrections.shape[0] <= 1:
        return None
    columns = int(gather.column_class.max()) + 1
    dtype = np.uint8 if corrections.shape[0] <= 256 else np.int32
    return (
        fn.constant("row_class", (gather.row_class * columns).astype(dtype)),
        fn.constant("column_class", gather.column_class.astype(dtype)),
    )


def emit_rows(product: Product, cut: Plan, source: Flat, rows: Flat, fill: Flat | None, classes: Flat | None,
              tables: tuple[Flat, Flat] | None, image: Expr, first: Expr, count: Expr, offset: Expr,
              start: Expr = 0) -> None:  # fmt: skip
    """Gather ``count`` pixels from ``first`` on into ``rows`` from ``start`` on, and their border classes into ``classes``."""
    gather = product.gather
    (kh, kw), (sh, sw), (dh, dw) = gather.kernel, gather.strides, gather.dilations
    top, left, _, _ = gather.pads
    window = product.window

    with T.serial(0, count) as i:
        pixel = first + i
        out_row, out_column = T.Bind(pixel // gather.out_width), T.Bind(pixel % gather.out_width)
        row, column = out_row * sh - top, out_column * sw - left
        place = start + i * cut.row_bytes

        def position(y: Expr, x: Expr) -> Expr:
            return ((image * gather.height + y) * gather.width + x) * gather.bytes + offset

        def inside(place: Expr = place, row: Expr = row, column: Expr = column) -> None:
            with T.serial(0, kh) as y:
                if dw == 1 and window == gather.bytes:  # the taps of a row lie side by side
                    copy_bytes(rows, place + y * kw * window, source, position(row + y * dh, column), kw * window)
                else:
                    with T.serial(0, kw) as x:
                        at = position(row + y * dh, column + x * dw)
                        copy_bytes(rows, place + (y * kw + x) * window, source, at, window)

        def border(place: Expr = place, row: Expr = row, column: Expr = column) -> None:
            with T.serial(0, kh) as y, T.serial(0, kw) as x:
                at_row, at_column = row + y * dh, column + x * dw
                target = place + (y * kw + x) * window
                known = tirx.all(at_row >= 0, at_row < gather.height, at_column >= 0, at_column < gather.width)
                with T.If(known):
                    with T.Then():
                        copy_bytes(rows, target, source, position(at_row, at_column), window)
                    with T.Else():
                        copy_bytes(rows, target, fill, offset, window)

        if any(gather.pads):
            last_row, last_column = row + (kh - 1) * dh, column + (kw - 1) * dw
            with T.If(tirx.all(row >= 0, column >= 0, last_row < gather.height, last_column < gather.width)):
                with T.Then():
                    inside()
                with T.Else():
                    border()
        else:
            inside()
        if classes is not None and tables is not None:
            row_class, column_class = (
                cast(t.load(at), "int32") for t, at in zip(tables, (out_row, out_column), strict=True)
            )
            classes.store(i, row_class + column_class)
        used = kh * kw * window
        if used < cut.row_bytes:
            copy_bytes(rows, place + used, None, 0, cut.row_bytes - used)


def make(call: KernelCall, product: Product) -> Kernel:
    """The kernel of a product with the call's epilogue."""
    from . import table_product  # it is built of this module's parts

    if table_product.suits(call, product):
        return table_product.make(call, product)
    steps = product.weights.shape[1] // micros.STEP
    micro = micros.select_for(call.target, steps, call.epilogue.kind == "bits", call.knobs)
    cut = plan(call, product, micro)
    total = micro.total(product.bits)
    gather = product.gather
    segments = list(product.segments)
    blocks = product.weights.shape[0] // CHANNELS // len(segments)
    block_bytes = CHANNELS * cut.row_bytes
    tiles_first = micro.streams or cut.blocks * block_bytes <= SMALL_WEIGHTS
    with function(call) as fn:
        source = fn.input(0)
        weights = fn.constant("weights", micros.lay_out(product.weights, cut.row_bytes, micro.unit))
        masks = None
        if product.masks is not None:
            masks = fn.constant("masks", micros.lay_out(product.masks, cut.row_bytes, micro.unit))
        starts = fn.constant("starts", np.array(segments, np.int32)) if len(segments) > 1 else None
        fill = None if gather.fill is None else fn.constant("fill", gather.fill)
        tables = class_tables(fn, gather, product.corrections)
        twin = Twin(fn, product, source)
        output = Output(fn, product.corrections, product.bits, total, product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(len(segments) * cut.block_tasks * spans, work(product)) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            segment, block_task = share // cut.block_tasks, share % cut.block_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes
            offset = T.Bind(starts.load(segment)) if starts is not None else segments[0]

            rows, classes = source, None
            if not cut.in_place:
                rows = scratch(min(cut.rows, product.pixels) * cut.row_bytes, "uint8")
                classes = None if tables is None else scratch(min(cut.rows, product.pixels), "int32")

            first_block = block_task * cut.blocks
            share_blocks = cut.blocks if blocks % cut.blocks == 0 else tirx.min(cut.blocks, blocks - first_block)

            def start(t: Expr, row_task: Expr = row_task) -> Expr:
                """First pixel of a tile."""
                return T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))

            def pixels_of(t: Expr, first: Expr = first) -> tuple[Expr, list[Expr]]:
                """First pixel of a tile, and the classes of its pixels."""
                pixel = start(t)
                at = [classes.load(pixel - first + p) if classes else 0 for p in range(cut.lanes)]
                return pixel, [T.Bind(c) if classes else c for c in at]

            start_block = segment * blocks + first_block

            def take() -> None:
                with T.serial(0, share_blocks) as b, T.serial(0, tile_count) as t:
                    output.store(Finished([None] * cut.lanes, [], image, start(t), start_block + b))

            def tile_of(block: Expr, pixel: Expr, at: list[Expr], image: Expr = image, first: Expr = first) -> None:
                base = image * product.pixels + pixel if cut.in_place else pixel - first
                counts: list[Expr] = []
                for p in range(0, cut.lanes, micro.pixels):
                    places = [(base + p + i) * cut.row_bytes for i in range(min(micro.pixels, cut.lanes - p))]
                    tile = micros.Tile(rows, places, weights, masks, block * block_bytes, cut.row_bytes)
                    counts += micros.count(micro, tile, product.bits)
                output.store(Finished(counts, at, image, pixel, block))

            def row_of(first_block: Expr, count: Expr, image: Expr = image, first: Expr = first) -> None:
                """One pixel against ``count`` blocks, several at a time."""
                pixel, at = pixels_of(0)
                place = (image * product.pixels + pixel if cut.in_place else pixel - first) * cut.row_bytes

                def some(block: Expr, together: int) -> None:
                    tile = [
                        micros.Tile(rows, [place], weights, masks, (block + i) * block_bytes, cut.row_bytes)
                        for i in range(together)
                    ]
                    for i, counted in enumerate(micros.count_blocks(micro, tile, product.bits)):
                        output.store(Finished([counted], at, image, pixel, block + i))

                with T.serial(0, count // micro.blocks) as b:
                    some(first_block + b * micro.blocks, micro.blocks)
                with T.serial(0, count % micro.blocks) as b:
                    some(first_block + (count - count % micro.blocks) + b, 1)

            def compute() -> None:
                if not cut.in_place:
                    emit_rows(product, cut, source, rows, fill, classes, tables, image, first, count, offset)
                if cut.lanes == 1 and micro.blocks > 1:
                    row_of(start_block, share_blocks)
                elif call.knobs.choose("tiles_first", int(tiles_first), (0, 1)):
                    with T.serial(0, tile_count) as t:
                        pixel, at = pixels_of(t)
                        with T.serial(0, share_blocks) as b:
                            tile_of(start_block + b, pixel, at)
                else:
                    with T.serial(0, share_blocks) as b, T.serial(0, tile_count) as t:
                        pixel, at = pixels_of(t)
                        tile_of(start_block + b, pixel, at)

            twin.either(image, first, count, take, compute)
    # Every pixel is computed once where tiles do not overlap; a residual is then read just before its sum is written.
    once = product.pixels % cut.lanes == 0
    return fn.kernel(in_place=output.residuals() if once else ())
