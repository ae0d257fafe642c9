"""``xnorc bitstream``: what a package for an FPGA board puts on that board."""

from __future__ import annotations

from pathlib import Path

import click

from ..package import load
from .common import FILE, check_writable, progress, verb, write_json


@verb(
    "bitstream",
    "Build the bitstream of a package for an FPGA board.",
    "xnorc compile model.onnx --target ulx3s-85f -o model.xnorc",
    "xnorc bitstream model.xnorc -o model.bit",
)
@click.argument("package", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the bitstream to a file of its own as well.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default="1", metavar="N", help="Seed of the placer.")
def bitstream_verb(package: Path, output: Path | None, seed: int, json_file: Path | None) -> None:
    """Run yosys, nextpnr and the packer, and put bitstream, top level and report into the package.

    For a PYNQ-Z2, whose bitstream Vivado makes: count what the core takes, and say how to run that.
    """
    from ..files import atomic_write
    from ..runtimes.fpga.build import table
    from ..runtimes.fpga.program import bitstream, with_bitstream

    check_writable(package, output, json_file)
    loaded = load(package)
    if loaded.manifest["target"] == "pynq-z2" and output is None:
        from ..runtimes.fpga.program import vendor_resources

        with progress(f"counting what {loaded.name} takes") as say:
            counted, found = vendor_resources(loaded, progress=say)
        counted.save(package)
        for name, entry in found.items():
            click.echo(f"{name:<6}{entry['used']:>8} of {entry['available']} (yosys, not placed)")
        click.echo(f"{package}: vivado/, a project: unzip {package} 'vivado/*'; vivado -mode batch -source build.tcl")
        write_json(json_file, {"package": package, "resources": found})
        return
    with progress(f"building {loaded.name} for {loaded.manifest['target']}") as say:
        built = bitstream(loaded, progress=say, seed=seed)
    with_bitstream(loaded, built).save(package)
    if output is not None:
        atomic_write(output, built.bitstream)
    click.echo(table(built.report), nl=False)
    where = f"{package}: bitstream/{built.file}, {len(built.bitstream)} bytes"
    click.echo(where + (f", also in {output}" if output is not None else ""))
    write_json(json_file, {"package": package, "seconds": built.seconds, **built.report})
