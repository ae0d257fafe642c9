"""The evidence for every system: measures them, keeps the facts in docs/systems.json, and writes docs/systems.md of it.

    python examples/systems/table.py                    # all systems and all networks of the papers' size (half an hour)
    python examples/systems/table.py --only biper reste # these; the facts of the others stay
    python examples/systems/table.py --render           # docs/systems.md alone, from the facts

``--check`` measures nothing and fails when docs/systems.md is not what docs/systems.json says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from registry import UnknownSystemError, choose, files, systems
from render import render
from system import Shape, System

ROOT = Path(__file__).resolve().parent.parent.parent
FACTS, PAGE = ROOT / "docs" / "systems.json", ROOT / "docs" / "systems.md"


def key(system: System, shape: Shape) -> str:
    """What a network of the paper's size is filed under."""
    return f"{system.name}: {shape.name}"


def read() -> dict[str, Any]:
    """The facts as they are."""
    return json.loads(FACTS.read_text()) if FACTS.exists() else {"systems": {}, "shapes": {}}


def put(kind: str, name: str, record: dict[str, Any]) -> None:
    """Add to the facts as they are now: several of these programs may run, each on some systems."""
    facts = read()
    facts[kind][name] = record
    write(facts)


def write(facts: dict[str, Any]) -> None:
    """Facts and page, the systems in the order of the registry; what is no longer a system goes."""
    order = systems()
    kept = {
        "systems": {name: facts["systems"][name] for name in order if name in facts["systems"]},
        "shapes": {
            key(system, shape): facts["shapes"][key(system, shape)]
            for system in order.values() for shape in system.shapes if key(system, shape) in facts["shapes"]
        },
    }  # fmt: skip
    text = json.dumps(kept, indent=1)
    # One line a layer: of those there are many.
    text = re.sub(r'\{\s+"name": [^{}]*"ok": (true|false)\s+\}', lambda found: " ".join(found[0].split()), text)
    FACTS.write_text(text + "\n")
    PAGE.write_text(render(kept))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="SYSTEM", help="systems, or files of this folder")
    parser.add_argument("--missing", action="store_true", help="only what has no facts yet")
    parser.add_argument("--no-shapes", action="store_true", help="leave out the networks of the papers' size")
    parser.add_argument("--only-shapes", action="store_true", help="measure those alone")
    parser.add_argument("--render", action="store_true", help="measure nothing, write docs/systems.md")
    parser.add_argument(
        "--check", action="store_true", help="measure nothing, fail when docs/systems.md is not current"
    )
    options = parser.parse_args()
    facts = read()
    if options.check:
        return 0 if PAGE.read_text() == render(facts) else 1
    if options.render:
        write(facts)
        return 0
    failures = measure(facts, options)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def measure(facts: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Measure what is asked for, and write after each, so that an interruption loses little. Gives what failed."""
    from measure import Run, shape_record
    from run import good, summary

    failures = []
    for system in choose(options.only):
        start = time.perf_counter()
        if not options.only_shapes and not (options.missing and system.name in facts["systems"]):
            try:
                record = Run(system).record()
            except Exception as error:  # one system must not keep the others from the table
                failures.append(f"{system.name}: {type(error).__name__}: {error}")
                print(f"failed: {failures[-1]}", flush=True)
            else:
                put("systems", system.name, record)
                print("\n".join(summary(record)), f"\n  ({time.perf_counter() - start:.0f} s)", flush=True)
                if not good(record):
                    failures.append(f"{system.name}: not everything is packed and exact")
        for shape in () if options.no_shapes else system.shapes:
            where = key(system, shape)
            if options.missing and where in facts["shapes"]:
                continue
            start = time.perf_counter()
            try:
                record = shape_record(system, shape)
            except Exception as error:
                failures.append(f"{where}: {type(error).__name__}: {error}")
                print(f"failed: {failures[-1]}", flush=True)
                continue
            put("shapes", where, record)
            print(
                f"{where}: {record['bytes']} {record['operations']} ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    return failures


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UnknownSystemError, ValueError) as error:
        sys.exit(f"error: {error} (files: {', '.join(files())})")
