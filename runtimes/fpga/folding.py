"""How parallel each stage is: rows and columns a cycle, and the search for the cheapest folds that are fast enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ...errors import TargetError
from .branches import is_chain, shelves
from .costs import CONTROL, Fold, converter_cycles, converter_luts, cost, width_in, widths
from .elementwise import Elementwise
from .prices import FAMILIES, Cost
from .stages import Depthwise, Largest, Multiply, Pool, Slide, Stage, sources_of
from .units.matvec import GROUP
from .units.unrolled import SpanningMatrixVector
from .units.window import BUFFER_BITS

_BLOCK_PRICES = (150.0, 400.0, 1500.0, 50.0, 10.0)
"""LUT4s that a block memory is worth: first what a chip has of both, then what saves the one or the other."""
_DEEPEST_LOGIC = 64
_FAN_OUT, _LOAD_PRICE = 512, 2
"""Tables that one counter may address, and LUT4s that each beyond is worth: a net with more goes across the chip, slowly."""


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
    def multipliers(self) -> int:
        """The chip's own multipliers, of all stages."""
        return sum(item.cost.multipliers for item in self.stages)

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
            "multipliers": self.multipliers,
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
                    "multipliers": item.cost.multipliers,
                    "macs_per_cycle": item.cost.macs_per_cycle,
                    "fps": self.clock_hz / item.cost.cycles,
                }
                for item in self.stages
            ],
        }


