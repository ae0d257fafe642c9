"""How parallel each stage is: rows and columns a cycle, what that costs, and the search for the cheapest that is fast enough.

Counts are LUT4s (a carry cell of the ECP5 counts as the two that it takes), block memories of 18 kbit, cycles. What a unit
takes is a sum over its parts: trees and accumulators exactly as they are built, weights in block memory or as tables of
logic, and a share for control that was fitted to what yosys reports (the tests compare).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import gcd
from typing import Any

from ...errors import TargetError
from .prices import FAMILIES, Prices
from .stages import Compare, Multiply, Pool, Slide, Stage, Weigh
from .units.compare import Compare as CompareUnit
from .units.matvec import GROUP, LOGIC_DEPTH, Store, weights_of
from .units.popcount import best_tree, chain_tables, weighing, width_of
from .units.unrolled import SpanningMatrixVector, cost_of
from .units.window import BUFFER_BITS

_CONTROL = 40
"""LUT4s of a unit's counters and handshakes, about."""
_BLOCK_PRICES = (150.0, 400.0, 1500.0, 50.0, 10.0)
"""LUT4s that a block memory is worth: first what a chip has of both, then what saves the one or the other."""
_DEEPEST_LOGIC = 64
_FAN_OUT, _LOAD_PRICE = 512, 2
"""Tables that one counter may address, and LUT4s that each beyond is worth: a net with more goes across the chip, slowly."""


@dataclass(frozen=True)
class Fold:
    """``pe`` rows × ``simd`` columns a cycle, weights in ``store``; ``spanning``: rows counted from one another."""

    pe: int = 1
    simd: int = 1
    store: Store = "block"
    spanning: bool = False


@dataclass(frozen=True)
class Cost:
    """What one stage takes. ``cycles``: between images; ``delay``: from its first word to its first result, more than that."""

    cycles: int
    luts: int
    blocks: int
    delay: int
    macs_per_cycle: int = 0


