"""From a board's top level to its bitstream: yosys, nextpnr, packer; the report of what it takes and how fast it is.

Results are kept by the hash of everything that goes in: Verilog, constraints, options, versions of the tools.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TargetError, ToolError
from . import cache
from .boards import Board
from .contents import outside
from .netlist import REPEATED, cells_by_type, loosen, merge, postpone, spread
from .outreg import absorb
from .resources import modules, used
from .tools import NEXTPNR, PACK, YOSYS, Progress, run

if TYPE_CHECKING:
    from .boards.toplevel import Top

_MEMORY_MHZ = 90.0
"""Above it, a block RAM of the ECP5 gets its output register: without, it takes more than half a cycle; see ``outreg``."""
_LARGE = 0.22
"""Designs that take more of a chip's LUT4s are large. nextpnr's usual router stood still among the crowded wires of CNV (37 %
of the chip), and came to 20 to 50 s for 1,000 steps of the 99,000 and more that QFX (28 %) needs; its second router, which they
get, brings crowding down from step to step, but did worse with TFC (18 %). They keep the cells at the ends of their carry
chains: without them CNV was placed in three quarters of the logic cells, which the usual router could not connect. Their
reset is spread."""
_MARGIN = 0.1
"""By how much more than its clocks nextpnr is asked for, as a share (ECP5): it weighs a path by its delay over the period."""
_LARGE_MARGIN = 0.02
"""The same of large designs, together with ``_LARGE_ROUTING``: what is asked for should be what the placement has."""
_LARGE_ROUTING = "--tmg-ripup"
"""nextpnr's second router takes long ways to some of the many readers of a net; with it, it takes up again what is too slow,
until all is as fast as asked or it gives up. CNV, 108.9 MHz after placement: 101.6 MHz, 90.8 MHz without."""
_REFINED = 4
"""To be raised when what ``refine`` and ``absorb`` do changes: builds are kept by it."""
_SECONDS = 4 * 3600.0
_SOURCE = "yosys.v"
"""What yosys reads: ``top.v`` with its memories' contents in files."""
_SYNTH = {"ecp5": "synth_ecp5", "ice40": "synth_ice40 -dsp", "gowin": "synth_gowin"}
_PREPARE = {"ice40": "setattr -unset ram_style m:*; "}
"""The iCE40 has no memory of LUTs: what asks for one becomes registers."""
_SUFFIX = {"ecp5": "bit", "ice40": "bin", "gowin": "fs"}


class FitError(TargetError):
    """A design does not fit its chip. ``needs``: what it takes of each resource; ``has``: what the chip has."""

    def __init__(self, board: str, needs: dict[str, int], has: dict[str, int]) -> None:
        over = [
            f"{count} {name} of {has[name]} ({100 * count / has[name] - 100:.0f} % more)"
            for name, count in needs.items()
            if count > has.get(name, count)
        ]
        super().__init__(f"the design does not fit board '{board}': it needs {', '.join(over) or 'more than there is'}")
        self.needs, self.has = needs, has


class TimingError(TargetError):
    """A design is routed but slower than its clock. ``report`` is that of the build."""

    def __init__(self, report: dict[str, Any]) -> None:
        wanted, reached, link = report["clock_mhz"], report["fmax_mhz"], report.get("link")
        if reached < wanted or link is None:
            said = f"the design reaches {reached:.1f} MHz on board '{report['board']}', its clock is {wanted:g} MHz: "
            said += f"give it a clock of at most {int(reached)} MHz"
        else:
            said = f"the link reaches {link['fmax_mhz']:.1f} MHz on board '{report['board']}', its clock is "
            said += f"{link['clock_mhz']:g} MHz: try another seed"
        super().__init__(said)
        self.report = report


