"""The large FPGA builds: clock after routing, images a second, LUTs against the estimate, time from ONNX to bitstream.

    python benchmarks/fpga_designs.py                        # all of them: an hour and more
    python benchmarks/fpga_designs.py tfc units              # some
    python benchmarks/fpga_designs.py tfc --save             # and put them into docs/fpga_designs.json and .md
    python benchmarks/fpga_designs.py --render               # docs/fpga_designs.md of the stored results

Networks have random weights: what a design takes and how fast it is does not depend on them. Cycles are those of the
emitted Verilog in Verilator (``--no-simulation`` leaves that out), the clock is nextpnr's after routing, frames a second are
the one through the other. Everything is built anew: the cache of builds is not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from amaranth.back import verilog
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import xnorc
from xnorc.errors import XnorcError
from xnorc.package import Package
from xnorc.runtimes.fpga import boards
from xnorc.runtimes.fpga.build import TimingError, build, refine, synthesis
from xnorc.runtimes.fpga.contents import outside
from xnorc.runtimes.fpga.emit import design_in
from xnorc.runtimes.fpga.netlist import cells_by_type
from xnorc.runtimes.fpga.outreg import absorb
from xnorc.runtimes.fpga.program import top_of
from xnorc.runtimes.fpga.resources import used
from xnorc.runtimes.fpga.simulate import Simulator
from xnorc.runtimes.fpga.tools import YOSYS, run
from xnorc.runtimes.fpga.units.matvec import MatrixVector, Product
from xnorc.runtimes.fpga.units.technology import Technology
from xnorc.runtimes.fpga.units.unrolled import SpanningMatrixVector
from xnorc.targets import FpgaOptions

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples.fpga import shapes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FACTS = DOCS / "fpga_designs.json"
LIMITS = {"memory": 3.2, "constant": 1.9}
"""LUT4s a binary MAC and cycle that units with weights in memory, and with constant weights, are held against."""


@dataclass(frozen=True)
class Whole:
    """A network on a board: ``network``: ``cnv``, ``qfx`` or the sizes of dense layers; ``mhz``: 0 for the board's own clock;
    ``needs``: what is asked for; ``seed``: of the placer.
    """

    network: str
    board: str
    fps: float
    mhz: float = 0.0
    needs_fps: float = 0.0
    needs_mhz: float = 0.0
    needs_minutes: float = 0.0
    seed: int = 1

    def model(self, path: Path) -> None:
        """Write the network as ONNX."""
        import torch

        torch.manual_seed(0)
        names = {"input_names": ["image"], "output_names": ["scores"]}
        if self.network == "qfx":
            sys.path.append(str(ROOT / "examples" / "systems"))
            import qfx

            xnorc.export(qfx.Net().eval(), qfx.inputs(), path, **names)
            return
        if self.network == "cnv":
            module, shape = shapes.Convolutional().eval(), (1, 3, 32, 32)
        else:
            sizes = tuple(map(int, self.network.split("-")))
            module, shape = shapes.Dense(sizes).eval(), (1, sizes[0])
        shapes.randomize(module, torch.rand(4, *shape[1:]))
        xnorc.export(module, torch.rand(shape), path, **names)


WHOLE = {
    "tfc": Whole("784-64-64-64-10", "ulx3s-85f", 10e6, 160, needs_fps=10e6, needs_mhz=150, needs_minutes=5),
    "tfc-memory": Whole("784-64-64-64-10", "ulx3s-85f", 1e6, 150, needs_mhz=150, needs_minutes=5),
    "cnv": Whole("cnv", "ulx3s-85f", 10e3, 100, needs_fps=10e3, needs_mhz=100, needs_minutes=40),
    "qfx": Whole("qfx", "ulx3s-85f", 2e3),
    "icebreaker": Whole("256-64-64-10", "icebreaker", 1e4),
    "tangnano9k": Whole("784-64-64-10", "tangnano9k", 1e4),
}


def compile_whole(whole: Whole, folder: Path, say: Callable[[str], None]) -> Package:
    """The network's package."""
    options = FpgaOptions(fps=whole.fps, clock_hz=whole.mhz * 1e6)
    return xnorc.compile(onnx.load(folder / "model.onnx"), whole.board, fpga=options, name="model", progress=say)


