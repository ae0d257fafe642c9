"""What units cost that work on each element by itself: a word a cycle, and a small buffer behind them."""

from __future__ import annotations

from .prices import Cost, Prices, logic_tables
from .stages import Compare, Join, Rescale, Weigh
from .units.compare import Compare as CompareUnit
from .units.popcount import chain_tables
from .units.rescale import Rescale as RescaleUnit

Elementwise = Weigh | Compare | Rescale | Join

_CONTROL = 20
"""LUT4s of counters and handshakes, about."""


def elementwise_cost(stage: Elementwise, simd: int, prices: Prices) -> Cost:
    """What a stage takes at ``simd`` elements a cycle."""
    cycles, out = stage.source.pixels * (stage.result.channels // simd), simd * stage.result.bits
    luts, table, store, multipliers = 2 * prices.memory(out, 16) + _CONTROL, (0, 0), "logic", 0
    if isinstance(stage, Weigh):
        terms = len(stage.coefficients)
        delay = 1 + (terms - 1).bit_length()
        luts += simd * (terms - 1) * chain_tables(stage.result.bits)
    elif isinstance(stage, Join):
        delay = 2
        luts += simd * chain_tables(stage.result.bits)
    elif isinstance(stage, Compare):
        compare = CompareUnit(stage.steps, stage.source.bits, stage.source.signed, simd)
        steps, delay, store = stage.steps, compare.latency, compare.store
        luts += simd * (steps.steps * chain_tables(compare.wide) + steps.bits * -(-steps.steps // 3))
        table = simd * (compare.wide * steps.steps + 1), compare.entries
    else:
        scale = RescaleUnit(stage.scaling, stage.source.bits, stage.source.signed, simd)
        delay, store = scale.latency, scale.store
        rest = max(2, scale.wide - stage.scaling.shift + 1)
        luts += simd * (chain_tables(scale.wide) + chain_tables(rest) + 2 * rest + stage.scaling.width)
        own, tables = prices.multiplications(stage.source.bits + (not stage.source.signed), scale.mul_bits)
        luts, multipliers = luts + simd * tables, simd * own
        table = simd * (scale.mul_bits + scale.add_bits), scale.words
    blocks = 0
    if store == "block":
        blocks = prices.table(*table)
    else:
        luts += logic_tables(*table)
    return Cost(cycles, luts, blocks, delay + 2, multipliers=multipliers)