@dataclass(frozen=True)
class StagePlan:
    """A stage, its fold, and what they cost together."""

    stage: Stage
    fold: Fold
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """A folded pipeline. ``clock_hz`` turns cycles into time; ``extra``: LUT4s around it (link, converters)."""

    stages: tuple[StagePlan, ...]
    clock_hz: float
    notes: list[str] = field(default_factory=list)

    @property
    def folds(self) -> list[Fold]:
        """One a stage."""
        return [item.fold for item in self.stages]

    @property
    def interval(self) -> int:
        """Cycles between images."""
        return max(item.cost.cycles for item in self.stages)

    @property
    def latency(self) -> int:
        """Cycles from the first word of the first image to the last of its result."""
        return latency([item.stage for item in self.stages], self.folds)

    @property
    def luts(self) -> int:
        """LUT4s of all stages."""
        return sum(item.cost.luts for item in self.stages)

    @property
    def blocks(self) -> int:
        """Block memories of all stages."""
        return sum(item.cost.blocks for item in self.stages)

    @property
    def fps(self) -> float:
        """Images a second."""
        return self.clock_hz / self.interval

    def cycles(self, frames: int) -> int:
        """Cycles for so many images, one after the other."""
        return self.latency + (frames - 1) * self.interval

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the package and for JSON."""
        return {
            "clock_hz": self.clock_hz,
            "interval_cycles": self.interval,
            "latency_cycles": self.latency,
            "latency_seconds": self.latency / self.clock_hz,
            "fps": self.fps,
            "luts": self.luts,
            "blocks": self.blocks,
            "stages": [
                {
                    "name": item.stage.name,
                    "kind": type(item.stage).__name__.lower(),
                    "pe": item.fold.pe,
                    "simd": item.fold.simd,
                    "store": item.fold.store,
                    **({"spanning": True} if item.fold.spanning else {}),
                    "cycles": item.cost.cycles,
                    "luts": item.cost.luts,
                    "blocks": item.cost.blocks,
                    "macs_per_cycle": item.cost.macs_per_cycle,
                    "fps": self.clock_hz / item.cost.cycles,
                }
                for item in self.stages
            ],
        }


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
        luts = prices.memory(fold.simd, columns) + 3 * fold.simd + _CONTROL
        return Cost(stage.source.pixels * words, luts, 0, 2)
    if isinstance(stage, (Weigh, Compare)):
        return _steady_cost(stage, fold, prices)
    raise TypeError(f"no cost for {type(stage).__name__}")


def _product_cost(stage: Multiply, fold: Fold, prices: Prices) -> Cost:
    product = stage.product
    rows, columns = product.rows // fold.pe, product.columns // fold.simd
    folds = rows * columns
    width = width_of(product.most) + (product.thresholds is not None)
    weights = weights_of(product, folds)
    if fold.spanning:
        luts, delay = cost_of(product)
        luts += prices.memory(fold.pe * product.result_bits, 16) + _CONTROL
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
        blocks += sum(prices.blocks(size * fold.simd, folds) for size in _groups(fold.pe))
    else:
        luts += logic_tables(fold.pe * fold.simd, folds)
    limits = 0 if product.thresholds is None else product.thresholds.size // fold.pe
    if limits > 1:
        if limits <= LOGIC_DEPTH or fold.simd < 3:
            luts += logic_tables(fold.pe * width, limits)
        else:
            blocks += sum(prices.blocks(size * width, limits) for size in _groups(fold.pe))
    if rows > 1 and columns > 1:  # the vector is kept in distributed memory, read beside the input
        # (and so is the next one, in front of the unit)
        bits = fold.simd * product.planes
        luts += 2 * prices.memory(bits, columns) + bits + prices.queue
    luts += prices.memory(fold.pe * product.result_bits, min(16, 3 + -(-16 // columns))) + _CONTROL
    groups = 1 if weights == "constant" else -(-fold.pe // GROUP)
    delay = tree.depth + weighing(product.planes) + 4 + (fold.store == "block" and folds > 1) + groups
    return Cost(stage.source.pixels * folds, luts, blocks, delay, fold.pe * fold.simd)


def _window_cost(stage: Slide, fold: Fold, prices: Prices) -> Cost:
    words, width = stage.source.channels // fold.simd, fold.simd * stage.source.bits
    depth = stage.sliding.kept_rows * stage.source.width * words
    luts, blocks, late = prices.memory(width, 8) + 4 * _CONTROL, 0, depth * width > BUFFER_BITS
    if late:
        blocks = prices.blocks(width, depth)
    else:
        luts += prices.memory(width, depth) + width
    kernel = stage.sliding.kernel[0] * stage.sliding.kernel[1]
    cycles = max(stage.source.pixels * words, stage.result.pixels * kernel * words)
    return Cost(cycles, luts, blocks, 6 + late)


def _steady_cost(stage: Weigh | Compare, fold: Fold, prices: Prices) -> Cost:
    """Units that work on each element by itself: a word a cycle, and a buffer behind them."""
    words, out = stage.result.channels // fold.simd, fold.simd * stage.result.bits
    luts, blocks = 2 * prices.memory(out, 16) + _CONTROL // 2, 0
    if isinstance(stage, Weigh):
        terms, delay = len(stage.coefficients), 1 + (len(stage.coefficients) - 1).bit_length()
        luts += fold.simd * (terms - 1) * chain_tables(stage.result.bits)
    else:
        unit = CompareUnit(stage.steps, stage.source.bits, stage.source.signed, fold.simd)
        delay, lane = unit.latency, unit.wide * stage.steps.steps + 1
        luts += fold.simd * (
            stage.steps.steps * chain_tables(unit.wide) + stage.steps.bits * -(-stage.steps.steps // 3)
        )
        if unit.store == "block":
            blocks = prices.blocks(lane * fold.simd, unit.entries)
        else:
            luts += logic_tables(lane * fold.simd, unit.entries)
    return Cost(stage.source.pixels * words, luts, blocks, delay + 2)


def _leaf_tables(columns: int, rows: int) -> int:
    """Tables that all rows of constant weights share: for three columns two sums and up to eight carries."""
    return -(-columns // 3) * (2 + min(8, rows))


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


def logic_tables(width: int, depth: int) -> int:
    """LUT4s of a table of ``depth`` words of ``width`` constant bits: one for each 16 words, and what chooses between them."""
    if depth <= 2:
        return 0
    groups = -(-depth // 16)
    return width * (groups + (groups > 1) * (groups - 1)) if depth > 4 else width // 2


def latency(stages: Sequence[Stage], folds: Sequence[Fold]) -> int:
    """Cycles from the first word of an image to the last word of its result, through an empty pipeline."""
    first, last, width = 0.0, 0.0, 0
    for number, (stage, fold) in enumerate(zip(stages, folds, strict=True)):
        wide_in, wide_out = widths(stage, fold)
        if number == 0:
            last = float(-(-stage.source.frame_bits // wide_in) - 1)
        elif width != wide_in:
            first, last = first + max(1, wide_in // width), last + 2
        if (
            number
            and isinstance(stage, Multiply)
            and stage.product.rows > fold.pe
            and stage.product.columns > fold.simd
        ):
            first, last = first + 2, last + 2  # through the buffer in front
        first, last = _pass(stage, cost(stage, fold), fold, first, last)
        width = wide_out
    return round(last) + 1


def _pass(stage: Stage, taken: Cost, fold: Fold, first: float, last: float) -> tuple[float, float]:
    """When the first and the last word of the result come out, if those of the image go in at ``first`` and ``last``."""
    if isinstance(stage, Multiply):
        columns = stage.product.columns // fold.simd
        rows = stage.product.rows // fold.pe
        vector = (last - first) / stage.source.pixels
        begun = first + max(columns - 1, vector)
        done = max(first + taken.cycles - 1, last + (rows - 1) * columns)
        return begun + taken.delay, done + taken.delay
    if isinstance(stage, Slide):
        sliding, span = stage.sliding, last - first
        begun = first + span * sliding.needs(0) / stage.source.height
        words = stage.source.channels // fold.simd
        row = sliding.out[1] * sliding.kernel[0] * sliding.kernel[1] * words
        return begun + taken.delay, max(begun + row * sliding.out[0], last + row) + taken.delay
    if isinstance(stage, Pool):
        begun = first + (last - first) * (stage.kernel[0] - 1) / stage.source.height
        return begun + taken.delay, max(last, first + taken.cycles) + taken.delay
    if isinstance(stage, (Weigh, Compare)):
        return first + taken.delay, max(last, first + taken.cycles - 1) + taken.delay
    raise TypeError(f"no timing for {type(stage).__name__}")


def widths(stage: Stage, fold: Fold) -> tuple[int, int]:
    """Bits of a word of a unit's input and output."""
    if isinstance(stage, Multiply):
        return fold.simd * stage.source.bits, fold.pe * stage.product.result_bits
    if isinstance(stage, (Slide, Pool)):
        return fold.simd * stage.source.bits, fold.simd * stage.source.bits
    if isinstance(stage, Weigh):
        return fold.simd * len(stage.coefficients) * stage.source.bits, fold.simd * stage.result.bits
    if isinstance(stage, Compare):
        return fold.simd * stage.source.bits, fold.simd * stage.result.bits
    raise TypeError(f"no widths for {type(stage).__name__}")


