"""What a stage costs when it is folded so: LUT4s, block memories, multipliers, cycles, and how wide its words are.

Counts are LUT4s (a carry cell of the ECP5 counts as the two that it takes), block memories of 18 kbit, cycles. What a unit
takes is a sum over its parts: trees and accumulators exactly as they are built, weights in block memory or as tables of
logic, and a share for control that was fitted to what yosys reports (the tests compare).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from .elementwise import Elementwise, elementwise_cost
from .prices import FAMILIES, Cost, Prices, logic_tables
from .stages import Depthwise, Join, Largest, Multiply, Pool, Slide, Stage, Weigh
from .units.depthwise import Depthwise as DepthwiseUnit
from .units.matvec import GROUP, LOGIC_DEPTH, Store, weights_of
from .units.popcount import best_tree, chain_tables, weighing, width_of
from .units.unrolled import cost_of
from .units.window import BUFFER_BITS

CONTROL = 40
"""LUT4s of a unit's counters and handshakes, about."""


@dataclass(frozen=True)
class Fold:
    """``pe`` rows × ``simd`` columns a cycle, weights in ``store``; ``spanning``: rows counted from one another."""

    pe: int = 1
    simd: int = 1
    store: Store = "block"
    spanning: bool = False


def cost(stage: Stage, fold: Fold, family: str = "ecp5") -> Cost:
    """What ``stage`` takes when folded so, on a chip of ``family``."""
    prices = FAMILIES[family]
    if isinstance(stage, Multiply):
        return _product_cost(stage, fold, prices)
    if isinstance(stage, Slide):
        return _window_cost(stage, fold, prices)
    if isinstance(stage, Pool):
        words = stage.source.channels // fold.simd
        columns = stage.result.width * words
        luts = prices.memory(fold.simd, columns) + 3 * fold.simd + CONTROL
        return Cost(stage.source.pixels * words, luts, 0, 2)
    if isinstance(stage, Largest):
        words, width = stage.result.channels // fold.simd, fold.simd * stage.source.bits
        one = 1 if stage.source.bits == 1 else 2 * stage.source.bits + chain_tables(stage.source.bits)
        luts = prices.memory(width, max(2, words)) + fold.simd * one + width + CONTROL
        return Cost(stage.source.pixels * stage.positions * words, luts, 0, 2)
    if isinstance(stage, Depthwise):
        return _depthwise_cost(stage, fold, prices)
    if isinstance(stage, Elementwise):
        return elementwise_cost(stage, fold.simd, prices)
    raise TypeError(f"no cost for {type(stage).__name__}")


