"""``xnorc validate``."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from ..package import load
from .common import FILE, check_writable, console, device_options, progress, read_feeds, verb, write_json


@verb(
    "validate",
    "Prove that a package computes what the model says.",
    "xnorc validate model.xnorc --device qemu",
    "xnorc validate model.xnorc --device ssh://pi@raspberrypi.local --data test.npz --json validation.json",
)
@click.argument("package", type=FILE)
@click.option("--data", type=FILE, metavar="DATA.npz", help="Inputs by name, and labels (default: the golden inputs).")
@click.option("--labels", default="labels", show_default=True, metavar="KEY", help="Name of the labels in the data.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use the first N samples (default: all).")
@click.option("--layer-samples", type=click.IntRange(1), default=8, show_default="8", metavar="N",
              help="Samples on which every layer is compared.")  # fmt: skip
@click.option("--model", type=FILE, metavar="FILE", help="The original model, where it was too large for the package.")
@device_options
@click.pass_context
def validate_verb(
    ctx: click.Context,
    package: Path,
    data: Path | None,
    labels: str,
    limit: int | None,
    layer_samples: int,
    model: Path | None,
    device: str,
    threads: int,
    json_file: Path | None,
) -> None:
    """Prove that a compiled model computes what the original says: every layer, then all samples.

    Exits with 1 when anything differs without a stated reason.
    """
    from ..runtimes.show import show

    check_writable(json_file)
    loaded = load(package)
    arrays = None
    if data is not None:
        arrays = read_feeds(data, [tensor["name"] for tensor in loaded.tensors("inputs")])
        if labels != "labels":
            if labels not in arrays:
                raise InputError(f"'{data}' has no array '{labels}': it holds {', '.join(arrays)}")
            arrays["labels"] = arrays.pop(labels)
    with progress(f"validating {loaded.name} on {device}") as say:
        result = loaded.validate(
            device,
            arrays,
            limit=limit,
            layer_samples=layer_samples,
            threads=threads,
            model=loaded.model(model) if model is not None else None,
            progress=lambda stage, done, total: say(f"{stage}, {done} of {total}"),
        )
    show(result, console())
    write_json(json_file, result.to_json())
    ctx.exit(0 if result.ok else 1)