def divisors(number: int) -> list[int]:
    """All divisors, rising."""
    return [n for n in range(1, number + 1) if number % n == 0]


@cache
def _options(stage: Stage, family: str) -> list[tuple[Fold, Cost]]:
    """All folds of a stage."""
    found = []
    if not isinstance(stage, Multiply):
        return [
            (fold, cost(stage, fold, family))
            for fold in (Fold(simd=simd) for simd in divisors(min(stage.source.channels, stage.result.channels)))
        ]
    for pe in divisors(stage.product.rows):
        for simd in divisors(stage.product.columns):
            folds = stage.product.rows * stage.product.columns // (pe * simd)
            for store in ("logic", "block") if folds <= _DEEPEST_LOGIC else ("block",):
                fold = Fold(pe, simd, store)  # type: ignore[arg-type]
                found.append((fold, cost(stage, fold, family)))
    return found


def plan(
    stages: Sequence[Stage],
    clock_hz: float,
    capacity: dict[str, int],
    *,
    fps: float | None = None,
    share: float = 0.7,
    board: str = "",
    family: str = "ecp5",
) -> Plan:
    """The cheapest folds that reach ``fps``; without it the fastest that fit ``share`` of the LUTs.

    ``capacity``: ``LUT4`` and ``BRAM`` of the chip, one of ``family``. Raises ``TargetError`` that names the resource
    when nothing fits.
    """
    budget = int(capacity["LUT4"] * share), int(capacity["BRAM"] * 0.95)
    if fps is not None:
        wanted = int(clock_hz / fps)
        found = _within(stages, wanted, budget, family) if wanted >= 1 else None
        if found is None:
            best = plan(stages, clock_hz, capacity, share=share, board=board, family=family)
            raise TargetError(
                f"{fps:,.0f} FPS at {clock_hz / 1e6:g} MHz need a result every {clock_hz / fps:.1f} cycles: within "
                f"{budget[0]:,} LUT4 and {budget[1]} block memories of board '{board}' the best is "
                f"{best.fps:,.0f} FPS (--fps {int(best.fps)}, or a higher --max-luts)"
            )
        return _plan(stages, found, clock_hz, family)
    candidates = sorted({option.cycles for stage in stages for _, option in _options(stage, family)})
    low, high = 0, len(candidates) - 1
    chosen = None
    while low <= high:
        middle = (low + high) // 2
        found = _within(stages, candidates[middle], budget, family)
        if found is not None:
            chosen, high = found, middle - 1
        else:
            low = middle + 1
    if chosen is None:
        least = _cheapest(stages, candidates[-1], _BLOCK_PRICES[0], family)
        assert least is not None
        small = _plan(stages, least, clock_hz, family)
        over = [
            f"{need:,} {name} of {most:,} ({100 * need / most - 100:.0f} % too many)"
            for need, name, most in ((small.luts, "LUT4", budget[0]), (small.blocks, "block memories", budget[1]))
            if need > most
        ]
        hint = "raise --max-luts or " if small.luts > budget[0] and share < 0.9 else ""
        raise TargetError(
            f"the model does not fit board '{board}' even one product a cycle: it needs {' and '.join(over)}; "
            f"{hint}choose a larger board or a smaller model"
        )
    return _plan(stages, chosen, clock_hz, family)


