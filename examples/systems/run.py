"""One published system, from training to the emulated Raspberry Pi:

python examples/systems/run.py biper            # train or fill, export twice, compile, validate here and on rpi4
python examples/systems/run.py --list           # the systems that there are
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from registry import UnknownSystemError, choose, systems

import xnorc

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "mnist"))

from data import DataError  # noqa: E402
from measure import NotExportedError, Run  # noqa: E402
from train import TrainingError  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="names of systems, or of files of this folder")
    parser.add_argument("--list", action="store_true", help="name the systems")
    parser.add_argument(
        "--targets", default="host,rpi4", help="comma-separated; the Pis are emulated (default: host,rpi4)"
    )
    parser.add_argument("--steps", type=int, help="training steps instead of the system's own number")
    parser.add_argument("--samples", type=int, help="samples to validate on each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the exported models to this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    options = parser.parse_args()
    if options.list:
        for name, system in systems().items():
            print(f"{name:24} {system.title}")
        return 0
    if not options.systems:
        parser.error("name a system, or --list them")
    targets = tuple(name for name in options.targets.split(",") if name)
    records = []
    for system in choose(options.systems):
        run = Run(system, steps=options.steps, seed=options.seed)
        if options.keep:
            keep(run, options.keep)
        counts = None if options.samples is None else dict.fromkeys(targets, options.samples)
        records.append(run.record(targets, counts))
        print("\n".join(summary(records[-1])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0 if all(good(record) for record in records) else 1


def keep(run: Run, folder: Path) -> None:
    """Write what each exporter made."""
    folder.mkdir(parents=True, exist_ok=True)
    for exporter in ("dynamo", "torchscript"):
        found = run.export(exporter)
        if not isinstance(found, str):
            (folder / f"{run.system.name}-{exporter}.onnx").write_bytes(found.model.SerializeToString())


def good(record: dict[str, Any]) -> bool:
    """Every binarized layer packed, by every exporter that works, and every target validated."""
    layers = record["layers"]
    packed = [facts["packed"] for facts in record["exporters"].values() if facts["works"]]
    return set(packed) == {layers["declared"]} and all(found["ok"] for found in record["targets"].values())


def summary(record: dict[str, Any]) -> list[str]:
    """What a person wants to know of a record."""
    lines = [f"{record['name']}: {record['title']}"]
    trained = record["trained"]
    if trained["accuracy"] is not None:
        lines.append(f"  trained {trained['steps']} steps, accuracy of the module {trained['accuracy']:.1%}")
    for exporter, facts in record["exporters"].items():
        text = f"{facts['packed']} layers packed" if facts["works"] else f"no: {facts['reason']}"
        lines.append(f"  {exporter:12} {text}" + (f" (declared: {facts['declared']})" if facts["declared"] else ""))
    layers = record["layers"]
    lines.append(f"  layers       {layers['packed']} packed of {layers['declared']} declared")
    for layer in layers["float"]:
        lines.append(f"    in float: {layer['source'] or layer['node']} ({layer['op']}): {layer['reason']}")
    before, after = record["bytes"]["before"], record["bytes"]["after"]
    lines.append(f"  parameters   {before:,} → {after:,} bytes ({before / max(1, after):.1f}×)")
    if ops := record["operations"]:
        lines.append(
            f"  operations   {ops['before']:,.0f} → {ops['after']:,.0f} ({ops['before'] / max(1, ops['after']):.1f}×; "
            f"{ops['before'] / max(1, ops['after_once']):.1f}× with every layer counted once)"
        )
    for target, found in record["targets"].items():
        exact = [layer["differing"] == 0 for layer in found["layers"] if layer["kind"] == "integer"]
        other = [layer["ok"] for layer in found["layers"] if layer["kind"] != "integer"]
        lines.append(
            f"  {target:12} {'good' if found['ok'] else 'FAILED: ' + str(found['first_difference'])}; integer layers equal: "
            f"{sum(exact)} of {len(exact)}, others in bound: {sum(other)} of {len(other)}"
            + (f", same class {found['agreement']:.1%}" if found["agreement"] is not None else "")
            + (f", accuracy {found['accuracy']:.1%}" if found["accuracy"] is not None else "")
            + f" ({found['samples']} samples)"
        )
    if "latency" in record:
        lines.append(
            f"  latency      {record['latency']['least_us']:,.0f} µs at best, 1 thread, {record['latency']['machine']}"
        )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (xnorc.XnorcError, DataError, UnknownSystemError, NotExportedError, TrainingError) as error:
        sys.exit(f"error: {error}")
