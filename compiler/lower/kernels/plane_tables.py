"""Products of bit planes by table lookup, for x86-64 with AVX2: what ``bit_serial.make`` gives, bit for bit.

``table_product`` looks four bits of weights up in the table of four bits of a pixel. Here a pixel has levels of several
bits: four elements of two planes choose one of 256 tables (4 KB, which stay in the first-level cache), whose entries are the
sums over these elements that each of 16 weights gives, coefficients included. So a lookup and an addition count two planes
for 32 channels: as many instructions as for one. Levels of more planes take a pass for every two, and every plane of weights
takes its own.

An entry of planes with coefficients 1 and 2 is at most 12, so that byte lanes hold ten bytes of a row (31 for one plane),
before they are added to 16-bit totals. That costs about a tenth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..costs import Work, choose
from ..kernel import Kernel, KernelCall
from . import table_product
from .bit_serial import Serial, Sums
from .common import Expr, Flat, broadcast, cast, function, number, outer_loop, scratch, shuffle, tile_start
from .outputs import Finished
from .product import CHANNELS, class_tables, emit_rows, work
from .table_product import CHUNK, PIXELS, Groups

SPREAD_BYTES = 24 << 10
"""Places of tables of a task."""
PLACE_BYTES = 4
"""Places of a byte of a row: two of 16 bits."""


@dataclass(frozen=True)
class Pair:
    """Two planes of activations, or one (``second`` None), that are looked up together.

    An entry of their tables is ``Σ first_worth · d(first) + second_worth · d(second) − least``, from 0 on, where d is how
    many bits of four differ (or are common); times ``scale`` it is what the planes' own coefficients make of it.
    """

    first: int
    second: int | None
    first_worth: int
    second_worth: int
    scale: int

    @property
    def least(self) -> int:
        """The smallest sum of an entry before it is moved to 0."""
        return 4 * (min(self.first_worth, 0) + min(self.second_worth, 0))

    @property
    def longest(self) -> int:
        """Bytes of a row that byte lanes hold."""
        return 255 // (8 * (abs(self.first_worth) + abs(self.second_worth)))

    def tables(self, common: bool) -> np.ndarray:
        """uint8 ``[256 or 16, 16]``: by four bits of the first plane and 16 times those of the second, and by the weights'."""
        four = np.arange(16)
        counts = np.bitwise_count(four[:, None] & four if common else four[:, None] ^ four).astype(np.int64)
        first = self.first_worth * counts
        if self.second is None:
            return (first - self.least).astype(np.uint8)
        both = self.second_worth * counts[:, None] + first[None]
        return (both - self.least).reshape(256, 16).astype(np.uint8)


