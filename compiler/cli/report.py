"""``xnorc report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import InputError
from ..files import atomic_write, read_bytes
from ..package import load
from .common import FILE, check_writable, size, verb, write_json


@verb(
    "report",
    "Write one HTML page about a package.",
    "xnorc report model.xnorc -o model.html --validation validation.json",
)
@click.argument("package", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="FILE", required=True, help="The HTML file to write.")
@click.option(
    "--validation", type=FILE, metavar="FILE", help="What `xnorc validate --json` wrote, to show it in the report."
)
def report_verb(package: Path, output: Path, validation: Path | None, json_file: Path | None) -> None:
    """Write one HTML page about a package: steps, memory, sizes, and what happened to every node."""
    from ..report import render

    check_writable(output, json_file)
    loaded = load(package)
    facts = None
    if validation is not None:
        try:
            facts = json.loads(read_bytes(validation, 256 << 20))
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{validation}' is not JSON: give what `xnorc validate --json` wrote") from error
        if not isinstance(facts, dict):
            raise InputError(f"'{validation}' is not a validation result: give what `xnorc validate --json` wrote")
        for key, own in (("package", loaded.name), ("target", loaded.target.name)):
            if facts.get(key, own) != own:
                raise InputError(f"'{validation}' validates {key} '{facts[key]}', '{package}' is {key} '{own}'")
    page = render(loaded, facts).encode()
    atomic_write(output, page)
    click.echo(f"{output}: {size(len(page))}")
    write_json(json_file, {"package": package, "output": output, "manifest": loaded.manifest, **loaded.report()})