@dataclass(frozen=True)
class Build:
    """A built design. ``report``: see ``build``; ``seconds``: what each tool took when it ran (nothing when cached)."""

    bitstream: bytes
    file: str
    report: dict[str, Any]
    verilog: str
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    top: Top,
    *,
    options: str = "",
    seed: int = 1,
    margin: float | None = None,
    routing: str | None = None,
    allow_slow: bool = False,
    progress: Progress | None = None,
    seconds: float = _SECONDS,
) -> Build:
    """The bitstream of ``top``. ``options``: more for yosys' ``synth_<family>``; ``seed``: of the placer; ``margin``: by how
    much more than its clocks nextpnr is asked for, as a share (ECP5), ``routing``: more for nextpnr; None: what suits the
    design's size (``_LARGE``).

    The report (plain JSON): ``board``, ``clock_mhz``, ``asked`` (nextpnr for so many times the clocks), ``fmax_mhz`` (after
    routing), ``link`` (clock and reached of the link, where it has a clock of its own), ``resources`` (name → used and
    available), ``modules`` (path of a module → LUTs, carries, flip-flops, memories below it), ``critical_path`` (a line for
    each cell), ``tools``, ``seconds`` (that each took), ``cpu_seconds`` (of the processor, likewise), ``bitstream`` (file,
    bytes). Raises ``FitError``, ``TimingError`` (unless ``allow_slow``), ``ToolError``.
    """
    board, verilog = top.board, top.verilog()
    mhz = top.clock_hz / 1e6
    versions = [tool.version() for tool in (YOSYS, NEXTPNR[board.family], PACK[board.family])]
    synth = synthesis(board.family, "top", options)
    wanted = [_REFINED, _MEMORY_MHZ, board.name, mhz, synth, seed, board.device, versions, margin, routing]
    wanted += [_LARGE, _MARGIN, _LARGE_MARGIN, _LARGE_ROUTING]
    name = cache.key({"verilog": verilog, "constraints": board.constraints()[1], "options": json.dumps(wanted)})
    taken: dict[str, float] = {}
    busy: dict[str, float] = {}
    if cache.find("build", name) is None:
        with cache.fresh("build", name) as folder:
            (folder / "top.v").write_text(verilog)
            (folder / _SOURCE).write_text(outside(verilog, folder))
            asked = _tools(board, folder, mhz, synth, seed, (margin, routing), progress, seconds, taken, busy)
            report = {**_report(top, folder, versions, asked), "seconds": dict(taken), "cpu_seconds": busy}
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            for leftover in (_SOURCE, "top.json", "routed.json", "top.config", "top.asc", "contents*.hex"):
                for unneeded in folder.glob(leftover):
                    unneeded.unlink()
    found = cache.find("build", name)
    assert found is not None
    report = json.loads((found / "report.json").read_text())
    if not allow_slow and any(clock["fmax_mhz"] < clock["clock_mhz"] for clock in (report, report.get("link", report))):
        raise TimingError(report)
    file = f"top.{_SUFFIX[board.family]}"
    return Build((found / file).read_bytes(), file, report, verilog, taken)


def synthesis(family: str, top: str, options: str = "") -> str:
    """yosys' commands for a design that it has read, which make a flat netlist of a chip's cells.

    ECP5: a module that occurs many times is synthesized once; see ``netlist``.
    """
    synth = f"{_PREPARE.get(family, '')}{_SYNTH[family]} -top {top} {options}"
    if family != "ecp5":
        return synth
    mark, unmark = (f"setattr -mod {how} {REPEATED}*" for how in ("-set keep_hierarchy 1", "-unset keep_hierarchy"))
    return f"{mark}; {synth}; {unmark}; flatten; opt_clean"


def refine(netlist: dict[str, Any], top: str = "top", large: bool = False) -> None:
    """What is done to the ECP5's netlists before they are placed or counted, in place. ``large``: see ``_LARGE``."""
    merge(netlist, top)
    if large:
        spread(netlist, top)
    else:
        loosen(netlist, top)
        postpone(netlist, top)


def _tools(
    board: Board, folder: Path, mhz: float, synth: str, seed: int, choice: tuple[float | None, str | None],
    progress: Progress | None, seconds: float, taken: dict[str, float], busy: dict[str, float],
) -> float:  # fmt: skip
    """Synthesize, place and route, pack: files of fixed names in ``folder``. How many times its clocks nextpnr was asked for.

    ``choice``: the margin and the routing that the caller wants.
    """
    end = time.monotonic() + seconds
    progress = None if progress is None else _timed(progress)

    def step(tool: Any, *arguments: str) -> str:
        started, before = time.monotonic(), os.times()
        text = run(tool, arguments, folder, f"{tool.name}.log", progress, max(1.0, end - started))
        after = os.times()
        taken[tool.name] = round(time.monotonic() - started, 1)
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        busy[tool.name] = round(spent, 1)
        return text

    step(YOSYS, "-p", f"read_verilog {_SOURCE}; {synth}; write_json top.json")
    netlist, large = json.loads((folder / "top.json").read_text()), False
    if board.family == "ecp5":
        large = used(cells_by_type(netlist), board.family)["LUT4"] >= _LARGE * board.capacity["LUT4"]
        refine(netlist, large=large)
        if mhz > _MEMORY_MHZ:
            absorb(netlist)
        (folder / "top.json").write_text(json.dumps(netlist))
    needs = used(cells_by_type(netlist), board.family)
    has = dict(board.capacity)
    if any(count > has.get(name, count) for name, count in needs.items()):
        raise FitError(board.name, needs, has)
    del netlist
    margin = choice[0] if choice[0] is not None else _LARGE_MARGIN if large else _MARGIN
    routing = choice[1] if choice[1] is not None else _LARGE_ROUTING if large else ""
    asked = 1.0 + margin if board.family == "ecp5" else 1.0
    # The PLL's clocks are derived from the oscillator's.
    suffix, constraints = replace(board, oscillator_hz=board.oscillator_hz * asked).constraints()
    (folder / f"top.{suffix}").write_text(constraints)
    route = [*board.device, "--json", "top.json", "--freq", f"{mhz:.6f}", "--seed", str(seed), "--timing-allow-fail"]
    route += ["--report", "nextpnr.json", *routing.split()]
    if board.family == "ecp5":
        route += ["--lpf", f"top.{suffix}", "--textcfg", "top.config"]
        if large:
            route += ["--router", "router2"]
    elif board.family == "ice40":
        route += ["--pcf", f"top.{suffix}", "--asc", "top.asc"]
    else:
        route += ["--vopt", f"cst=top.{suffix}", "--write", "routed.json"]
    try:
        step(NEXTPNR[board.family], *route)
    except ToolError:
        fit = _overflow(board, (folder / f"{NEXTPNR[board.family].name}.log").read_text(errors="replace"))
        if fit is not None:
            raise fit from None
        raise
    if board.family == "ecp5":
        step(PACK["ecp5"], "--compress", "--input", "top.config", "--bit", "top.bit")
    elif board.family == "ice40":
        step(PACK["ice40"], "top.asc", "top.bin")
    else:
        step(PACK["gowin"], "-d", "GW1N-9C", "-o", "top.fs", "routed.json")
    return asked


