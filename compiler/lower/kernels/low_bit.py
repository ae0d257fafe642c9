"""Float32 activations times weights that are stored as codes: ``LowBitGemm``, ``ShiftGemm`` and their convolutions.

The weights are decoded inside the kernel into a small panel that stays in the cache, and multiplied from there with the
register tiles of ``float_product``: the device holds codes only. A product decodes ``CHUNK`` steps of a tile of columns at a
time and adds to its output chunk by chunk; a convolution decodes a few filters at a time, for all pixels of its task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from . import float_product
from .codes import RUN, Decoder, Place, groups_of, run_bytes
from .common import (
    PARALLEL_WORK,
    Expr,
    Flat,
    broadcast,
    function,
    number,
    outer_loop,
    pieces,
    scratch,
    shuffle,
    tile_start,
)
from .float_product import Operands, Tile, Window, choose_tile, gather, micro, multiply_add

CHUNK = 256
"""Most steps that a product decodes at a time: 32 columns of them are 32 KiB."""


@dataclass(frozen=True)
class Panel:
    """Decoded weights ``[steps, vectors · lanes]`` of a tile of columns: those from step ``first`` on."""

    weights: Flat
    vectors: int
    first: Expr
    steps: int


def chunk_steps(depth: int) -> int:
    """Steps of a chunk: at most ``CHUNK``, whole runs, and chunks as equal as ``depth`` allows."""
    count = -(-depth // CHUNK)
    return math.ceil(depth / count / RUN) * RUN


Decode = Callable[[Panel, Expr], None]
"""Writes the weights of a panel: (panel, first vector of columns)."""


def multiply(call: KernelCall, x: Flat, out: Flat, panel: Panel, tile: Tile, row: Expr, count: int, start: Expr,
             columns: int, width: int, depth: int) -> None:  # fmt: skip
    """Add the product of ``count`` rows of ``x`` with a panel to ``width`` columns of ``out`` from ``start`` on."""
    lanes, vectors = tile.lanes, panel.vectors
    pitch = vectors * lanes
    sums = scratch(count * pitch, "float32")
    for r in range(count):
        for v in range(vectors):
            there = min(lanes, width - v * lanes)
            if there < lanes:
                sums.store(r * pitch + v * lanes, number(0, "float32", lanes), lanes)
            for shift, part in pieces(there, lanes):
                place = v * lanes + shift
                sums.store(r * pitch + place, out.load((row + r) * columns + start + place, part), part)

    def step(k: Expr, values: list[Expr]) -> None:
        loaded = [T.Bind(panel.weights.load(k * pitch + v * lanes, lanes)) for v in range(vectors)]
        for r, value in enumerate(values):
            for v, weight in enumerate(loaded):
                place = r * pitch + v * lanes
                total = sums.load(place, lanes)
                sums.store(place, multiply_add(call.target, value, weight, total, lanes), lanes)

    rows = [(row + r) * depth + panel.first for r in range(count)]
    done = 0
    if call.target.arch == "aarch64" and panel.steps >= 4:  # its fmla takes one lane of a vector as an operand
        done = panel.steps // 4 * 4
        with T.serial(0, panel.steps // 4) as q:
            quads = [T.Bind(x.load(at + q * 4, 4)) for at in rows]
            for i in range(4):
                step(q * 4 + i, [shuffle([quad], [i] * lanes) for quad in quads])
    if done < panel.steps:
        with T.serial(0, panel.steps - done) as k:
            step(done + k, [T.Bind(broadcast(x.load(at + (done + k)), lanes)) for at in rows])
    for r in range(count):
        for v in range(vectors):
            value = T.Bind(sums.load(r * pitch + v * lanes, lanes))
            for shift, part in pieces(min(lanes, width - v * lanes), lanes):
                kept = value if part == lanes else shuffle([value], range(shift, shift + part))
                out.store((row + r) * columns + start + v * lanes + shift, kept, part)


def product(call: KernelCall, x: Flat, out: Flat, tile: Tile, decode: Decode) -> None:
    """``out [m, n] = x [m, k] · weights``; ``decode`` gives the weights, panel by panel."""
    depth, columns = int(call.attrs["k"]), call.output.shape[-1]
    rows = math.prod(call.output.shape[:-1])
    steps = chunk_steps(depth)
    work = rows * columns * depth

    def task(first: Expr, width: int) -> None:
        """``width`` columns, from vector ``first`` of them on."""
        start = first * tile.lanes
        vectors = -(-width // tile.lanes)
        weights = scratch(steps * vectors * tile.lanes, "float32")
        with T.serial(0, rows) as row:
            for shift, lanes in pieces(width, tile.lanes):
                out.store(row * columns + start + shift, number(0, "float32", lanes), lanes)

        def chunk(at: Expr, size: int) -> None:
            panel = Panel(weights, vectors, at, size)
            decode(panel, first)
            full, rest = divmod(rows, tile.rows)
            if full:
                with T.serial(0, full) as b:
                    multiply(call, x, out, panel, tile, b * tile.rows, tile.rows, start, columns, width, depth)
            if rest:
                multiply(call, x, out, panel, tile, full * tile.rows, rest, start, columns, width, depth)

        whole = depth // steps
        if whole:
            with T.serial(0, whole) as c:
                chunk(c * steps, steps)
        if depth % steps:
            chunk(whole * steps, depth % steps)

    tiles, rest = divmod(columns, tile.columns)
    if tiles:
        with outer_loop(tiles, work) as index:
            task(index * tile.vectors, tile.columns)
    if rest:
        task(tiles * tile.vectors, rest)


def columns_first(lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    """``[O, K]`` → ``[ceil(O / lanes), K, lanes]``, with zeros for the channels that are not there."""

    def lay(value: np.ndarray) -> np.ndarray:
        blocks = -(-len(value) // lanes)
        padded = np.pad(value, ((0, blocks * lanes - len(value)), (0, 0)))
        return np.ascontiguousarray(padded.reshape(blocks, lanes, -1).transpose(0, 2, 1))

    return lay


def decode_columns(call: KernelCall, decoder: Decoder, panel: Panel, first: Expr) -> None:
    """Decode the weights of a panel: lanes are channels, steps are the weights of a channel."""
    lanes, vectors = decoder.lanes, panel.vectors
    group, groups = groups_of(call)
    full, rest = divmod(panel.steps, RUN)
    first_run = panel.first // RUN

    def run(v: Expr, index: Expr, steps: int) -> None:
        block = first + v
        at = first_run + index
        place = Place(block * decoder.block_bytes + at * run_bytes(decoder.planes),
                      block * groups + (at * RUN // group if groups > 1 else 0))  # fmt: skip
        for i, weight in enumerate(decoder.weights(place, steps)):
            panel.weights.store(((index * RUN + i) * vectors + v) * lanes, weight, lanes)

    with T.serial(0, vectors) as v:
        if full:
            with T.serial(0, full) as index:
                run(v, index, RUN)
        if rest:
            run(v, full, rest)


def gemm(call: KernelCall) -> Kernel:
    """``LowBitGemm``, ``ShiftGemm``."""
    rows, columns = math.prod(call.output.shape[:-1]), call.output.shape[-1]
    tile = choose_tile(call.target, rows, columns)
    lay = columns_first(tile.lanes)
    with function(call) as fn:
        x = fn.input(0)
        decoder = Decoder(fn, lay, lay, tile.lanes, wide=True)
        out = fn.output()
        product(call, x, out, tile, lambda panel, first: decode_columns(call, decoder, panel, first))
    return fn.kernel()


def conv(call: KernelCall) -> Kernel:
    """``LowBitConv``, ``ShiftConv``: the rows of a float product are decoded, its columns are the windows of the pixels."""
    attrs, depth = call.attrs, int(call.attrs["k"])
    images, channels, height, width = call.inputs[0].shape
    groups, (_, out_channels, out_height, out_width) = attrs["group"], call.output.shape
    rows, pixels = out_channels // groups, out_height * out_width
    window = Window(channels // groups, height, width, out_width, attrs["kernel_shape"], attrs["strides"],
                    attrs["dilations"], attrs["pads"])  # fmt: skip
    tile = choose_tile(call.target, rows, pixels)
    made = float_product.Product(images * groups, groups, rows, pixels, depth, window, tile)
    lanes, steps = tile.lanes, -(-depth // tile.lanes)

    def lay(codes: np.ndarray) -> np.ndarray:
        """``[O, K]`` → ``[O, steps, lanes]``: lanes are neighbouring weights of a filter."""
        return np.pad(codes, ((0, 0), (0, steps * lanes - depth))).reshape(len(codes), steps, lanes)

    panel_size = depth * tile.columns
    each = max(1, min(max(made.tiles, 1), float_product.TASK_BYTES // (panel_size * 4)))
    work = made.batch * rows * pixels * depth
    if work >= PARALLEL_WORK and made.batch * -(-made.tiles // each) < float_product.TASKS:
        each = max(1, min(each, made.batch * made.tiles // float_product.TASKS))
    blocks = -(-rows // tile.rows)

    with function(call) as fn:
        x = fn.input(0)
        decoder = Decoder(fn, lay, lambda value: value[:, 0], lanes, wide=False)
        out = fn.output()

        def decode_row(filters: Flat, row: Expr, place: Expr) -> None:
            """A filter's weights; what the last vector has too many the next filter, or nothing, overwrites."""

            def run(index: Expr, count: int) -> None:
                at = Place(row * decoder.block_bytes + index * run_bytes(decoder.planes), row)
                for i, weight in enumerate(decoder.weights(at, count)):
                    filters.store(place + (index * RUN + i) * lanes, weight, lanes)

            full, rest = divmod(steps, RUN)
            if full:
                with T.serial(0, full) as index:
                    run(index, RUN)
            if rest:
                run(full, rest)

        def task(image: Expr, first_tile: Expr, count: Expr, most: int, columns: int) -> None:
            panels = scratch(most * panel_size, "float32")
            filters = scratch(tile.rows * depth + lanes, "float32")
            with T.serial(0, count) as j:
                gather(made, window, x, image, (first_tile + j) * tile.columns, columns, panels, j * panel_size)
            matrix = 0 if groups == 1 else image % groups
            with T.serial(0, blocks) as b:
                row = T.Bind(tile_start(b, rows, tile.rows))
                with T.serial(0, tile.rows) as r:
                    decode_row(filters, matrix * rows + row + r, r * depth)
                given = Operands(filters, panels, None, None, out, call.target)
                with T.serial(0, count) as j:
                    places = [j * panel_size + v * lanes for v in range(tile.vectors)]
                    start = (image * rows + row) * pixels + (first_tile + j) * tile.columns
                    micro(made, given, 0, places, tile.columns, start, 0, columns)

        if made.tiles:
            shares = -(-made.tiles // each)
            with outer_loop(made.batch * shares, work) as index:
                image, share = index // shares, index % shares
                count = each if made.tiles % each == 0 else tirx.min(each, made.tiles - share * each)
                task(image, share * each, count, each, tile.columns)
        if made.rest:
            with outer_loop(made.batch, work) as index:
                task(index, made.tiles, 1, 1, made.rest)
    return fn.kernel()
