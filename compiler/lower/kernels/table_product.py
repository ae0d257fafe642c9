"""The binary product by table lookup, for x86-64 with AVX2: what ``product.make`` gives, on the same inputs, bit for bit.

AVX2 cannot count bits, but ``pshufb`` looks 32 bytes up in a table of 16. Here the table belongs to a pixel and the
index to the weights: for four neighbouring bits of a pixel, the table holds in how many of them each of the 16 possible
four bits of weights would differ. A lookup and an addition then count 4 bits of 32 channels, and counts lie in channel
order; counting differing bits byte by byte takes twice as many instructions (``micro.AVX2``). Of 16 tables there is
one for each value of the pixel's four bits, so nothing is computed to make them.

Weights lie transposed: ``[group of channels][byte of the row][channel of the group]``, as many bytes as ever. Rows of pixels
are gathered as ``product`` does it and spread, once a task, to the places of their tables.

The idea is that of lookup in the activations' own tables (Jegou et al., "Quick ADC", 2015, for product quantization; Wei et
al., "T-MAC", 2024, for low-bit weights), where binary activations leave only 16 tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..costs import Work, choose
from ..kernel import Kernel, KernelCall
from ..knobs import Knobs
from .common import Expr, Flat, cast, function, intrinsic, number, outer_loop, scratch, shuffle, tile_start, tiles
from .outputs import Finished, Output
from .product import (
    CHANNELS,
    MOST_PIXELS,
    TASK_PIXELS,
    TASKS,
    Plan,
    Product,
    class_tables,
    emit_rows,
    rows_of_task,
    threaded,
    work,
)
from .twin import Twin

PIXELS = 4
LANES = 32
"""Channels of a lookup."""
LONGEST = 31
"""Bytes of a row that byte lanes count: at most 8 differ in each."""
SPREAD_BYTES = 16 << 10
"""Places of tables of a task: half of a first-level cache."""
CHUNK = 16


def tables() -> np.ndarray:
    """uint8 ``[16, 16]``: bits in which two numbers of four bits differ."""
    values = np.arange(16, dtype=np.uint8)
    return np.bitwise_count(values[:, None] ^ values[None, :])


@dataclass(frozen=True)
class Groups:
    """Channels in groups of ``vectors`` lookups; the last group may have channels that are not there."""

    vectors: int
    count: int

    @staticmethod
    def of(channels: int, knobs: Knobs) -> Groups:
        """Two lookups share a table's load where that wastes no whole lookup."""
        vectors = knobs.choose("lookups", 2 if -channels % (2 * LANES) < LANES else 1, (1, 2))
        return Groups(vectors, math.ceil(channels / (vectors * LANES)))

    @property
    def width(self) -> int:
        """Channels of a group."""
        return self.vectors * LANES


def suits(call: KernelCall, product: Product) -> bool:
    """Whether this kernel computes the product: every bit counts for every channel, counts fit 16 bits, and it costs less."""
    return (
        product.masks is None
        and len(product.segments) == 1
        and product.bits < 65535
        and product.pixels > 1
        and call.target.arch == "x86_64"
        and "avx2" in call.target.features
        and bool(call.knobs.choose("table", int(_cheaper(call, product)), (0, 1)))
    )


def _cheaper(call: KernelCall, product: Product) -> bool:
    return choose(call.target, Work(1, 1, product.bits, product.weights.shape[0], product.pixels)) == "table"


def lay_out(weights: np.ndarray, groups: Groups) -> np.ndarray:
    """uint8 ``[channels, bytes]`` → ``[group][byte][channel of the group]``, with zeros for channels that are not there."""
    padded = np.zeros((groups.count * groups.width, weights.shape[1]), np.uint8)
    padded[: len(weights)] = weights
    return np.ascontiguousarray(padded.reshape(groups.count, groups.width, -1).transpose(0, 2, 1))


