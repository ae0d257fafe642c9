"""``xnorc run`` and ``xnorc bench``: a package on a device."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from ..package import Package, load
from .common import FILE, check_writable, console, device_options, progress, read_feeds, verb, write_json

_WIDE = 140
"""Columns of a table that goes to a file: layers have long names and many figures."""


@verb("run", "Run a package on input data.", "xnorc run model.xnorc --input images.npz -o outputs.npz --device qemu")
@click.argument("package", type=FILE)
@click.option(
    "--input",
    "input_file",
    type=FILE,
    metavar="FILE",
    required=True,
    help="Inputs: .npz by name, or .npy for a model of one input.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    required=True,
    help="Outputs: .npz by name, or .npy for a model of one output.",
)
@device_options
def run_verb(package: Path, input_file: Path, output: Path, device: str, threads: int, json_file: Path | None) -> None:
    """Run a compiled model on input data."""
    from ..files import atomic_write, npy_bytes, npz_bytes

    check_writable(output, json_file)
    loaded = load(package)
    names = [tensor["name"] for tensor in loaded.tensors("inputs")]
    results = [tensor["name"] for tensor in loaded.tensors("outputs")]
    if output.suffix == ".npy" and len(results) != 1:
        raise InputError(f"the model has {len(results)} outputs: write a .npz")
    feeds = read_feeds(input_file, names)
    with progress(f"running {loaded.name} on {device}") as say:
        outputs = loaded.run(feeds, device, threads, progress=lambda done, total: say(f"{done} of {total}"))
    atomic_write(output, npy_bytes(outputs[results[0]]) if output.suffix == ".npy" else npz_bytes(outputs))
    described = [
        {"name": name, "dtype": str(value.dtype), "shape": list(value.shape)} for name, value in outputs.items()
    ]
    click.echo(f"{output}: " + ", ".join(f"{item['name']} {item['dtype']} {item['shape']}" for item in described))
    write_json(json_file, {"package": package, "device": device, "threads": threads, "outputs": described})


@verb("bench", "Measure how long each step takes.", "xnorc bench model.xnorc --device ssh://pi@raspberrypi.local")
@click.argument("package", type=FILE)
@click.option(
    "--repeats", type=click.IntRange(1), default=50, show_default="50", metavar="N", help="Runs that are timed."
)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default="5", metavar="N", help="Runs before those.")
@click.option(
    "--cycles",
    is_flag=True,
    help="With --device qemu: count instructions exactly and model the board's cycles (needs Debian's qemu-user and llvm).",
)
@device_options
def bench_verb(
    package: Path, repeats: int, warmup: int, cycles: bool, device: str, threads: int, json_file: Path | None
) -> None:
    """Measure how long each step of a compiled model takes."""
    from ..runtimes.bench import show

    check_writable(json_file)
    loaded = load(package)
    if cycles:
        _model_cycles(loaded, device, threads, json_file)
        return
    with progress(f"timing {loaded.name} on {device}") as say:
        result = loaded.bench(
            device,
            threads,
            repeats=repeats,
            warmup=warmup,
            progress=lambda done, total: say(f"{done} of {total}"),
        )
    show(result, console(_WIDE))
    write_json(json_file, result.to_json())


def _model_cycles(package: Package, device: str, threads: int, json_file: Path | None) -> None:
    from ..runtimes.cycles import model_cycles, show

    if device != "qemu" or threads != 1:
        raise InputError("--cycles models one thread on an emulated board: use it with --device qemu and --threads 1")
    with progress(f"counting the instructions of {package.name}"):
        result = model_cycles(package)
    show(result, console(_WIDE))
    write_json(json_file, result.to_json())