def simulate(whole: Whole, row: dict[str, Any], say: Callable[[str], None]) -> None:
    """Put the cycles of the emitted Verilog in place of the estimate's."""
    with tempfile.TemporaryDirectory() as name:
        whole.model(Path(name) / "model.onnx")
        package = compile_whole(whole, Path(name), say)
        say("simulating")
        design = design_in(package)
        count = 6 if row["estimated_cycles"] > 1000 else 200
        frames = np.random.default_rng(0).integers(0, 2, (count, design.frame_in_bits)).astype(np.uint8)
        _, cycles = Simulator(design).run(frames)
    row |= {"cycles": cycles.interval, "first_cycles": cycles.first, "simulated": True}


def rates(row: dict[str, Any]) -> None:
    """What follows from clock and cycles."""
    row["fps"] = row["fmax_mhz"] * 1e6 / row["cycles"]
    row["fps_at_clock"] = row["clock_mhz"] * 1e6 / row["cycles"]
    row["first_us"] = row["first_cycles"] / row["fmax_mhz"]


def build_whole(whole: Whole, say: Callable[[str], None]) -> dict[str, Any]:
    """From ONNX to the bitstream, and what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole.model(folder / "model.onnx")
        os.environ["XNORC_CACHE"] = str(folder / "cache")
        started, load = time.monotonic(), os.getloadavg()[0]
        package = compile_whole(whole, folder, say)
        compiled = time.monotonic() - started
        built = build(top_of(package), progress=say, allow_slow=True, seed=whole.seed)
        seconds = time.monotonic() - started
        facts = package.manifest["fpga"]
        guess, report = facts["estimate"], built.report
    inside = report["modules"]["framed.accelerator"]
    carry, ram = {"ecp5": (2, 6), "gowin": (1, 4), "ice40": (0, 0)}[boards.get(whole.board).family]
    luts = inside.get("LUT", 0) + carry * inside.get("carry", 0) + ram * inside.get("LUT RAM", 0)
    sizes = [-(-facts[f"frame_{way}_bits"] // 8) for way in ("in", "out")]
    return {
        "network": whole.network, "board": whole.board, "asked_fps": whole.fps, "seed": whole.seed, "asked": report["asked"],
        "clock_mhz": report["clock_mhz"], "link": report.get("link"),
        "fmax_mhz": report["fmax_mhz"],
        "cycles": guess["interval_cycles"], "estimated_cycles": guess["interval_cycles"],
        "first_cycles": guess["latency_cycles"], "estimated_first_cycles": guess["latency_cycles"], "simulated": False,
        "link_fps": facts["baud"] / 10 / max(sizes),
        "luts": luts, "estimated_luts": guess["luts"],
        "blocks": inside.get("BRAM", 0), "estimated_blocks": guess["blocks"],
        "resources": report["resources"], "bitstream_bytes": report["bitstream"]["bytes"],
        "seconds": {"compile": round(compiled, 1), **built.seconds, "all": round(seconds, 1)}, "load": round(load, 1),
        "cpu_seconds": report["cpu_seconds"],
        "critical_path": report["critical_path"],
        "needs": {"fps": whole.needs_fps, "mhz": whole.needs_mhz, "minutes": whole.needs_minutes},
    }  # fmt: skip


class Shifted(wiring.Component):
    """A unit behind few pins, so that synthesis leaves nothing out and adds two registers a bit."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        super().__init__({"bit": In(1), "out": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Bits are shifted in, results are gathered by XOR."""
        m = Module()
        m.submodules.unit = unit = self.unit
        x, result = Signal(len(unit.input.payload) + 1), Signal(len(unit.output.payload))
        m.d.sync += [x.eq(x << 1 | self.bit), self.out.eq(result.xor() ^ unit.input.ready ^ unit.output.valid)]
        m.d.sync += result.eq(unit.output.payload)
        m.d.comb += [unit.input.payload.eq(x), unit.input.valid.eq(x[-1]), unit.output.ready.eq(self.bit)]
        return m


