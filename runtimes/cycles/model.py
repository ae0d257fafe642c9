"""Modelled time of a package on a board: exact instruction counts, priced block by block, plus a stated memory term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ToolError
from ..show import operators
from .cores import Core, core_of
from .count import Counts, count_instructions
from .price import Pricer, disassemble

if TYPE_CHECKING:
    from rich.console import Console

    from ...package import Package

COVERAGE = 0.999
"""Part of all executed instructions that is priced block by block; the rest costs what these cost on average."""


@dataclass(frozen=True)
class StepCycles:
    """One step. ``instructions`` are exact; ``cycles`` (None without a model of the core) and what follows are modelled.

    ``memory_ms``: time for the bytes that must come from or go to memory. ``limit``: part of the core's limit in MAC per
    cycle that the compute cycles reach.
    """

    name: str
    op: str
    macs: int
    instructions: int
    cycles: float | None
    memory_bytes: int
    memory_ms: float
    ms: float | None
    mac_per_cycle: float | None
    limit: float | None


@dataclass(frozen=True)
class CyclesResult:
    """A package on the model of a board, one thread."""

    package: str
    target: str
    board: str
    ghz: float
    instructions: int
    cycles: float | None
    ms: float | None
    steps: list[StepCycles] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def model_cycles(package: Package, feeds: Mapping[str, np.ndarray] | None = None) -> CyclesResult:
    """Count the instructions of one run of ``package`` (first sample of ``feeds``, default: golden input) and price them.

    Raises ``InputError`` when the package's target is no known board, ``ToolError`` when QEMU with plugins or LLVM's tools
    are missing: the message says what to install.
    """
    core = core_of(package.target)
    if feeds is None:
        golden = package.golden().items()
        feeds = {name.removeprefix("input/"): array[:1] for name, array in golden if name.startswith("input/")}
    counts = count_instructions(package, feeds)
    notes = [
        f"instructions are exact (QEMU); times are modelled, not measured: {core.board}, one thread at {core.ghz:g} GHz"
    ]
    cost: list[float] | None
    try:
        cost = _prices(counts, package, core)
        notes.append(
            f"cycles: llvm-mca for {core.mcpu}, all loads in the first cache; memory: what does not stay in a cache of "
            f"{core.cache_bytes >> 10} KiB, at {core.memory_gbs:g} GB/s, not overlapped"
        )
    except ToolError as error:
        cost = None
        notes.append(f"no cycles: {error}")
    memory = _memory(package, core)
    steps = []
    for number, (step, blocks, moved) in enumerate(zip(package.manifest["steps"], counts.steps, memory, strict=True)):
        instructions = sum(starts * counts.blocks[index].instructions for index, starts in blocks.items())
        cycles = None if cost is None else cost[number]
        seconds = moved / core.memory_gbs / 1e6
        macs = int(step.get("macs", 0))
        rate = macs / cycles if cycles and macs else None
        limit = _limit(step["op"], core)
        steps.append(
            StepCycles(
                step["name"], step["op"], macs, instructions, cycles, moved, seconds,
                None if cycles is None else cycles / core.ghz / 1e6 + seconds, rate,
                rate / limit if rate and limit else None,
            )
        )  # fmt: skip
    total = None if cost is None else sum(step.cycles or 0.0 for step in steps)
    ms = None if cost is None else sum(step.ms or 0.0 for step in steps)
    return CyclesResult(
        package.name, package.target.name, core.board, core.ghz, sum(step.instructions for step in steps), total, ms,
        steps, notes,
    )  # fmt: skip


def step_seconds(package: Package, feeds: Mapping[str, np.ndarray]) -> list[float]:
    """Modelled seconds of every step on the board, without the memory term; raises as ``model_cycles`` does."""
    core = core_of(package.target)
    return [cycles / core.ghz / 1e9 for cycles in _prices(count_instructions(package, feeds), package, core)]


def _prices(counts: Counts, package: Package, core: Core) -> list[float]:
    """Cycles of every step."""
    executed: dict[int, int] = {}
    for blocks in counts.steps:
        for index, starts in blocks.items():
            executed[index] = executed.get(index, 0) + starts * counts.blocks[index].instructions
    order = sorted((index for index in executed if counts.blocks[index].code), key=lambda index: -executed[index])
    total, covered, chosen = sum(executed.values()), 0, []
    for index in order:
        if covered >= COVERAGE * total:
            break
        chosen.append(index)
        covered += executed[index]
    chosen += sorted({i for step in counts.samples for run in step for i in run if counts.blocks[i].code} - set(chosen))
    pricer = Pricer(package.target, core)
    assembly = dict(zip(chosen, disassemble([counts.blocks[i] for i in chosen], package.target), strict=True))
    cost = dict(zip(chosen, pricer.alone([assembly[i] for i in chosen]), strict=True))
    spent = sum(executed.get(i, 0) / counts.blocks[i].instructions * cost[i] for i in chosen)
    average = spent / covered if covered else 0.0
    for index in executed:
        cost.setdefault(index, average * counts.blocks[index].instructions)
    flat = [(step, [i for i in run if i in assembly]) for step, runs in enumerate(counts.samples) for run in runs]
    flat = [(step, run) for step, run in flat if run]
    found = pricer.stretches([[assembly[i] for i in run] for _, run in flat])
    in_order, alone = [0.0] * len(counts.steps), [0.0] * len(counts.steps)
    for (step, run), (warm, cycles) in zip(flat, found, strict=True):
        in_order[step] += cycles
        alone[step] += sum(cost[i] for i in run[warm:])
    return [
        sum(starts * cost[index] for index, starts in blocks.items()) * (run / base if base else 1.0)
        for blocks, run, base in zip(counts.steps, in_order, alone, strict=True)
    ]


def _limit(op: str, core: Core) -> float | None:
    first = op.split("+")[0]
    if first in ("BinaryConv", "BinaryGemm"):
        return core.binary_limit
    return core.float_limit if first in ("Conv", "Gemm", "MatMul") else None


def _memory(package: Package, core: Core) -> list[int]:
    """Bytes between memory and cache in each step.

    Constants come from memory in every run when those of the whole model do not fit into the cache. Tensors that a step
    reads and writes do where they do not fit into it together with the step's constants.
    """
    packed = package.packed()
    sizes = {item.name: len(item.raw_data) for item in packed.graph.initializer}
    readers = {node.name: node for node in packed.graph.node}
    tensors = package.manifest["tensors"]
    constants = [
        sum(sizes.get(name, 0) for node in step["nodes"] if node in readers for name in readers[node].input)
        for step in package.manifest["steps"]
    ]
    streamed = sum(constants) > core.cache_bytes
    places = {entry["tensor"]: ("arena", entry["offset"]) for entry in package.manifest["memory"].get("plan", [])}
    moved = []
    for step, weights in zip(package.manifest["steps"], constants, strict=True):
        # Tensors that lie in one place are one: a sum on top of its residual.
        own = {places.get(index, (index,)): tensors[index] for index in [*step["reads"], *step["writes"]]}
        activations = sum(int(np.prod(item["shape"])) * np.dtype(item["dtype"]).itemsize for item in own.values())
        large = activations + weights > core.cache_bytes
        moved.append((weights if streamed else 0) + (activations if large else 0))
    return moved


def show(result: CyclesResult, console: Console) -> None:
    """Print the model as a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = f"{result.package} modelled on {result.board} ({result.target}), 1 thread"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    macs = sum(step.macs for step in result.steps)

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    table.add_column("step", "total", overflow="fold")
    table.add_column("operator", no_wrap=True)
    for name, footer in (
        ("MMAC", f"{macs / 1e6:,.1f}"), ("Minstr", f"{result.instructions / 1e6:,.2f}"),
        ("instr\n/MAC", number(result.instructions / macs if macs else None, ".3f")),
        ("Mcycles", number(None if result.cycles is None else result.cycles / 1e6, ",.2f")),
        ("MAC\n/cycle", number(macs / result.cycles if result.cycles and macs else None, ".1f")), ("of\nlimit", ""),
        ("memory\nms", f"{sum(step.memory_ms for step in result.steps):.3f}"), ("modelled\nms", number(result.ms, ".3f")),
    ):  # fmt: skip
        table.add_column(name, footer, justify="right", no_wrap=True)
    for step in result.steps:
        table.add_row(
            escape(step.name), escape(operators(step.op)), f"{step.macs / 1e6:,.1f}" if step.macs else "",
            f"{step.instructions / 1e6:,.3f}", number(step.instructions / step.macs if step.macs else None, ".3f"),
            number(None if step.cycles is None else step.cycles / 1e6, ",.3f"), number(step.mac_per_cycle, ".1f"),
            number(step.limit, ".0%"), f"{step.memory_ms:.3f}" if step.memory_bytes else "", number(step.ms, ".3f"),
        )  # fmt: skip
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
