"""What goes on a board, from a package that was compiled for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import TargetError
from . import boards
from .session import design_of

if TYPE_CHECKING:
    from ...package import Package
    from .boards.toplevel import Top
    from .build import Build
    from .link.emitted import EmittedAccelerator
    from .tools import Progress


def accelerator_of(package: Package) -> EmittedAccelerator:
    """The package's Verilog as a component. Raises ``DeviceError`` when there is none."""
    from ...package import RTL
    from .tools import require_amaranth

    require_amaranth()
    from .emit import TOP
    from .link.emitted import EmittedAccelerator

    facts = design_of(package)
    sizes = (facts["input_width"], facts["output_width"], facts["frame_in_bits"], facts["frame_out_bits"])
    return EmittedAccelerator(package.member(RTL).decode(), TOP, *sizes)


def top_of(package: Package, **options: Any) -> Top:
    """The top level for the package's board: its design, its clock, its hash. ``options``: those of ``Top``.

    Raises ``TargetError`` for a board whose tools are the vendor's.
    """
    facts = design_of(package)
    if boards.get(facts["board"]).family == "xc7":
        raise TargetError(
            f"board '{facts['board']}' is built by Vivado, which xnorc does not run: unpack the package's folder vivado "
            f"(unzip {package.path} 'vivado/*') and run vivado -mode batch -source build.tcl there"
        )
    options.setdefault("hz", facts["estimate"]["clock_hz"])
    options.setdefault("baud", facts["baud"])
    return boards.top(facts["board"], accelerator_of(package), design=bytes.fromhex(facts["design"]), **options)


def with_bitstream(package: Package, built: Build) -> Package:
    """The package with the members ``bitstream/top.*``, ``bitstream/report.json`` and ``rtl/top.v`` (all of the Verilog)."""
    from ...package import Package as Whole

    members = {name: package.member(name) for name in package.members if not name.startswith("bitstream/")}
    members[f"bitstream/{built.file}"] = built.bitstream
    members["bitstream/report.json"] = json.dumps(built.report, indent=1, sort_keys=True).encode()
    members["rtl/top.v"] = built.verilog.encode()
    return Whole.of(package.path, members, package.manifest)


def vendor_resources(package: Package, progress: Progress | None = None) -> tuple[Package, dict[str, dict[str, int]]]:
    """What a PYNQ-Z2's project takes, by yosys; and the package with it as the member ``vivado/resources.json``."""
    from ...package import Package as Whole
    from .boards import pynq

    found = pynq.resources(package.member(f"vivado/{pynq.TOP}.v").decode(), progress)
    members = {name: package.member(name) for name in package.members}
    members["vivado/resources.json"] = json.dumps(found, indent=1, sort_keys=True).encode()
    return Whole.of(package.path, members, package.manifest), found


def bitstream(package: Package, progress: Progress | None = None, **options: Any) -> Build:
    """The bitstream of a package's design; ``options``: those of ``build``, which also says what is raised."""
    from .build import build

    return build(top_of(package), progress=progress, **options)
