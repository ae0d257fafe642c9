"""Compile the trained MNIST network for a Raspberry Pi 4 and for this machine, and prove both right.

    python examples/mnist/demo.py [--images 10000] [--device-images 500] [--target rpi4] [--keep DIR]

The Pi is emulated by QEMU; no torch and no training is needed (the trained ``model.onnx`` lies beside this file).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data import DataError, load
from rich.console import Console
from rich.table import Table

import xnorc

HERE = Path(__file__).parent
MODEL = HERE / "model.onnx"


def show_passes(console: Console, package: xnorc.Package) -> None:
    """What the passes did to each node of the model."""
    records = package.report()["nodes"]
    counts = Counter(record["status"] for record in records)
    console.print("  nodes: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    table = Table(box=None, pad_edge=False)
    for column in ("  layer", "operator", "", "why"):
        table.add_column(column, overflow="fold", no_wrap=column != "why")
    for record in records:
        if record["status"] in ("packed", "float"):
            table.add_row("  " + (record["source"] or record["node"]), record["op"], record["status"], record["reason"])
    console.print(table)


def show_sizes(console: Console, package: xnorc.Package) -> None:
    """Bytes before and after."""
    before = MODEL.stat().st_size
    after = package.device_bytes()
    memory = package.manifest["memory"]
    console.print(
        f"  size: model.onnx {before:,} bytes → {memory['weight_bytes']:,} bytes of weights and tables "
        f"({before / memory['weight_bytes']:.1f}× smaller), {after:,} bytes with all code in one static file"
    )
    console.print(
        f"  working memory: {memory['arena_bytes']:,} bytes, planned at compile time; a run allocates nothing"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--images", type=int, default=10_000, help="images to validate on this machine")
    parser.add_argument("--device-images", type=int, default=500, help="images to validate on the emulated device")
    parser.add_argument("--keep", type=Path, help="keep the packages in this folder")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)

    console.rule("[bold]xnorc: a binary network, from ONNX to a Raspberry Pi")
    images, labels = load("test")
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plan = [
            (options.target, "qemu", options.device_images, "the emulated Raspberry Pi"),
            ("host", "host", options.images, "this machine"),
        ]
        for target, device, count, label in plan:
            start = time.perf_counter()
            package = xnorc.compile(MODEL, target, output=folder / f"mnist-{target}.xnorc", name="mnist")
            console.print(f"\n[bold]Compiled for {target}[/bold] in {time.perf_counter() - start:.1f} s")
            if target == options.target:
                show_passes(console, package)
            show_sizes(console, package)
            console.print(f"\n[bold]Validated on {label}[/bold], {count:,} images against ONNX Runtime")
            start = time.perf_counter()
            data = {"image": images[:count, None], "labels": labels[:count]}
            result = package.validate(device, data)
            result.show(console)
            console.print(f"  ({time.perf_counter() - start:.1f} s)")
            good = good and result.ok
    console.rule("[bold green]all checks passed" if good else "[bold red]a check failed")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (xnorc.XnorcError, DataError) as error:
        sys.exit(f"demo: error: {error}")