def synthesize(unit: Any, technology: Technology) -> dict[str, int]:
    """What a unit takes after ``synth_ecp5``: a CCU2C is two LUT4s; what its pins need is taken off."""
    text = verilog.convert(Shifted(unit), name="top", strip_internal_attrs=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "top.v").write_text(outside("\n".join([text, *technology.shared.values()]), folder))
        run(
            YOSYS,
            ["-p", f"read_verilog top.v; {synthesis('ecp5', 'top')}; write_json top.json"],
            folder,
            "log",
            None,
            1800,
        )
        netlist = json.loads((folder / "top.json").read_text())
    refine(netlist)
    absorb(netlist)
    found = used(cells_by_type(netlist), "ecp5")
    return {**found, "LUT4": found["LUT4"] - -(-(len(unit.output.payload) + 2) // 3)}


def units(say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """LUT4s a binary MAC and cycle of matrix-vector units, all their control, thresholds and buffers included: as they come."""
    random = np.random.default_rng(0)
    for kind, shape, pe, simd, spanning in (
        ("memory", (64, 784), 16, 56, False),
        ("memory", (64, 576), 16, 96, False),
        ("constant", (64, 64), 64, 64, False),
        ("constant", (32, 64), 32, 64, False),
        ("constant", (64, 64), 64, 64, True),
        ("constant", (32, 64), 32, 64, True),
    ):
        say(f"{pe} x {simd}, weights {kind}{', MST' if spanning else ''}")
        product = Product(random.integers(0, 2, shape).astype(np.uint8), random.integers(20, 40, shape[0]))
        technology = Technology("ecp5", share=True)
        made = SpanningMatrixVector if spanning else MatrixVector
        found = synthesize(made(product, pe, simd, "block", technology), technology)
        yield {
            "weights": kind, "rows": shape[0], "columns": shape[1], "pe": pe, "simd": simd, "mst": spanning, **found,
            "luts_per_mac": found["LUT4"] / (pe * simd), "limit": LIMITS[kind],
        }  # fmt: skip


def render(facts: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# FPGA designs as they were built",
        "",
        "Made by `python benchmarks/fpga_designs.py --save` (see there); how such designs come about is told in "
        "[fpga.md](fpga.md).",
        "Link, pins and clock are in every bitstream. Frames a second: the clock after routing through the cycles an image of "
        "the emitted Verilog in Verilator",
        "(of the estimate where it says so). Beside them what the UART lets through. No bitstream was loaded on a board.",
        "",
    ]
    whole = facts.get("whole", {})
    if whole:
        lines += [
            "| design | network | board | Fmax after routing | cycles an image | FPS at Fmax | first result | FPS by UART |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in whole.items():
            cycles = f"{row['cycles']:,.0f}" + ("" if row["simulated"] else " (estimate)")
            met = "" if row["fmax_mhz"] >= row["clock_mhz"] else f" (**its clock is {row['clock_mhz']:g}**)"
            lines.append(
                f"| `{name}` | {row['network']} | `{row['board']}` | {row['fmax_mhz']:.1f} MHz{met} | {cycles} | "
                f"{row['fps']:,.0f} | {row['first_us']:,.2f} µs | {row['link_fps']:,.0f} |"
            )
        lines += [
            "",
            "Accelerator alone against its estimate, LUT4s (a `CCU2C` is two, a block of LUT RAM six; cells counted by",
            "the names that synthesis gave them), and block memories; then the whole chip, and the seconds from ONNX:",
            "",
            "| design | LUT4: built, estimate | blocks | logic cells of the chip | ONNX + yosys + nextpnr + packer | load |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in whole.items():
            error = 100 * row["estimated_luts"] / row["luts"] - 100
            logic = next(entry for key, entry in row["resources"].items() if key in _LOGIC)
            steps = row["seconds"]
            shown = " + ".join(f"{value:.0f}" for key, value in steps.items() if key != "all")
            if spent := row.get("cpu_seconds"):
                shown += f" ({sum(spent.values()) + steps['compile']:.0f} of the processor)"
            lines.append(
                f"| `{name}` | {row['luts']:,}, {row['estimated_luts']:,} ({error:+.1f} %) | "
                f"{row['blocks']}, {row['estimated_blocks']} | {logic['used']:,} of {logic['available']:,} | "
                f"{steps['all']:.0f} s: {shown} | {row['load']} |"
            )
        machine = facts["machine"]
        lines += [f"\n`{name}`: {row['note']}" for name, row in whole.items() if "note" in row]
        lines += [
            "",
            f"Times on {machine['cores']} cores ({machine['cpu']}), which other work shared: `load` is how many processes "
            "wanted one when the build began. The tools use one core each.",
            "",
        ]
    if "units" in facts:
        lines += [
            "Matrix-vector units by yosys alone, control, buffers and thresholds included:",
            "",
            "| rows × columns a cycle | weights | LUT4 | flip-flops | block memories | LUT4 a MAC and cycle |",
            "|---|---|---|---|---|---|",
        ]
        for row in facts["units"]:
            kind = "constant, MST" if row["mst"] else "constant" if row["weights"] == "constant" else "in block memory"
            lines.append(
                f"| {row['pe']} × {row['simd']} | {kind} | {row['LUT4']:,} | {row['FF']:,} | {row['BRAM']} | "
                f"{row['luts_per_mac']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


_LOGIC = ("TRELLIS_COMB", "ICESTORM_LC", "LUT4")


def main() -> int:
    """Build, print, perhaps store."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("designs", nargs="*", help=f"{', '.join(WHOLE)} or units; all without")
    parser.add_argument("--save", action="store_true", help="store what was found in docs/")
    parser.add_argument("--render", action="store_true", help="only write the page of what is stored")
    parser.add_argument("--only-simulation", action="store_true", help="simulate what is stored, build nothing")
    parser.add_argument("--no-simulation", action="store_true", help="go by the estimate's cycles")
    options = parser.parse_args()
    facts: dict[str, Any] = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    if unknown := set(options.designs) - {*WHOLE, "units"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    started = time.monotonic()
    failed = False

    def say(name: str) -> Callable[[str], None]:
        return lambda words: print(f"{time.monotonic() - started:7.0f} s  {name}: {words}", file=sys.stderr, flush=True)

    for name in () if options.render else options.designs or (*WHOLE, "units"):
        try:
            if name == "units":
                rows = []
                for row in units(say(name)):
                    rows.append(row)
                    say(name)(f"{row['luts_per_mac']:.2f} LUT4 a MAC and cycle (limit {row['limit']})")
                    failed |= row["luts_per_mac"] > row["limit"]
                facts["units"] = rows
                print(json.dumps(rows, indent=1))
            else:
                row = facts["whole"][name] if options.only_simulation else build_whole(WHOLE[name], say(name))
                rates(row)
                facts.setdefault("whole", {})[name] = row
                if options.save:
                    FACTS.write_text(json.dumps(facts, indent=1) + "\n")
                if not options.no_simulation:
                    simulate(WHOLE[name], row, say(name))
                    rates(row)
                print(json.dumps(row, indent=1))
                failed |= row["fmax_mhz"] < row["clock_mhz"]
        except (XnorcError, TimingError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
        if options.save:
            facts["machine"] = {"cores": os.cpu_count(), "cpu": _cpu()}
            facts["whole"] = {key: facts["whole"][key] for key in WHOLE if key in facts.get("whole", {})}
            FACTS.write_text(json.dumps(facts, indent=1) + "\n")
    if options.save or options.render:
        (DOCS / "fpga_designs.md").write_text(render(facts))
    return int(failed)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
