"""What ``xnorc compile`` has for FPGA boards: its options, and the table of an estimate."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..targets import FpgaOptions
from .common import console, progress, table, write_json


def fpga_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of FPGA boards from ``--fps`` to ``--estimate``: given on as ``estimate`` and ``fpga`` (or None)."""

    @click.option(
        "--fps", type=float, metavar="N", help="For an FPGA: images a second to reach (default: all that fits)."
    )
    @click.option("--max-luts", metavar="P%", help="For an FPGA: share of its LUTs to use at most.  [default: 70%]")
    @click.option("--clock", type=float, metavar="MHZ", help="For an FPGA: the clock (default: the board's).")
    @click.option("--cpu", metavar="NAME", help="For an FPGA: target of what stays on a CPU.  [default: host]")
    @click.option("--mst", is_flag=True, help="For an FPGA: fewer LUTs for fully unrolled layers, at a longer latency.")
    @click.option("--estimate", is_flag=True, help="For an FPGA: say what it takes and how fast it is, build nothing.")
    @wraps(function)
    def wrapped(
        *args: Any, fps: float | None, max_luts: str | None, clock: float | None, cpu: str | None, mst: bool,
        estimate: bool, **kwargs: Any,
    ) -> None:  # fmt: skip
        given = estimate or mst or any(value is not None for value in (fps, max_luts, clock, cpu))
        if fps is not None and not 0 < fps < 1e12:
            raise InputError(f"--fps {fps:g} must be a positive number")
        if clock is not None and not 1 <= clock <= 1000:
            raise InputError(f"--clock {clock:g}: between 1 and 1000 MHz")
        options = FpgaOptions(fps, _share(max_luts), (clock or 0) * 1e6, cpu or "host", mst) if given else None
        function(*args, estimate=estimate, fpga=options, **kwargs)

    return wrapped


def _share(text: str | None) -> float:
    if text is None:
        return 0.7
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError as error:
        raise InputError(f"--max-luts '{text}' is not a share of the form 60%") from error
    if not 0 < value <= 1:
        raise InputError(f"--max-luts {text}: between 0% and 100%")
    return value


def estimate_on_board(
    model: Path, target: str, options: FpgaOptions | None, shapes: dict[str, tuple[int, ...]], sign_zero: int | None,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Print what a model would take on a board."""
    with progress(f"estimating {model.name} on {target}") as say:
        from .. import api

        found = api.estimate(model, target, shapes=shapes, sign_zero=sign_zero, fpga=options, progress=say)
    show_estimate(found, target)
    parts = found["partition"]
    before, behind = (", ".join(parts[part]) or "nothing" for part in ("head", "tail"))
    click.echo(f"CPU: {before} | FPGA: {', '.join(parts['fpga'])} | CPU: {behind}")
    for node, reason in found["reasons"].items():
        click.echo(f"on the CPU: {node}: {reason}")
    write_json(json_file, found)


def show_estimate(found: dict[str, Any], board: str) -> None:
    """The stages of a folded pipeline as a table, and what follows for the whole."""
    shown = table("stage", "kind", "PE × SIMD", "weights", "cycles", "LUT4", "BRAM", "MAC/cycle", "FPS")
    for stage in found["stages"]:
        fold = f"{stage['pe']} × {stage['simd']}" if stage["macs_per_cycle"] else ""
        shown.add_row(
            stage["name"], stage["kind"], fold, stage["store"] if stage["macs_per_cycle"] else "", f"{stage['cycles']:,}",
            f"{stage['luts']:,}", f"{stage['blocks']}", f"{stage['macs_per_cycle'] or ''}", f"{stage['fps']:,.0f}",
        )  # fmt: skip
    console().print(shown)
    click.echo(
        f"{board}: estimated {found['luts']:,} LUT4, {found['blocks']} block memories and {found['multipliers']} "
        f"multipliers; a result every {found['interval_cycles']:,} cycles, the first after {found['latency_cycles']:,}; at "
        f"{found['clock_hz'] / 1e6:g} MHz {found['fps']:,.0f} FPS, latency {found['latency_seconds'] * 1e6:,.2f} µs"
    )