_UTILISATION = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)


def _overflow(board: Board, log: str) -> FitError | None:
    """The error of a nextpnr that gave up because there is too little of something."""
    counts = {name: (int(count), int(all_)) for name, count, all_ in _UTILISATION.findall(log)}
    if any(count > all_ for count, all_ in counts.values()) or "no BELs remaining" in log or "Unable to place" in log:
        return FitError(board.name, {n: c for n, (c, _) in counts.items()}, {n: a for n, (_, a) in counts.items()})
    return None


def _report(top: Top, folder: Path, versions: list[str], asked: float) -> dict[str, Any]:
    board, mhz, link_mhz = top.board, top.clock_hz / 1e6, top.link_hz / 1e6
    routed = json.loads((folder / "nextpnr.json").read_text())
    # The clock of the design is the slowest of those found: the oscillator's own drives nothing but the PLL. Where the link
    # has a clock of its own, each is known by what was asked of it.
    clocks = {name: clock["achieved"] for name, clock in routed["fmax"].items()}
    links = {
        name: clocks.pop(name)
        for name, clock in routed["fmax"].items()
        if link_mhz != mhz and abs(clock["constraint"] / asked - link_mhz) < abs(clock["constraint"] / asked - mhz)
    }
    file = folder / f"top.{_SUFFIX[board.family]}"
    slowest = min(clocks, key=lambda name: clocks[name]) if clocks else None
    link = {"link": {"clock_mhz": link_mhz, "fmax_mhz": round(min(links.values()), 2)}} if links else {}
    return {
        "board": board.name,
        "description": board.description,
        "clock_mhz": mhz,
        "asked": round(asked, 3),
        "fmax_mhz": round(clocks[slowest], 2) if slowest is not None else float("inf"),
        **link,
        "resources": {
            name: {"used": entry["used"], "available": entry["available"]}
            for name, entry in sorted(routed["utilization"].items())
            if entry["used"]
        },
        "modules": modules(json.loads((folder / "top.json").read_text())),
        "critical_path": _critical(routed, slowest),
        "tools": versions,
        "bitstream": {"file": file.name, "bytes": file.stat().st_size},
    }


def _critical(routed: dict[str, Any], clock: str | None) -> list[str]:
    """The longest path within the design's clock, a line for each of its cells and wires."""
    for path in routed.get("critical_paths", []):
        if clock is not None and clock in path["from"] and clock in path["to"]:
            return [
                f"{part['delay']:.2f} ns {part['type']} {part['to'].get('cell') or part['from'].get('cell', '')}"
                for part in path["path"]
            ]
    return []


def _timed(progress: Progress) -> Progress:
    """Says with every step how long it has been going on."""
    started = time.monotonic()

    def say(words: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        progress(f"{words} ({minutes}:{seconds:02d})")

    return say


def _seconds(taken: dict[str, float]) -> str:
    return f"{sum(taken.values()):.0f} s: " + ", ".join(f"{name} {value:.0f} s" for name, value in taken.items())


def table(report: dict[str, Any], depth: int = 3) -> str:
    """A report for people: clock, resources, modules down to ``depth`` levels."""
    lines = [
        f"{report['board']} ({report['description']}): {report['fmax_mhz']:.1f} MHz after routing, "
        f"clock {report['clock_mhz']:g} MHz",
        *(
            ["its link: {fmax_mhz:.1f} MHz, clock {clock_mhz:g} MHz".format(**report["link"])]
            if "link" in report
            else []
        ),
        *([f"built in {_seconds(report['seconds'])}"] if report.get("seconds") else []),
        "",
        f"{'resource':<24}{'used':>8}{'of':>8}{'%':>6}",
    ]
    for name, entry in report["resources"].items():
        share = 100 * entry["used"] / max(1, entry["available"])
        lines.append(f"{name:<24}{entry['used']:>8}{entry['available']:>8}{share:>6.0f}")
    kinds = list(dict.fromkeys(kind for counts in report["modules"].values() for kind in counts))
    lines += ["", f"{'module':<44}" + "".join(f"{kind:>9}" for kind in kinds)]
    for path, counts in report["modules"].items():
        level = path.count(".") + (path != "")
        if level <= depth:
            shown = "  " * level + (path.rsplit(".", 1)[-1] or "top")
            lines.append(f"{shown:<44}" + "".join(f"{counts.get(kind, 0):>9}" for kind in kinds))
    return "\n".join(lines) + "\n"