def _product_cost(stage: Multiply, fold: Fold, prices: Prices) -> Cost:
    product = stage.product
    rows, columns = product.rows // fold.pe, product.columns // fold.simd
    folds = rows * columns
    width = width_of(product.most) + (product.thresholds is not None)
    weights = weights_of(product, folds)
    if fold.spanning:
        luts, delay = cost_of(product)
        luts += prices.memory(fold.pe * product.result_bits, 16) + CONTROL
        return Cost(stage.source.pixels, luts, 0, delay + 4, fold.pe * fold.simd)
    tree = best_tree(fold.simd, weights)
    luts = fold.pe * (product.planes * tree.tables + _weighing_tables(fold.simd, product.planes))
    luts += fold.pe * prices.accumulate * chain_tables(width)
    if product.masks:  # a carry that is no XNOR is a table of its own
        luts += fold.pe * product.planes * sum(size == 1 for size in tree.groups())
    blocks = 0
    if weights == "constant":
        luts += _leaf_tables(product.columns, product.rows)
    elif fold.store == "block":
        blocks += sum(prices.table(size * fold.simd, folds) for size in _groups(fold.pe))
    else:
        luts += logic_tables(fold.pe * fold.simd, folds)
    limits = 0 if product.thresholds is None else product.thresholds.size // fold.pe
    if limits > 1:
        if limits <= LOGIC_DEPTH or fold.simd < 3:
            luts += logic_tables(fold.pe * width, limits)
        else:
            blocks += sum(prices.table(size * width, limits) for size in _groups(fold.pe))
    if rows > 1 and columns > 1:  # the vector is kept in distributed memory, read beside the input
        # (and so is the next one, in front of the unit)
        bits = fold.simd * product.planes
        luts += 2 * prices.memory(bits, columns) + bits + prices.queue
    luts += prices.memory(fold.pe * product.result_bits, min(16, 3 + -(-16 // columns))) + CONTROL
    groups = 1 if weights == "constant" else -(-fold.pe // GROUP)
    delay = tree.depth + weighing(product.planes) + 4 + (fold.store == "block" and folds > 1) + groups
    return Cost(stage.source.pixels * folds, luts, blocks, delay, fold.pe * fold.simd)


def _window_cost(stage: Slide, fold: Fold, prices: Prices) -> Cost:
    words, width = stage.source.channels // fold.simd, fold.simd * stage.source.bits
    depth = stage.sliding.kept_rows * stage.source.width * words
    luts, blocks, late = prices.memory(width, 8) + 4 * CONTROL, 0, depth * width > BUFFER_BITS
    if any(stage.sliding.pads):
        luts += 2 * CONTROL  # which rows and columns are there
    if late:
        blocks = prices.blocks(width, depth)
    else:
        luts += prices.memory(width, depth) + width
    kernel = stage.sliding.kernel[0] * stage.sliding.kernel[1]
    cycles = max(stage.source.pixels * words, stage.result.pixels * kernel * words)
    return Cost(cycles, luts, blocks, 6 + late)


def _leaf_tables(columns: int, rows: int) -> int:
    """Tables that all rows of constant weights share: for three columns two sums and up to eight carries."""
    return -(-columns // 3) * (2 + min(8, rows))


def _depthwise_cost(stage: Depthwise, fold: Fold, prices: Prices) -> Cost:
    unit = DepthwiseUnit(stage.weights, fold.simd, stage.source.bits, stage.source.signed)
    out, multipliers, blocks = fold.simd * unit.result_bits, 0, 0
    luts = prices.memory(out, max(2, unit.words)) + prices.memory(out, 16) + CONTROL
    luts += fold.simd * (chain_tables(unit.result_bits) + unit.result_bits)
    if unit.is_binary:
        luts += fold.simd * chain_tables(stage.source.bits + 1)
    else:
        own, tables = prices.multiplications(stage.source.bits + (not stage.source.signed), unit.weight_bits)
        luts, multipliers = luts + fold.simd * tables, fold.simd * own
    if unit.store == "block":
        blocks = prices.blocks(fold.simd * unit.weight_bits, unit.entries)
    else:
        luts += logic_tables(fold.simd * unit.weight_bits, unit.entries)
    cycles = stage.source.pixels * unit.entries
    return Cost(cycles, luts, blocks, unit.delay + 2, fold.simd, multipliers)


def _groups(elements: int) -> list[int]:
    """Sizes of the groups of processing elements, each with a memory of its own."""
    return [min(GROUP, elements - start) for start in range(0, elements, GROUP)]


def _weighing_tables(bits: int, planes: int) -> int:
    """LUT4s that add the sums of planes, as ``ProcessingElement`` pairs them."""
    tables, totals = 0, [(plane, bits) for plane in range(planes)]
    while len(totals) > 1:
        level = []
        for (worth, low), (above, high) in zip(totals[::2], totals[1::2], strict=False):
            most = low + (high << (above - worth))
            tables += chain_tables(width_of(most) - (above - worth))
            level.append((worth, most))
        totals = level + totals[len(totals) & ~1 :]
    return tables


def widths(stage: Stage, fold: Fold) -> tuple[int, int]:
    """Bits of a word of a unit's input and output."""
    if isinstance(stage, Multiply):
        return fold.simd * stage.source.bits, fold.pe * stage.product.result_bits
    if isinstance(stage, (Slide, Pool, Largest)):
        return fold.simd * stage.source.bits, fold.simd * stage.source.bits
    if isinstance(stage, Weigh):
        return fold.simd * len(stage.coefficients) * stage.source.bits, fold.simd * stage.result.bits
    if isinstance(stage, (Elementwise, Depthwise)):
        return fold.simd * stage.source.bits, fold.simd * stage.result.bits
    raise TypeError(f"no widths for {type(stage).__name__}")


def width_in(stage: Stage, fold: Fold, port: int) -> int:
    """Bits of a word of one of a unit's inputs."""
    return fold.simd * stage.other.bits if port and isinstance(stage, Join) else widths(stage, fold)[0]


def converter_cycles(bits: int, before: int, behind: int) -> int:
    """Cycles that a frame takes through the converter between two widths: words of the greatest common divisor."""
    common = gcd(before, behind)
    return bits // min(before, behind) if common in (before, behind) else bits // common


def converter_luts(before: int, behind: int) -> int:
    """Logic of a converter: a narrowing one shifts or loads (a table a bit), a widening one only shifts."""
    if not before or before == behind:
        return 0
    common = gcd(before, behind)
    return (before if before != common else 0) + (8 if behind != common else 0)