def latency(stages: Sequence[Stage], folds: Sequence[Fold]) -> int:
    """Cycles from the first word of an image to the last word of its result, through an empty pipeline."""
    times: dict[int, tuple[float, float, int]] = {}
    for number, (stage, fold, sources) in enumerate(zip(stages, folds, sources_of(stages), strict=True)):
        given = []
        for port, source in enumerate(sources):
            wide = width_in(stage, fold, port)
            if source < 0:
                given.append((0.0, float(-(-stage.source.frame_bits // wide) - 1)))
                continue
            first, last, width = times[source]
            given.append((first, last) if width == wide else (first + max(1, wide // width), last + 2))
        first, last = max(begin for begin, _ in given), max(end for _, end in given)
        kept = isinstance(stage, Multiply) and stage.product.rows > fold.pe and stage.product.columns > fold.simd
        if kept and sources[0] >= 0:
            first, last = first + 2, last + 2  # through the buffer in front
        first, last = _pass(stage, cost(stage, fold), fold, first, last)
        times[number] = first, last, widths(stage, fold)[1]
    return round(times[len(stages) - 1][1]) + 1


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
    if isinstance(stage, (Largest, Depthwise)):
        begun = first + (stage.source.channels - stage.result.channels) // fold.simd
        return begun + taken.delay, max(last, first + taken.cycles - 1) + taken.delay
    if isinstance(stage, Elementwise):
        return first + taken.delay, max(last, first + taken.cycles - 1) + taken.delay
    raise TypeError(f"no timing for {type(stage).__name__}")


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


class TooLarge(TargetError):
    """A model that fits no share of the chip that was allowed. ``least``: the smallest pipeline there is for it."""

    def __init__(self, message: str, least: Plan) -> None:
        super().__init__(message)
        self.least = least


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

    ``capacity``: ``LUT4``, ``BRAM`` and ``DSP`` of the chip, one of ``family``. Raises ``TooLarge`` that names the resource
    when nothing fits, ``TargetError`` when ``fps`` is out of reach.
    """
    budget = int(capacity["LUT4"] * share), int(capacity["BRAM"] * 0.95), capacity.get("DSP", 0)
    if fps is not None:
        wanted = int(clock_hz / fps)
        found = _within(stages, wanted, budget, family) if wanted >= 1 else None
        if found is None:
            best = plan(stages, clock_hz, capacity, share=share, board=board, family=family)
            raise TargetError(
                f"{fps:,.0f} FPS at {clock_hz / 1e6:g} MHz need a result every {clock_hz / fps:.1f} cycles: within "
                f"{budget[0]:,} LUT4, {budget[1]} block memories and {budget[2]} multipliers of board '{board}' the best is "
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
            for need, name, most in zip(_needs(small), ("LUT4", "block memories", "multipliers"), budget, strict=True)
            if need > most
        ]
        raise TooLarge(
            f"the model does not fit board '{board}' even one product a cycle: it needs {' and '.join(over)}", small
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
    """With each stage go the converters in front of it, and what waits there for the other branch."""
    items, wide = [], _widths_behind(stages, folds)
    waits = shelves(stages, [fold.simd for fold in folds])
    for number, (stage, fold, sources) in enumerate(zip(stages, folds, sources_of(stages), strict=True)):
        taken, luts, blocks = cost(stage, fold, family), 0, 0
        for port, source in enumerate(sources):
            width, words = width_in(stage, fold, port), waits.get((number, port), 0)
            luts += converter_luts(wide[source], width)
            if width * words > BUFFER_BITS:
                luts, blocks = luts + CONTROL, blocks + FAMILIES[family].blocks(width, words)
            elif words:
                luts += FAMILIES[family].memory(width, words)
        items.append(StagePlan(stage, fold, replace(taken, luts=taken.luts + luts, blocks=taken.blocks + blocks)))
    return Plan(tuple(items), clock_hz)


def _widths_behind(stages: Sequence[Stage], folds: Sequence[Fold]) -> dict[int, int]:
    """Bits of a word behind each stage, by its number; −1 is the accelerator's input, as wide as its first reader."""
    reader, port = next((n, p) for n, those in enumerate(sources_of(stages)) for p, s in enumerate(those) if s == -1)
    behind = {n: widths(stage, fold)[1] for n, (stage, fold) in enumerate(zip(stages, folds, strict=True))}
    return {-1: width_in(stages[reader], folds[reader], port), **behind}


def _within(stages: Sequence[Stage], interval: int, budget: tuple[int, int, int], family: str) -> list[Fold] | None:
    """Folds that take at most ``interval`` cycles and fit the budget of LUT4s, block memories and multipliers, or None."""
    for price in _BLOCK_PRICES:
        found = _cheapest(stages, interval, price, family)
        if found is None:
            return None
        if all(need <= most for need, most in zip(_needs(_plan(stages, found, 1, family)), budget, strict=True)):
            return found
    return None


def _needs(found: Plan) -> tuple[int, int, int]:
    """LUT4s, block memories and multipliers."""
    return found.luts, found.blocks, found.multipliers


def _cheapest(stages: Sequence[Stage], interval: int, block_price: float, family: str) -> list[Fold] | None:
    """The cheapest folds that take at most ``interval`` cycles: dynamic programming over the widths between stages."""
    if not is_chain(stages):
        return _one_by_one(stages, interval, block_price, family)
    # Width of the words that come in → the cheapest way there.
    best: dict[int, tuple[float, list[Fold]]] = {0: (0.0, [])}
    for stage in stages:
        cheapest: dict[tuple[int, int], tuple[float, Fold]] = {}
        for fold, taken in _options(stage, family):
            price = _price(stage, fold, taken, block_price)
            key = widths(stage, fold)
            if taken.cycles <= interval and (key not in cheapest or price < cheapest[key][0]):
                cheapest[key] = price, fold
        reached: dict[int, tuple[float, list[Fold]]] = {}
        for (wide_in, wide_out), (price, fold) in cheapest.items():
            for before, (paid, folds) in best.items():
                if before and converter_cycles(stage.source.frame_bits, before, wide_in) > interval:
                    continue
                total = paid + price + converter_luts(before, wide_in)
                if wide_out not in reached or total < reached[wide_out][0]:
                    reached[wide_out] = total, [*folds, fold]
        best = reached
    return min(best.values(), key=lambda item: item[0])[1] if best else None


def _price(stage: Stage, fold: Fold, taken: Cost, block_price: float) -> float:
    """LUT4s that a fold is worth, with its block memories and its fan-out."""
    return taken.luts + block_price * taken.blocks + _LOAD_PRICE * max(0, _loads(stage, fold) - _FAN_OUT)


def _loads(stage: Stage, fold: Fold) -> int:
    """Tables of weights that one counter addresses."""
    folded = isinstance(stage, Multiply) and (stage.product.rows, stage.product.columns) != (fold.pe, fold.simd)
    return min(fold.pe, GROUP) * fold.simd if folded and fold.store == "logic" else 0


def _one_by_one(stages: Sequence[Stage], interval: int, block_price: float, family: str) -> list[Fold] | None:
    """As ``_cheapest`` for pipelines with branches: each stage's cheapest fold behind those that were chosen before it."""
    wide: dict[int, int] = {-1: 0}
    folds: list[Fold] = []
    for number, (stage, sources) in enumerate(zip(stages, sources_of(stages), strict=True)):
        best: tuple[float, Fold] | None = None
        for fold, taken in _options(stage, family):
            ports = [(wide[source], width_in(stage, fold, port)) for port, source in enumerate(sources)]
            slow = any(w and converter_cycles(stage.source.frame_bits, w, own) > interval for w, own in ports)
            if taken.cycles > interval or slow:
                continue
            price = _price(stage, fold, taken, block_price) + sum(converter_luts(*pair) for pair in ports)
            if best is None or price < best[0]:
                best = price, fold
        if best is None:
            return None
        folds.append(best[1])
        wide[number] = widths(stage, best[1])[1]
        if -1 in sources and not wide[-1]:
            wide[-1] = widths(stage, best[1])[0]
    return folds
