"""Times: how long each step of a package takes on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .device import Device, Progress, parse_device
from .show import operators

if TYPE_CHECKING:
    from rich.console import Console

    from ..package import Package


@dataclass(frozen=True)
class StepTime:
    """Time of one step. ``gmacs``: 10^9 multiply-accumulates a second, of whatever width, at the median time."""

    name: str
    op: str
    kind: str
    median_us: float
    least_us: float
    share: float
    macs: int
    gmacs: float | None


@dataclass(frozen=True)
class BenchResult:
    """Times of a package on a device. ``total_us`` are medians over runs of the sum of a run's steps."""

    package: str
    target: str
    device: str
    threads: int
    repeats: int
    total_us: float
    least_total_us: float
    steps: list[StepTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def bench(
    package: Package,
    device: Device | str = "host",
    threads: int = 1,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
    repeats: int = 50,
    warmup: int = 5,
    progress: Progress | None = None,
) -> BenchResult:
    """Time every step ``repeats`` times after ``warmup`` runs, on the first sample of ``feeds`` (default: golden inputs)."""
    if repeats < 1 or warmup < 0:
        raise InputError(f"{repeats} repeats after {warmup} warm-up runs: there must be at least one repeat")
    if feeds is None:
        golden = package.golden().items()
        feeds = {name.removeprefix("input/"): array[:1] for name, array in golden if name.startswith("input/")}
    opened = parse_device(device) if isinstance(device, str) else device
    with opened.open(package, threads) as session:
        times = session.bench(feeds, repeats, warmup, progress).astype(np.float64) / 1000
        notes = list(session.notes)
    if opened.name == "qemu":
        notes.append("times under emulation say nothing about the real device")
    medians, totals = np.median(times, axis=0), times.sum(axis=1)
    steps = []
    for index, step in enumerate(package.manifest["steps"]):
        median, macs = float(medians[index]), int(step.get("macs", 0))
        steps.append(
            StepTime(
                step["name"],
                step["op"],
                step["kind"],
                median,
                float(times[:, index].min()),
                median / max(float(medians.sum()), 1e-9),
                macs,
                macs / median / 1000 if macs and median else None,
            )
        )
    return BenchResult(
        package.name, package.target.name, opened.name, threads, repeats, float(np.median(totals)), float(totals.min()),
        steps, notes,
    )  # fmt: skip


def show(result: BenchResult, console: Console) -> None:
    """Print the times as a table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    plural = "" if result.threads == 1 else "s"
    where = result.device if result.device == result.target else f"{result.device} ({result.target})"
    title = f"{result.package} on {where}, {result.threads} thread{plural}, {result.repeats} repeats"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    total = sum(step.macs for step in result.steps)
    rate = f"{total / result.total_us / 1000:.1f}" if total and result.total_us else ""
    table.add_column("step", "total", overflow="fold")
    table.add_column("operator", no_wrap=True)
    table.add_column("kind")
    for name, footer in (
        ("median µs", f"{result.total_us:,.1f}"), ("least µs", f"{result.least_total_us:,.1f}"), ("share", ""),
        ("MMAC", f"{total / 1e6:,.1f}" if total else ""), ("GMAC/s", rate),
    ):  # fmt: skip
        table.add_column(name, footer, justify="right", no_wrap=True)
    for step in result.steps:
        table.add_row(
            escape(step.name), escape(operators(step.op)), step.kind, f"{step.median_us:,.1f}",
            f"{step.least_us:,.1f}",
            f"{step.share:.1%}", f"{step.macs / 1e6:,.1f}" if step.macs else "",
            f"{step.gmacs:.1f}" if step.gmacs is not None else "",
        )  # fmt: skip
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
