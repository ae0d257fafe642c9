"""``xnorc compile --tune``: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.markup import escape

from ..errors import InputError, TargetError, XnorcError
from .common import FILE, console, forget_interrupt, many, table

if TYPE_CHECKING:
    from ..targets import Target
    from ..tuning import Tuning

F = TypeVar("F", bound=Callable[..., Any])

TRIALS = 32


def tune_options(function: F) -> F:
    """``--tune``, ``--trials``, ``--device`` and ``--tuned``."""
    function = click.option(
        "--tuned",
        "tuned_file",
        type=FILE,
        metavar="FILE",
        help="Use the schedules that were tuned before and stored in FILE; with --tune: store them there too "
        "(default: one file a target, in ~/.cache/xnorc/tuned).",
    )(function)
    function = click.option(
        "--device",
        "tune_device",
        metavar="DEVICE",
        help="With --tune: where to measure (default: host for this machine, else qemu, where times are modelled).",
    )(function)
    function = click.option(
        "--trials",
        type=click.IntRange(1, 10000),
        metavar="N",
        help=f"With --tune: candidates a layer (default: {TRIALS}).",
    )(function)
    return click.option(
        "--tune",
        "wants_tune",
        is_flag=True,
        help="Refine the schedules of the layers by measuring on a device. Results stay the same bit for bit. "
        "Ctrl-C ends it and keeps what was found.",
    )(function)


def tuning_of(target: Target, wanted: bool, trials: int | None, device: str | None, file: Path | None) -> Tuning | None:
    """What the options ask for. Raises ``InputError`` where they do not fit together."""
    if not wanted:
        if trials is not None or device is not None:
            raise InputError("--trials and --device are for --tune")
        return None
    if target.is_fpga:
        raise TargetError(f"--tune is for CPUs: '{target.name}' is an FPGA board")
    from ..tuning import Records, Tuning, default_file
    from ..tuning.search import device_of

    if file is None:
        file = default_file(target)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise XnorcError(
                f"cannot make '{file.parent}' ({error.strerror}): say where to store with --tuned FILE"
            ) from error
    where = device or ("host" if target.is_host else "qemu")
    device_of(where)
    return Tuning(Records.read(file, missing_ok=True), where, trials or TRIALS, forget_interrupt)


def show_schedules(steps: Sequence[Mapping[str, Any]]) -> None:
    """Print how many steps do not have the default schedule, and whose choices they have."""
    counts = [
        f"{many(count, 'step')} {whose}"
        for source, whose in (("shipped", "as shipped for such layers"), ("tuned", "as tuned"))
        if (count := sum(source in step for step in steps))
    ]
    if counts:
        click.echo(f"schedules: {', '.join(counts)}, the others by default (the manifest has the choices)")


def show_tuning(tuning: Tuning) -> None:
    """Print what was gained, layer by layer."""
    out = console()
    shown = table(
        "layer", "operator", "steps", "shipped µs", "tuned µs", "gain", "choices",
        right=("steps", "shipped µs", "tuned µs", "gain"),
    )  # fmt: skip
    before = after = 0.0
    for done in tuning.done:
        before, after = before + done.times * done.shipped_us, after + done.times * done.us
        chosen = ", ".join(f"{name} {value}" for name, value in done.choices.items()) or "as shipped"
        if done.reason:
            chosen = f"{done.reason}: {chosen}" if done.choices else done.reason
        operator = done.op.split("+")[0]
        shown.add_row(
            escape(done.layer), operator, str(done.times), f"{done.shipped_us:,.1f}", f"{done.us:,.1f}",
            f"{done.gain:.2f}", escape(chosen),
        )  # fmt: skip
    out.print(shown)
    modelled = ", modelled" if tuning.device == "qemu" else ""
    tried, wrong = sum(done.trials for done in tuning.done), sum(done.wrong for done in tuning.done)
    if tuning.interrupted:
        click.echo("interrupted: the package is made with what was found so far")
    if tuning.done:
        click.echo(
            f"tuned on {tuning.device}{modelled}: {before / 1e3:.2f} ms as shipped, {after / 1e3:.2f} ms tuned "
            f"({before / after:.2f}x) in {many(len(tuning.done), 'layer')}; {many(tried, 'candidate')}, {wrong} refused"
        )
    click.echo(f"stored in {tuning.records.path}")
