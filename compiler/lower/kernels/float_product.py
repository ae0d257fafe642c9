"""``FloatProduct``: float32 convolutions and matrix products, as one product of rows and columns.

``out[b, m, n] = bias + Σ_k rows[b, m, k] · columns[b, k, n]``. For a convolution the rows are the weights, one a channel,
the columns the windows of the input, one a pixel: vectors run along the pixels, so that NCHW is read and written as it
lies. For ``x @ W`` the rows are those of ``x`` and the columns those of ``W``, laid out at compile time (``lay_out``).

A micro-kernel keeps a tile of a few rows and a few vectors of columns in registers and walks k. A task first copies the
columns that it needs into panels (a panel: the k values of one tile's columns, side by side), unless they are laid out
so already; a block of rows then meets all panels of the task while it lies in the first-level cache. Every output is one
sum over ascending k that starts at the bias; LLVM fuses its products and additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...targets import Target
from ..kernel import Kernel, KernelCall
from .common import (
    PARALLEL_WORK,
    PER_ELEMENT,
    Expr,
    Flat,
    broadcast,
    function,
    intrinsic,
    number,
    outer_loop,
    pieces,
    scratch,
    shuffle,
    tile_start,
)
from .float_finish import Finish

PANELS = (16, 8)
"""Columns that ``lay_out`` may put side by side, on every target: multiples of every vector."""
TASK_BYTES = 64 << 10
"""Panels of a task: a part of the smallest second-level cache, as every thread has its own."""
TASKS = 16
"""Tasks worth having when threads share the work: four for each of four cores."""
FEWEST_TASKS = 8
"""Tasks to have even where that means to gather the same columns for several tasks."""
GATHERED = 8
"""Windows gathered together: of more, too few lie inside the image from the first to the last."""
WIDE = 16
"""Numbers in a register of AVX-512."""


@dataclass(frozen=True)
class Window:
    """How columns are read from an image ``[channels, height, width]``: a column is the window of one output pixel."""

    channels: int
    height: int
    width: int
    out_width: int
    kernel: Sequence[int] = (1, 1)
    strides: Sequence[int] = (1, 1)
    dilations: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)

    @property
    def plain(self) -> bool:
        """Whether column n is element n of every channel."""
        return tuple(self.kernel) == (1, 1) and tuple(self.strides) == (1, 1) and not any(self.pads)


@dataclass(frozen=True)
class Tile:
    """The registers of a micro-kernel: ``rows`` × ``vectors`` of ``lanes``."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return self.vectors * self.lanes


def tile_of(call: KernelCall, rows: int, columns: int, panel: int | None = None) -> Tile:
    """The shipped tile, or what was chosen in its place: any shape whose sums fit the registers. ``panel``: columns side by
    side, where they are laid out."""
    shipped = choose_tile(call.target, rows, columns)
    if rows <= 2:
        return shipped
    registers = 28 if call.target.arch == "aarch64" else 14
    if "avx512f" in call.target.features and columns >= WIDE and (panel is None or panel % WIDE == 0):
        shipped, registers = wide_tile(rows, columns), 28
    others = [count for count in (1, 2, 3, 4) if (count - 1) * shipped.lanes < columns]
    vectors = call.knobs.choose("vectors", shipped.vectors, others)
    most = registers // vectors
    height = call.knobs.choose("rows", min(shipped.rows, most), [r for r in range(2, most + 1) if r <= rows])
    return Tile(height, vectors, shipped.lanes)