def plan(
    call: KernelCall, product: Product, groups: Groups, places: int = 2, budget: int = SPREAD_BYTES, passes: int = 1
) -> Plan:
    """As ``product.plan``; ``blocks`` are groups of channels here.

    ``places``: bytes that a byte of a row becomes, ``budget``: those of a task, ``passes``: over the bits.
    """
    row_bytes = product.weights.shape[1]
    widest = max(PIXELS, call.target.vector_bytes // 4) if call.epilogue.channels_first else PIXELS
    _, lanes = tiles(product.pixels, widest)
    most = call.knobs.choose("pixels", min(MOST_PIXELS, budget // (places * row_bytes)), TASK_PIXELS)
    most = max(lanes, most)
    heavy = work(product) * passes >= threaded()
    if heavy:
        most = min(most, max(2 * lanes, -(-product.images * product.pixels // TASKS)))
    rows = rows_of_task(product.pixels, lanes, most)
    row_tasks = -(-product.pixels // rows)
    each, others = groups.count, product.images * row_tasks
    if heavy and others < TASKS:
        each = -(-groups.count // -(-TASKS // others))
    return Plan(row_bytes, False, lanes, rows, row_tasks, each, -(-groups.count // each))


def spread(rows: Flat, places: Flat, count: Expr) -> None:
    """``count`` chunks of bytes → for the lower and the upper four bits of each where their table begins."""
    upper = number(0xF0, "uint8", CHUNK)
    with T.serial(0, count) as i:
        x = T.Bind(rows.load(i * CHUNK, CHUNK))
        low = T.Bind(cast(x << number(4, "uint8", CHUNK), "uint8", CHUNK) & upper)
        high = T.Bind(x & upper)
        for half in range(2):
            lanes = [source + half * 8 + lane for lane in range(8) for source in (0, CHUNK)]
            places.store((2 * i + half) * CHUNK, shuffle([low, high], lanes), CHUNK)


def lookups(
    table: Flat, places: Flat, starts: Sequence[Expr], weights: Flat, place: Expr, cut: Plan, groups: Groups,
    totals: Flat, first: int, longest: int = LONGEST,
) -> None:  # fmt: skip
    """Count for a few pixels and a group: ``totals[(first + p) · width + channel]`` is set, uint16.

    ``starts[p]`` is where pixel p's places begin, ``place`` where the group's weights do; the entries of ``longest`` bytes
    fit a byte lane.
    """
    width, pixels = groups.width, range(len(starts))
    rounds = -(-cut.row_bytes // longest)
    each = -(-cut.row_bytes // rounds)
    nibble = number(15, "uint8", LANES)
    part = scratch(len(starts) * width, "uint8")

    def vectors(p: int) -> list[int]:
        return [p * width + v * LANES for v in range(groups.vectors)]

    def flush(p: int, add: bool) -> None:
        for at in vectors(p):
            for half in (0, 16):
                place = first * width + at + half
                more = cast(part.load(at + half, 16), "uint16", 16)
                totals.store(place, totals.load(place, 16) + more if add else more, 16)

    def round_of(start: Expr, extent: Expr, add: bool) -> None:
        for p in pixels:
            for at in vectors(p):
                part.store(at, number(0, "uint8", LANES), LANES)
        with T.serial(0, extent) as i:
            k = T.Bind(start + i)
            both = [T.Bind(weights.load(place + k * width + v * LANES, LANES)) for v in range(groups.vectors)]
            for half in range(2):
                shift = number(4, "uint8", LANES)
                index = [T.Bind((w >> shift if half else w) & nibble) for w in both]
                for p in pixels:
                    at_table = cast(places.load(starts[p] + 2 * k + half), "int32")
                    once = T.Bind(table.load(at_table, 16))
                    twice = T.Bind(shuffle([once, once], range(LANES)))
                    for at, which in zip(vectors(p), index, strict=True):
                        found = intrinsic("uint8x32", "llvm.x86.avx2.pshuf.b", twice, which)
                        part.store(at, part.load(at, LANES) + found, LANES)
        for p in pixels:
            flush(p, add)

    round_of(0, min(each, cut.row_bytes), False)
    if rounds > 1:
        with T.serial(1, rounds) as r:
            extent = each if cut.row_bytes % each == 0 else tirx.min(each, cut.row_bytes - r * each)
            round_of(r * each, extent, True)


def make(call: KernelCall, product: Product) -> Kernel:
    """The kernel of a product that ``suits``, with the call's epilogue."""
    groups = Groups.of(product.weights.shape[0], call.knobs)
    cut, gather = plan(call, product, groups), product.gather
    blocks = product.weights.shape[0] // CHANNELS
    each_group = groups.width // CHANNELS
    group_bytes = groups.width * cut.row_bytes
    most = min(cut.rows, product.pixels)
    chunks = -(-most * cut.row_bytes // CHUNK)
    with function(call) as fn:
        source = fn.input(0)
        weights = fn.constant("weights", lay_out(product.weights, groups))
        table = fn.constant("tables", tables())
        fill = None if gather.fill is None else fn.constant("fill", gather.fill)
        classes_of = class_tables(fn, gather, product.corrections)
        twin = Twin(fn, product, source)
        output = Output(fn, product.corrections, product.bits, "uint16", product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(cut.block_tasks * spans, work(product)) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes

            rows = scratch(chunks * CHUNK, "uint8")
            places = scratch(2 * chunks * CHUNK, "uint8")
            classes = None if classes_of is None else scratch(most, "int32")
            first_group = share * cut.blocks
            left = groups.count - first_group
            share_groups = cut.blocks if groups.count % cut.blocks == 0 else tirx.min(cut.blocks, left)

            def start(t: Expr) -> Expr:
                """First pixel of a tile."""
                return T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))

            def blocks_of(group: Expr) -> tuple[Expr, Expr]:
                """The first block of a group, and how many there are."""
                here = group * each_group
                return here, each_group if blocks % each_group == 0 else tirx.min(each_group, blocks - here)

            def take() -> None:
                with T.serial(0, share_groups) as g, T.serial(0, tile_count) as t:
                    pixel = start(t)
                    here, extent = blocks_of(first_group + g)
                    with T.serial(0, extent) as b:
                        output.store(Finished([None] * cut.lanes, [], image, pixel, here + b))

            def compute() -> None:
                emit_rows(
                    product, cut, source, rows, fill, classes, classes_of, image, first, count, product.segments[0]
                )  # fmt: skip
                spread(rows, places, (count * cut.row_bytes + (CHUNK - 1)) // CHUNK)
                with T.serial(0, share_groups) as g, T.serial(0, tile_count) as t:
                    pixel = start(t)
                    at = [T.Bind(classes.load(pixel - first + p)) if classes else 0 for p in range(cut.lanes)]
                    group = first_group + g
                    totals = scratch(cut.lanes * groups.width, "uint16")
                    for p in range(0, cut.lanes, PIXELS):
                        starts = [
                            T.Bind((pixel - first + p + i) * (2 * cut.row_bytes))
                            for i in range(min(PIXELS, cut.lanes - p))
                        ]
                        lookups(table, places, starts, weights, group * group_bytes, cut, groups, totals, p)
                    here, extent = blocks_of(group)
                    with T.serial(0, extent) as b:
                        counts = [totals.load(p * groups.width + b * CHANNELS, CHANNELS) for p in range(cut.lanes)]
                        output.store(Finished(counts, at, image, pixel, here + b))

            twin.either(image, first, count, take, compute)
    once = product.pixels % cut.lanes == 0
    return fn.kernel(in_place=output.residuals() if once else ())