def pairs(coefficients: list[int]) -> list[Pair]:
    """Neighbouring planes two by two, the last one alone where their number is odd."""
    found = []
    for i in range(0, len(coefficients), 2):
        a, b = coefficients[i], coefficients[i + 1] if i + 1 < len(coefficients) else 0
        scale = math.gcd(a, b) or 1
        found.append(Pair(i, i + 1 if i + 1 < len(coefficients) else None, a // scale, b // scale, scale))
    return found


def suits(call: KernelCall, serial: Serial) -> bool:
    """Whether this kernel computes the product (every bit counts for every channel, sums fit their lanes), and costs less."""
    product, (n, m) = serial.product, serial.factors.shape
    every = pairs([int(c) for c in call.attrs["x_coeffs"]])
    terms = 8 * product.weights.shape[1]
    return (
        serial.masks is None
        and len(product.segments) == 1
        and product.pixels > 1
        and call.target.arch == "x86_64"
        and "avx2" in call.target.features
        and all(p.longest > 0 and terms * (abs(p.first_worth) + abs(p.second_worth)) < 1 << 16 for p in every)
        and bool(call.knobs.choose("table", int(_cheapest(call, serial, n, m)), (0, 1)))
    )


def _cheapest(call: KernelCall, serial: Serial, n: int, m: int) -> bool:
    product = serial.product
    layer = Work(n, m, product.bits, product.weights.shape[0], product.images * product.pixels)
    return choose(call.target, layer) == "table"


def spread(rows: Flat, first: Expr, second: Expr | None, places: Flat, start: Expr, count: Expr) -> None:
    """``count`` chunks of the bytes of two planes → for the lower and the upper four bits where their table begins, uint16."""
    lower, upper, four = number(15, "uint8", CHUNK), number(0xF0, "uint8", CHUNK), number(4, "uint8", CHUNK)
    with T.serial(0, count) as i:
        x = T.Bind(rows.load(first + i * CHUNK, CHUNK))
        halves = [x & lower, x >> four]
        if second is not None:
            y = T.Bind(rows.load(second + i * CHUNK, CHUNK))
            halves = [halves[0] | cast(y << four, "uint8", CHUNK) & upper, halves[1] | (y & upper)]
        low, high = (T.Bind(half) for half in halves)
        for half in range(2):
            lanes = [source + half * 8 + lane for lane in range(8) for source in (0, CHUNK)]
            wide = cast(shuffle([low, high], lanes), "uint16", CHUNK) << number(4, "uint16", CHUNK)
            places.store(start + (2 * i + half) * CHUNK, wide, CHUNK)


def make(call: KernelCall, serial: Serial) -> Kernel:
    """The kernel of a product that ``suits``, with the call's epilogue."""
    product, m = serial.product, serial.factors.shape[1]
    every = pairs([int(c) for c in call.attrs["x_coeffs"]])
    groups = Groups.of(product.weights.shape[0], call.knobs)
    bytes_each = PLACE_BYTES * len(every)
    cut = table_product.plan(call, product, groups, bytes_each, SPREAD_BYTES, serial.factors.size)
    gather = product.gather
    blocks = product.weights.shape[0] // CHANNELS
    each_group = groups.width // CHANNELS
    group_bytes, plane_bytes = groups.width * cut.row_bytes, groups.count * groups.width * cut.row_bytes
    most = min(cut.rows, product.pixels)
    chunks = -(-most * cut.row_bytes // CHUNK)
    sign = 1 if serial.common else -1
    worth = np.array([[sign * p.scale * int(c) for c in call.attrs["w_coeffs"]] for p in every], np.int64)
    moved = sum(int(w) * p.least * 2 * cut.row_bytes for p, row in zip(every, worth, strict=True) for w in row)
    with function(call) as fn:
        source = fn.input(0)
        weights = fn.constant("weights", np.stack([table_product.lay_out(w, groups) for w in serial.weights]))
        tables = [fn.constant(f"tables{i}", p.tables(serial.common)) for i, p in enumerate(every)]
        factors = fn.constant("factors", worth.astype(np.int32))
        classes_of = class_tables(fn, gather, product.corrections)
        output = Sums(fn, product.corrections + np.int32(moved), product.bits, "uint32", product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(cut.block_tasks * spans, work(product) * serial.factors.size) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes
            one_plane, one_pair = chunks * CHUNK, 2 * chunks * CHUNK
            rows = scratch(serial.factors.shape[0] * one_plane, "uint8")
            places = scratch(len(every) * one_pair, "uint16")
            classes = None if classes_of is None else scratch(most, "int32")
            first_group = share * cut.blocks
            left = groups.count - first_group
            share_groups = cut.blocks if groups.count % cut.blocks == 0 else tirx.min(cut.blocks, left)

            with T.serial(0, serial.factors.shape[0]) as i:
                emit_rows(
                    product, cut, source, rows, None, classes, classes_of, image + i * product.images, first, count,
                    product.segments[0], i * one_plane,
                )  # fmt: skip
            for i, pair in enumerate(every):
                second = None if pair.second is None else pair.second * one_plane
                used = (count * cut.row_bytes + (CHUNK - 1)) // CHUNK
                spread(rows, pair.first * one_plane, second, places, i * one_pair, used)

            with T.serial(0, share_groups) as g, T.serial(0, tile_count) as t:
                pixel = T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))
                at = [T.Bind(classes.load(pixel - first + p)) if classes else 0 for p in range(cut.lanes)]
                group = first_group + g
                totals = scratch(cut.lanes * groups.width, "uint16")
                alone = len(every) * m == 1
                sums = None if alone else scratch(cut.lanes * groups.width, "int32")

                def take(i: int, j: Expr, add: bool, group: Expr = group, pixel: Expr = pixel, first: Expr = first,
                         totals: Flat = totals, sums: Flat | None = sums, places: Flat = places) -> None:  # fmt: skip
                    """One pair of planes against one plane of weights."""
                    for p in range(0, cut.lanes, PIXELS):
                        starts = [
                            T.Bind((pixel - first + p + q) * (2 * cut.row_bytes) + i * one_pair)
                            for q in range(min(PIXELS, cut.lanes - p))
                        ]
                        table_product.lookups(
                            tables[i], places, starts, weights, j * plane_bytes + group * group_bytes, cut, groups,
                            totals, p, every[i].longest,
                        )  # fmt: skip
                    if sums is None:
                        return
                    factor = broadcast(T.Bind(factors.load(i * m + j)), CHANNELS)
                    with T.serial(0, cut.lanes * groups.width // CHANNELS) as k:
                        more = cast(totals.load(k * CHANNELS, CHANNELS), "int32", CHANNELS) * factor
                        sums.store(k * CHANNELS, sums.load(k * CHANNELS, CHANNELS) + more if add else more, CHANNELS)

                for i in range(len(every)):
                    take(i, 0, i > 0)
                    if m > 1:
                        with T.serial(1, m) as j:
                            take(i, j, True)
                here = group * each_group
                extent = each_group if blocks % each_group == 0 else tirx.min(each_group, blocks - here)
                with T.serial(0, extent) as b:
                    found: list[Expr] = []
                    for p in range(cut.lanes):
                        place = p * groups.width + b * CHANNELS
                        if sums is not None:
                            found.append(sums.load(place, CHANNELS))
                            continue
                        total = cast(totals.load(place, CHANNELS), "int32", CHANNELS)
                        scale = int(worth[0, 0])
                        found.append(total if scale == 1 else total * number(scale, "int32", CHANNELS))
                    output.store(Finished(found, at, image, pixel, here + b))
    # Every pixel is computed once where tiles do not overlap; a residual is then read just before its sum is written.
    once = product.pixels % cut.lanes == 0
    return fn.kernel(in_place=output.residuals() if once else ())