def wide_tile(rows: int, columns: int) -> Tile:
    """The tile of AVX-512: 24 of 32 registers are sums, 3 columns; a row's value is an operand in memory."""
    fewest = min(range(min(8, rows) // 2 + 1, min(8, rows) + 1), key=lambda size: -(-rows // size) * (size + 2))
    return Tile(fewest, min(3, -(-columns // WIDE)), WIDE)


def choose_tile(target: Target, rows: int, columns: int) -> Tile:
    """The tile with the fewest wasted rows, among those that fill the registers but do not spill.

    AVX2 has 16 registers: 12 sums, 2 vectors of columns, one row's value. 64-bit Arm has 32: 16 sums, 4 vectors of
    columns, and 4 of rows, whose lanes are operands; 32-bit Arm has 16: 8 sums. One or two rows (a classifier at batch
    1) are bound by memory and by the latency of an addition: there are more columns instead.
    """
    lanes = max(4, target.vector_bytes // 4)
    needed = -(-columns // lanes)
    if rows <= 2:
        return Tile(rows, min(needed, (32 if lanes == 4 and rows == 1 else 32 * 2 // rows) // lanes), lanes)
    vectors = 4 if target.arch == "aarch64" else 2
    most = 6 if lanes == 8 else 4
    # Of tiles that cost the same the smaller wastes fewer rows.
    fewest = min(range(min(most, rows) // 2 + 1, min(most, rows) + 1), key=lambda size: -(-rows // size) * (size + 2))
    return Tile(fewest, min(vectors, needed), lanes)


def panel_width(columns: int) -> int:
    """Columns side by side of a matrix of so many: what leaves the fewest places of the last panel empty."""
    return min(PANELS, key=lambda width: -columns % width)


def lay_out(columns: np.ndarray) -> np.ndarray:
    """``[k, n]`` → ``[panels, k, panel_width(n)]``, with zeros for the columns that are not there."""
    depth, count = columns.shape
    width = panel_width(count)
    padded = np.zeros((depth, -(-count // width) * width), np.float32)
    padded[:, :count] = columns
    return np.ascontiguousarray(padded.reshape(depth, -1, width).transpose(1, 0, 2))


def panel_places(product: Product, column: Expr) -> list[Expr]:
    """Where the vectors of the tile at ``column`` begin in panels that are laid out."""
    width, places = panel_width(product.columns), []
    for v in range(product.tile.vectors):
        at = column + v * product.tile.lanes
        places.append(at // width * (width * product.depth) + at % width)
    return places


@dataclass(frozen=True)
class Product:
    """Sizes of ``out[batch, rows, columns]``. Batch b reads rows matrix (and row bias) ``b % row_batches``.

    ``window`` is None where the columns are laid out at compile time (and there is one batch).
    """

    batch: int
    row_batches: int
    rows: int
    columns: int
    depth: int
    window: Window | None
    tile: Tile

    @property
    def tiles(self) -> int:
        """Whole tiles of columns."""
        return self.columns // self.tile.columns

    @property
    def rest(self) -> int:
        """Columns left over by whole tiles."""
        return self.columns % self.tile.columns


def load_columns(source: Flat, place: Expr, lanes: int, stride: int) -> Expr:
    """``lanes`` elements, ``stride`` apart. Every second one: out of two plain loads that do not read past the last."""
    if stride != 2 or lanes == 1:
        return source.load(place, lanes, stride)
    half = lanes // 2
    low, high = source.load(place, lanes), source.load(place + (lanes - 1), lanes)
    return shuffle([low, high], [2 * i for i in range(half)] + [lanes + 1 + 2 * i for i in range(half)])


def gather(product: Product, window: Window, source: Flat, image: Expr, first: Expr, count: int, panel: Flat,
           place: Expr) -> None:  # fmt: skip
    """Copy ``count`` columns from ``first`` on into the panel at ``place``; what remains of its last vector is zero."""
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    top, left = window.pads[:2]
    width, pitch, size = window.width, product.tile.columns, window.height * window.width
    taps = kh * kw
    base = image * (window.channels * size)

    if window.plain:
        with T.serial(0, window.channels) as c:
            for shift, lanes in pieces(count, product.tile.lanes):
                panel.store(place + c * pitch + shift, source.load(base + c * size + first + shift, lanes), lanes)
    else:
        widest = min(GATHERED if window.out_width % GATHERED == 0 else 4, product.tile.lanes)

        def inside(at: Expr, row: Expr, column: Expr, lanes: int) -> None:
            with T.serial(0, window.channels) as c, T.serial(0, kh) as y, T.serial(0, kw) as x:
                start = base + c * size + (row + y * dh) * width + column + x * dw
                panel.store(at + (c * taps + y * kw + x) * pitch, load_columns(source, start, lanes, sw), lanes)

        def border(at: Expr, pixel: Expr, row: Expr, column: Expr, lanes: int, alone: Expr) -> None:
            """Tap by tap: a vector where it is inside for all ``lanes`` pixels, which share a row if ``alone``."""
            with T.serial(0, kh) as y, T.serial(0, kw) as x:
                at_row, at_column = row + y * dh, column + x * dw
                target = at + (y * kw + x) * pitch
                here = [at_row >= 0, at_row < window.height, at_column >= 0, at_column + (lanes - 1) * sw < width]
                with T.If(tirx.all(alone, *here)):
                    with T.Then(), T.serial(0, window.channels) as c:
                        start = base + c * size + at_row * width + at_column
                        panel.store(target + c * taps * pitch, load_columns(source, start, lanes, sw), lanes)
                    with T.Else(), T.serial(0, lanes) as i:
                        this_row = T.Bind((pixel + i) // window.out_width * sh - top + y * dh)
                        this_column = T.Bind((pixel + i) % window.out_width * sw - left + x * dw)
                        tests = [this_row >= 0, this_row < window.height, this_column >= 0, this_column < width]
                        with T.If(tirx.all(*tests)):
                            with T.Then(), T.serial(0, window.channels) as c:
                                start = base + c * size + this_row * width + this_column
                                panel.store(target + i + c * taps * pitch, source.load(start))
                            with T.Else(), T.serial(0, window.channels) as c:
                                panel.store(target + i + c * taps * pitch, number(0, "float32"))

        def group(at: Expr, pixel: Expr, lanes: int) -> None:
            place = T.Bind(pixel % window.out_width)
            column, row = T.Bind(place * sw - left), T.Bind(pixel // window.out_width * sh - top)
            alone = place + lanes <= window.out_width
            tests = [row >= 0, row + (kh - 1) * dh < window.height, column >= 0,
                     column + (lanes - 1) * sw + (kw - 1) * dw < width]  # fmt: skip
            with T.If(tirx.all(alone, *tests)):
                with T.Then():
                    inside(at, row, column, lanes)
                with T.Else():
                    border(at, pixel, row, column, lanes, alone)

        whole = count // widest
        if whole:
            with T.serial(0, whole) as g:
                group(place + g * widest, first + g * widest, widest)
        for shift, lanes in pieces(count - whole * widest, widest):
            group(place + whole * widest + shift, first + whole * widest + shift, lanes)
    vectors = -(-count // product.tile.lanes)
    if gap := vectors * product.tile.lanes - count:
        with T.serial(0, product.depth) as k:
            for shift, lanes in pieces(gap, product.tile.lanes):
                panel.store(place + k * pitch + count + shift, number(0, "float32", lanes), lanes)


@dataclass(frozen=True)
class Operands:
    """What a micro-kernel reads and writes. Exactly one bias, or none."""

    rows: Flat
    panels: Flat
    row_bias: Flat | None
    column_bias: Flat | None
    out: Flat
    target: Target
    finish: Finish | None = None
    finish_rows: bool = False
    """Whether channels, to which the finish belongs, are rows."""


def multiply_add(target: Target, a: Expr, b: Expr, total: Expr, lanes: int) -> Expr:
    """``a · b + total``. LLVM fuses the two by itself, but for 32-bit Arm, where it must be told."""
    if target.arch == "arm":
        return intrinsic(f"float32x{lanes}", f"llvm.fma.v{lanes}f32", a, b, total)
    return a * b + total


def micro(product: Product, given: Operands, row: Expr, panel: Sequence[Expr], pitch: int, start: Expr, bias: Expr,
          count: int, channel: Expr = 0) -> None:  # fmt: skip
    """One tile of ``count`` columns, from ``start`` in ``out`` on. ``row``: where its rows' values begin in ``rows``.

    ``panel``: where each vector of columns begins for k = 0; for the next k it is ``pitch`` elements on. ``channel``: the first
    row's, or the first column's, for the finish.
    """
    lanes, depth = product.tile.lanes, product.depth
    if count <= lanes // 2:  # two narrow products start where one wide one does
        lanes = max(4, 1 << (count - 1).bit_length())
    vectors = -(-count // lanes)
    sums = scratch(product.tile.rows * vectors * lanes, "float32")
    for r in range(product.tile.rows):
        for v in range(vectors):
            value = number(0, "float32", lanes)
            if given.row_bias is not None:
                value = broadcast(given.row_bias.load(bias + r), lanes)
            elif given.column_bias is not None:
                value = given.column_bias.load(bias + v * lanes, lanes)
            sums.store((r * vectors + v) * lanes, value, lanes)

    def step(k: Expr, values: Sequence[Expr]) -> None:
        columns = [T.Bind(given.panels.load(at + k * pitch, lanes)) for at in panel[:vectors]]
        for r, value in enumerate(values):
            for v, column in enumerate(columns):
                place = (r * vectors + v) * lanes
                sums.store(place, multiply_add(given.target, value, column, sums.load(place, lanes), lanes), lanes)

    rows = [row + r * depth for r in range(product.tile.rows)]
    done = 0
    if given.target.arch == "aarch64" and depth >= 4:  # its fmla takes one lane of a vector as an operand
        done = depth // 4 * 4
        with T.serial(0, depth // 4) as q:
            quads = [T.Bind(given.rows.load(at + q * 4, 4)) for at in rows]
            for i in range(4):
                step(q * 4 + i, [shuffle([quad], [i] * lanes) for quad in quads])
    if done < depth:
        with T.serial(0, depth - done) as k:
            step(done + k, [T.Bind(broadcast(given.rows.load(at + (done + k)), lanes)) for at in rows])

    for r in range(product.tile.rows):
        for v in range(vectors):
            value = T.Bind(sums.load((r * vectors + v) * lanes, lanes))

            def of_channel(table: Flat, r: int = r, v: int = v) -> Expr:
                if given.finish_rows:
                    return broadcast(table.load(channel + r), lanes)
                return table.load(channel + v * lanes, lanes)

            if given.finish is not None:
                value = given.finish.apply(value, of_channel, lanes)
            place = start + r * product.columns + v * lanes
            there = min(lanes, count - v * lanes)
            for shift, width in pieces(there, lanes):
                part = value if width == lanes else shuffle([value], range(shift, shift + width))
                given.out.store(place + shift, part, width)


def make(call: KernelCall, product: Product, rows_first: bool, bias: str) -> Kernel:
    """The kernel. Inputs: rows and columns (``rows_first``) or columns and rows, then a bias of ``rows``/``columns``/none."""
    tile, window = product.tile, product.window
    blocks = -(-product.rows // tile.rows)
    tiles, rest = product.tiles, product.rest
    panel_size = product.depth * tile.columns
    work = product.batch * product.rows * product.columns * product.depth
    if window is None and product.rows <= 2:  # each column is read from memory for a product or two
        work *= PER_ELEMENT
    task_bytes = call.knobs.choose("task_kib", TASK_BYTES >> 10, (16, 32, 128, 256)) << 10
    each = max(1, min(max(tiles, 1), task_bytes // (panel_size * 4)))
    if work >= PARALLEL_WORK and product.batch * -(-tiles // each) < TASKS:
        each = max(1, min(each, product.batch * tiles // TASKS))
    shares = -(-tiles // each)
    row_shares = 1
    if work >= PARALLEL_WORK and product.batch * shares < FEWEST_TASKS:  # every share gathers its panels anew
        row_shares = min(-(-FEWEST_TASKS // (product.batch * max(1, shares))), max(1, blocks // 4))
    row_blocks = -(-blocks // row_shares)
    row_shares = -(-blocks // row_blocks)

    with function(call) as fn:
        first, second = fn.input(0), fn.input(1)
        rows, columns = (first, second) if rows_first else (second, first)
        extra = None if bias == "none" else fn.input(2)
        finish = Finish(call)
        finish.declare(fn)
        out = fn.output()

        def task(batch: Expr, share: Expr, first_tile: Expr, count: Expr, width: int) -> None:
            """``count`` tiles of ``width`` columns each from ``first_tile`` on, against the rows of ``share``."""
            panels = columns
            if window is not None:
                panels = scratch((each if width == tile.columns else 1) * panel_size, "float32")
                with T.serial(0, count) as j:
                    gather(product, window, columns, batch, (first_tile + j) * tile.columns, width, panels,
                           j * panel_size)  # fmt: skip
            given = Operands(
                rows,
                panels,
                extra if bias == "rows" else None,
                extra if bias == "columns" else None,
                out,
                call.target,
                finish,
                not rows_first,
            )
            first_block = share * row_blocks
            mine = row_blocks if blocks % row_blocks == 0 else tirx.min(row_blocks, blocks - first_block)
            matrix = 0 if product.row_batches == 1 else batch % product.row_batches
            with T.serial(0, mine) as b, T.serial(0, count) as j:
                row = T.Bind(tile_start(first_block + b, product.rows, tile.rows))
                column = (first_tile + j) * tile.columns
                if window is not None:
                    pitch, places = tile.columns, [j * panel_size + v * tile.lanes for v in range(tile.vectors)]
                else:
                    pitch, places = panel_width(product.columns), panel_places(product, column)
                start = (batch * product.rows + row) * product.columns + column
                offset = matrix * product.rows + row if bias == "rows" else column
                channel = column if rows_first else matrix * product.rows + row
                begin = (matrix * product.rows + row) * product.depth
                micro(product, given, begin, places, pitch, start, offset, width, channel)

        if tiles:
            with outer_loop(product.batch * shares * row_shares, work) as index:
                span = index // row_shares
                batch, chunk = span // shares, span % shares
                count = each if tiles % each == 0 else tirx.min(each, tiles - chunk * each)
                task(batch, index % row_shares, chunk * each, count, tile.columns)
        if rest:
            with outer_loop(product.batch * row_shares, work) as index:
                task(index // row_shares, index % row_shares, tiles, 1, rest)
    return fn.kernel()


def conv(call: KernelCall) -> Kernel:
    """``FloatConv``: input, weights, maybe a bias."""
    data, weights = call.inputs[0].shape, call.inputs[1].shape
    groups = call.attrs["group"]
    images, out_channels = call.output.shape[:2]
    # A convolution along one axis is one over an image of height 1.
    height, width = data[2:] if len(data) == 4 else (1, data[2])
    pixels = math.prod(call.output.shape[2:])
    window = Window(
        weights[1], height, width, call.output.shape[-1],
        call.attrs["window"], call.attrs["strides"], call.attrs["dilations"], call.attrs["pads"],
    )  # fmt: skip
    rows = out_channels // groups
    depth = weights[1] * window.kernel[0] * window.kernel[1]
    product = Product(images * groups, groups, rows, pixels, depth, window, tile_of(call, rows, pixels))
    return make(call, product, False, "rows" if Finish(call).inputs > 2 else "none")


def matmul(call: KernelCall) -> Kernel:
    """``FloatMatMul``: rows ``[(batch,) m, k]``, columns ``[(batch,) k, n]``, both computed."""
    left, right = call.inputs[0].shape, call.inputs[1].shape
    batch, row_batches, rows, depth, columns = (call.attrs[key] for key in ("batch", "row_batches", "m", "k", "n"))
    assert left[-1] == depth == right[-2]
    window = Window(depth, 1, columns, columns)
    product = Product(batch, row_batches, rows, columns, depth, window, tile_of(call, rows, columns))
    return make(call, product, True, "none")


def linear(call: KernelCall) -> Kernel:
    """``FloatLinear``: rows ``[m, k]``, columns as ``lay_out`` gives them, maybe a bias (as long as they, padded)."""
    rows, depth, columns = (call.attrs[key] for key in ("m", "k", "n"))
    tile = tile_of(call, rows, columns, panel_width(columns))
    product = Product(1, 1, rows, columns, depth, None, tile)
    return make(call, product, True, "columns" if Finish(call).inputs > 2 else "none")