def compress(found: Plan, family: str = "ecp5") -> Plan:
    """MST-compression of the stages that are fully unrolled, where the estimate says that it takes fewer LUT4s."""
    folds = []
    for item in found.stages:
        fold = item.fold
        if isinstance(item.stage, Multiply) and SpanningMatrixVector.fits(item.stage.product, fold.pe, fold.simd):
            other = replace(fold, spanning=True)
            fold = other if cost(item.stage, other, family).luts < cost(item.stage, fold, family).luts else fold
        folds.append(fold)
    return _plan([item.stage for item in found.stages], folds, found.clock_hz, family)


def _plan(stages: Sequence[Stage], folds: Sequence[Fold], clock_hz: float, family: str) -> Plan:
    """With each stage goes the converter in front of it."""
    items, before = [], 0
    for stage, fold in zip(stages, folds, strict=True):
        taken, (wide_in, wide_out) = cost(stage, fold, family), widths(stage, fold)
        items.append(StagePlan(stage, fold, replace(taken, luts=taken.luts + _converter_luts(before, wide_in))))
        before = wide_out
    return Plan(tuple(items), clock_hz)


def _within(stages: Sequence[Stage], interval: int, budget: tuple[int, int], family: str) -> list[Fold] | None:
    """Folds that take at most ``interval`` cycles and fit the budget of LUT4s and block memories, or None."""
    for price in _BLOCK_PRICES:
        found = _cheapest(stages, interval, price, family)
        if found is None:
            return None
        costs = [cost(stage, fold, family) for stage, fold in zip(stages, found, strict=True)]
        if sum(c.luts for c in costs) <= budget[0] and sum(c.blocks for c in costs) <= budget[1]:
            return found
    return None


def _cheapest(stages: Sequence[Stage], interval: int, block_price: float, family: str) -> list[Fold] | None:
    """The cheapest folds that take at most ``interval`` cycles: dynamic programming over the widths between stages."""
    # Width of the words that come in → the cheapest way there.
    best: dict[int, tuple[float, list[Fold]]] = {0: (0.0, [])}
    for stage in stages:
        cheapest: dict[tuple[int, int], tuple[float, Fold]] = {}
        for fold, taken in _options(stage, family):
            price = taken.luts + block_price * taken.blocks + _LOAD_PRICE * max(0, _loads(stage, fold) - _FAN_OUT)
            key = widths(stage, fold)
            if taken.cycles <= interval and (key not in cheapest or price < cheapest[key][0]):
                cheapest[key] = price, fold
        reached: dict[int, tuple[float, list[Fold]]] = {}
        for (wide_in, wide_out), (price, fold) in cheapest.items():
            for before, (paid, folds) in best.items():
                if before and _converter_cycles(stage.source.frame_bits, before, wide_in) > interval:
                    continue
                total = paid + price + _converter_luts(before, wide_in)
                if wide_out not in reached or total < reached[wide_out][0]:
                    reached[wide_out] = total, [*folds, fold]
        best = reached
    return min(best.values(), key=lambda item: item[0])[1] if best else None


def _loads(stage: Stage, fold: Fold) -> int:
    """Tables of weights that one counter addresses."""
    folded = isinstance(stage, Multiply) and (stage.product.rows, stage.product.columns) != (fold.pe, fold.simd)
    return min(fold.pe, GROUP) * fold.simd if folded and fold.store == "logic" else 0


def _converter_cycles(bits: int, before: int, behind: int) -> int:
    """Cycles that a frame takes through the converter between two widths: words of the greatest common divisor."""
    common = gcd(before, behind)
    return bits // min(before, behind) if common in (before, behind) else bits // common


def _converter_luts(before: int, behind: int) -> int:
    """Logic of a converter: a narrowing one shifts or loads (a table a bit), a widening one only shifts."""
    if not before or before == behind:
        return 0
    common = gcd(before, behind)
    return (before if before != common else 0) + (8 if behind != common else 0)
