"""The choices of schedules that ship: tunes the layers of the benchmark networks, and keeps what is faster than the default.

    python benchmarks/tune_shipped.py                      # host: measured on this machine, which should be idle
    python benchmarks/tune_shipped.py --target rpi4        # without a board: modelled cycles under QEMU
    python benchmarks/tune_shipped.py --target rpi4 --device ssh://pi@raspberrypi.local

The tuner times a layer by itself. What it found counts only if the same step is faster in the whole network too, where
caches hold other things: the network is compiled both ways, and run in turns (modelled times are taken as they are).

What is left goes to ``compiler/lower/choices/TARGET.json``. Layers that were tried are kept in ``build/`` and not tried
again (``--anew`` begins with none). ``compiler/lower/shipped.py`` says who reads the choices.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from models import NETWORKS, make
from networks import SIGN_ZERO

import xnorc
from xnorc.lower import shipped
from xnorc.runtimes.device import parse_device
from xnorc.tuning import Records, Tuning

ROOT = Path(__file__).resolve().parent.parent
LEAST_GAIN = 1.015
"""A choice that gains less in the whole network is left out."""
ROUNDS = 60
ARENA = 1.1
"""A choice whose tasks' scratch memory makes a network's arena larger than so much of its lower bound is left out."""


def tune(records: Records, target: str, device: str, name: str, trials: int) -> None:
    """Tune the layers of one network that are not in ``records`` yet, and check what is new in the whole network."""
    network = NETWORKS[name]
    inputs = network.inputs()
    model = xnorc.export(make(network), inputs, check=False).model
    feeds = {info.name: value.numpy()[None] for info, value in zip(model.graph.input, inputs, strict=True)}
    known = set(records.layers)
    tuning = Tuning(records, device, trials)
    options: dict[str, Any] = {"name": name, "sign_zero": SIGN_ZERO.get(name), "golden_inputs": feeds}
    xnorc.compile(model, target, tune=tuning, **options)
    for key in records.layers.keys() - known:
        records.layers[key] = replace(records.layers[key], layer=f"{name}: {records.layers[key].layer}")

    def build(chosen: Records) -> xnorc.Package:
        with tempfile.TemporaryDirectory() as folder:
            file = Records(Path(folder) / "chosen.json")
            file.layers = chosen.layers
            file.save()
            return xnorc.compile(model, target, tuned=file.path, **options)

    slim(records, name, build)
    if device != "qemu":
        confirm(records, device, name, build, feeds)
    records.save()
    if tuning.interrupted:
        raise KeyboardInterrupt


def _only(records: Records, keys: Iterable[str]) -> Records:
    """The same layers, of which all but some get the default's choices (not those that ship now)."""
    chosen, kept = Records(records.path), set(keys)
    chosen.layers = {
        key: record if key in kept else replace(record, choices={}) for key, record in records.layers.items()
    }
    return chosen


def _of(records: Records, name: str) -> dict[str, Any]:
    return {key: record for key, record in records.layers.items() if record.layer.startswith(f"{name}: ")}


def slim(records: Records, name: str, build: Callable[[Records], xnorc.Package]) -> None:
    """Take back the choices for layers of ``name`` that need too much memory: see ``ARENA``."""
    for key, record in _of(records, name).items():
        if record.choices:
            memory = build(_only(records, [key])).manifest["memory"]
            if memory["arena_bytes"] > ARENA * memory["lower_bound_bytes"]:
                print(f"{record.layer}: left out, with it the arena takes {memory['arena_bytes']:,} bytes")
                records.layers[key] = replace(record, choices={}, us=record.shipped_us)


def confirm(
    records: Records, device: str, name: str, build: Callable[[Records], xnorc.Package], feeds: Mapping[str, np.ndarray]
) -> None:
    """Take back the choices for layers of ``name`` that gain nothing in it; the others' times become those in it."""
    mine = _of(records, name)
    with ExitStack() as stack:
        packages = [build(_only(records, ())), build(records)]
        steps = [step["name"] for step in packages[-1].manifest["steps"]]
        sessions = [stack.enter_context(parse_device(device).open(package, 1)) for package in packages]
        times: list[list[np.ndarray]] = [[], []]
        for _ in range(ROUNDS):
            for session, found in zip(sessions, times, strict=True):
                found.append(session.bench(feeds, 2, 1)[-1])
    default, tuned = (np.quantile(np.stack(found).astype(np.float64) / 1e3, 0.25, axis=0) for found in times)
    print(f"{name}: {default.sum():,.0f} µs by default, {tuned.sum():,.0f} µs with the choices found")
    for key, record in mine.items():
        place = steps.index(record.layer.removeprefix(f"{name}: "))
        before, after = float(default[place]), float(tuned[place])
        kept = bool(record.choices) and before >= LEAST_GAIN * after
        text = ", ".join(f"{knob} {value}" for knob, value in record.choices.items()) or "default"
        alone = record.shipped_us / record.us
        print(
            f"  {record.layer:40.40} alone {alone:.2f}, here {before / after:.2f}  {text}{'' if kept else '  (left out)'}"
        )
        records.layers[key] = replace(
            record, choices=record.choices if kept else {}, shipped_us=before, us=after if kept else before
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--target", default="host")
    parser.add_argument("--device", help="where to measure (default: host, or qemu for another machine)")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--anew", action="store_true")
    args = parser.parse_args()
    file = shipped.file(args.target)
    # With what gained nothing, so that it is not tried again.
    found = ROOT / "build" / f"tune_shipped_{args.target}.json"
    found.parent.mkdir(exist_ok=True)
    for old in (file, found):
        if args.anew:
            old.unlink(missing_ok=True)
    records = Records.read(found, missing_ok=True)
    device = args.device or ("host" if args.target == "host" else "qemu")
    try:
        for name in args.models:
            tune(records, args.target, device, name, args.trials)
    finally:
        kept = Records.read(file, missing_ok=True)  # other machines' layers, which were not tried here, stay
        for key, layer in records.layers.items():
            kept.layers.pop(key, None)
            if layer.choices:
                kept.layers[key] = layer
        if kept.layers:
            file.parent.mkdir(exist_ok=True)
            kept.save()
        print(f"{len(kept.layers)} of {len(records.layers)} layers in {file}")


if __name__ == "__main__":
    main()
