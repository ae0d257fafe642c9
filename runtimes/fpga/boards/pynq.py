"""PYNQ-Z2 with a Xilinx XC7Z020: the accelerator as an AXI4-Stream core with AXI4-Lite registers beside the Arm cores.

``project(accelerator)`` gives the files of a Vivado project: the core as Verilog, a Tcl script that puts it behind the
processing system's DMA, and a driver for the board's Python. ``resources(verilog)`` counts what the core takes, by yosys.

Neither Vivado nor a board was at hand: the core is simulated and synthesized by yosys, the Tcl script was only checked to be
complete Tcl, and the driver runs against a stand-in for ``pynq`` in the tests. Protocols: Arm IHI 0022 (AXI4-Lite), IHI 0051
(AXI4-Stream).
"""

from __future__ import annotations

import json
import tempfile
from importlib import resources as files
from math import ceil
from pathlib import Path
from typing import Any

from amaranth import Cat, ClockDomain, Const, DomainRenamer, Elaboratable, Module, Mux, Signal
from amaranth.lib import wiring

from ..link.framed import Accelerator, verilog_of
from ..link.protocol import DESIGN_BYTES, MAGIC
from ..link.widths import Convert
from ..resources import KINDS, kind_of
from ..tools import YOSYS, Progress, run
from . import Board

NAME = "pynq-z2"
TOP = "xnorc_axi"
CLOCK_MHZ = 100
CAPACITY = {"LUT": 53200, "FF": 106400, "BRAM": 140, "DSP": 220}
"""Of the XC7Z020: six-input LUTs, flip-flops, blocks of 36 kbit, DSP48E1 (Xilinx DS190)."""
BOARD = Board(
    name=NAME,
    description="PYNQ-Z2, Xilinx XC7Z020",
    family="xc7",
    device=("xc7z020clg400-1",),
    oscillator_hz=CLOCK_MHZ * 1e6,  # the processing system makes the clock
    clock_hz=CLOCK_MHZ * 1e6,
    baud=0,
    pins={},
    capacity={
        "LUT4": CAPACITY["LUT"],
        "FF": CAPACITY["FF"],
        "BRAM": 2 * CAPACITY["BRAM"],
        "BRAM bits": 280 * 18432,
        "DSP": 220,
    },
    bram=(1, 2, 4, 9, 18, 36, 18432),
)
"""The estimate takes a six-input LUT for one of four inputs, and each half of a block for a block of 18 kbit."""
VERSION = 1
WORD = 64
"""Bits of a word of either stream. An image and a result begin with a word of their own."""
REGISTERS = {
    "magic": 0x00,
    "version": 0x04,
    "frame_in_bits": 0x08,
    "frame_out_bits": 0x0C,
    "batch": 0x10,
    "done": 0x14,
    "cycles": 0x18,
    "reset": 0x1C,
    "design": 0x20,
}
"""Byte addresses of 32-bit registers. ``batch`` (read, write): results before ``m_axis_tlast``, which ends a transfer of
the DMA. ``done``: results since the reset. ``cycles``: from the first word into the accelerator to the last word of the
batch. ``reset`` (write 1): throw away all that is under way. ``design``: four words of hash."""
_ADDRESS_BITS = 6
_PORTS = {
    "s_axi": {
        "awaddr": (_ADDRESS_BITS, "i"), "awvalid": (1, "i"), "awready": (1, "o"), "wdata": (32, "i"), "wstrb": (4, "i"),
        "wvalid": (1, "i"), "wready": (1, "o"), "bresp": (2, "o"), "bvalid": (1, "o"), "bready": (1, "i"),
        "araddr": (_ADDRESS_BITS, "i"), "arvalid": (1, "i"), "arready": (1, "o"), "rdata": (32, "o"), "rresp": (2, "o"),
        "rvalid": (1, "o"), "rready": (1, "i"),
    },
    "s_axis": {"tdata": (WORD, "i"), "tvalid": (1, "i"), "tready": (1, "o"), "tlast": (1, "i")},
    "m_axis": {"tdata": (WORD, "o"), "tvalid": (1, "o"), "tready": (1, "i"), "tlast": (1, "o"), "tkeep": (WORD // 8, "o")},
}  # fmt: skip


class AxiCore(Elaboratable):
    """The accelerator between two AXI4-Streams, with AXI4-Lite registers. ``ports``: name → signal, all of Verilog's."""

    def __init__(self, accelerator: Accelerator, design: bytes = bytes(DESIGN_BYTES)) -> None:
        self.accelerator, self.design = accelerator, design
        self.ports = {name: Signal(name=name) for name in ("aclk", "aresetn")}
        for bus, members in _PORTS.items():
            for member, (width, _) in members.items():
                self.ports[f"{bus}_{member}"] = Signal(width, name=f"{bus}_{member}")

    def elaborate(self, platform: Any) -> Module:
        """Width converters around the accelerator, registers beside it."""
        m = Module()
        core, port = self.accelerator, self.ports
        domain, core_domain = ClockDomain("sync"), ClockDomain("core")
        domain.clk = core_domain.clk = port["aclk"]
        m.domains += [domain, core_domain]
        m.d.comb += domain.rst.eq(~port["aresetn"])
        reset = Signal()
        batch = Signal(32, init=1)
        done = Signal(32)
        cycles = Signal(32)
        last_cycles = Signal(32)
        words_in = Convert(core.frame_in_bits, WORD, len(core.input.payload))
        words_out = Convert(core.frame_out_bits, len(core.output.payload), WORD)
        for name, part in {"words_in": words_in, "accelerator": core, "words_out": words_out}.items():
            m.submodules[name] = DomainRenamer("core")(part)
        m.d.comb += core_domain.rst.eq(domain.rst | reset)
        wiring.connect(m, words_in.output, core.input)
        wiring.connect(m, core.output, words_out.input)

        # A result of several words, a batch of several results.
        result_words = ceil(core.frame_out_bits / WORD)
        place = Signal(range(result_words))
        results = Signal(32)
        ends_result = place == result_words - 1
        moved = Signal()
        ends = Signal()
        m.d.comb += [
            words_in.input.payload.eq(port["s_axis_tdata"]),
            words_in.input.valid.eq(port["s_axis_tvalid"]),
            port["s_axis_tready"].eq(words_in.input.ready),
            port["m_axis_tdata"].eq(words_out.output.payload),
            port["m_axis_tvalid"].eq(words_out.output.valid),
            port["m_axis_tkeep"].eq(Const(0xFF, 8)),
            words_out.output.ready.eq(port["m_axis_tready"]),
            ends.eq(ends_result & (results + 1 >= batch)),
            port["m_axis_tlast"].eq(ends),
            moved.eq(words_out.output.valid & port["m_axis_tready"]),
        ]
        with m.If(moved):
            m.d.sync += place.eq(Mux(ends_result, 0, place + 1))
            with m.If(ends_result):
                m.d.sync += [done.eq(done + 1), results.eq(Mux(ends, 0, results + 1))]
        busy = Signal()
        with m.If(~busy):
            m.d.sync += [cycles.eq(1), busy.eq(core.input.valid & core.input.ready)]
        with m.Else():
            m.d.sync += cycles.eq(cycles + 1)
            with m.If(moved & ends):
                m.d.sync += [busy.eq(0), last_cycles.eq(cycles + 1)]
        with m.If(reset):
            m.d.sync += [place.eq(0), results.eq(0), done.eq(0), busy.eq(0), last_cycles.eq(0)]
        self._registers(m, reset, batch, done, last_cycles)
        return m

    def _registers(self, m: Module, reset: Signal, batch: Signal, done: Signal, cycles: Signal) -> None:
        """AXI4-Lite: one write and one read at a time, every answer is OKAY; bytes that are not selected stay."""
        port, core = self.ports, self.accelerator
        values: dict[int, Any] = {
            REGISTERS["magic"]: int.from_bytes(MAGIC, "little"),
            REGISTERS["version"]: VERSION,
            REGISTERS["frame_in_bits"]: core.frame_in_bits,
            REGISTERS["frame_out_bits"]: core.frame_out_bits,
            REGISTERS["batch"]: batch,
            REGISTERS["done"]: done,
            REGISTERS["cycles"]: cycles,
        }
        for start in range(0, DESIGN_BYTES, 4):
            values[REGISTERS["design"] + start] = int.from_bytes(self.design[start : start + 4], "little")
        write = Signal()
        strobe = Cat(port["s_axi_wstrb"][i].replicate(8) for i in range(4))
        m.d.comb += [
            write.eq(port["s_axi_awvalid"] & port["s_axi_wvalid"] & (~port["s_axi_bvalid"] | port["s_axi_bready"])),
            port["s_axi_awready"].eq(write),
            port["s_axi_wready"].eq(write),
            port["s_axi_arready"].eq(~port["s_axi_rvalid"] | port["s_axi_rready"]),
        ]
        m.d.sync += reset.eq(0)
        with m.If(write):
            m.d.sync += port["s_axi_bvalid"].eq(1)
            with m.Switch(port["s_axi_awaddr"][2:]):
                with m.Case(REGISTERS["batch"] >> 2):
                    m.d.sync += batch.eq((batch & ~strobe) | (port["s_axi_wdata"] & strobe))
                with m.Case(REGISTERS["reset"] >> 2):
                    m.d.sync += reset.eq(port["s_axi_wdata"][0] & port["s_axi_wstrb"][0])
        with m.Elif(port["s_axi_bready"]):
            m.d.sync += port["s_axi_bvalid"].eq(0)
        with m.If(port["s_axi_arvalid"] & port["s_axi_arready"]):
            m.d.sync += [port["s_axi_rvalid"].eq(1), port["s_axi_rdata"].eq(0)]
            with m.Switch(port["s_axi_araddr"][2:]):
                for address, value in values.items():
                    with m.Case(address >> 2):
                        m.d.sync += port["s_axi_rdata"].eq(value)
        with m.Elif(port["s_axi_rready"]):
            m.d.sync += port["s_axi_rvalid"].eq(0)

    def verilog(self) -> str:
        """The core as Verilog, module ``xnorc_axi``; Vivado knows its buses by the names of the ports."""
        return verilog_of(self, TOP, list(self.ports.values()), self.accelerator)


def project(accelerator: Accelerator, design: bytes = bytes(DESIGN_BYTES), mhz: float = CLOCK_MHZ) -> dict[str, str]:
    """The files of a Vivado project: ``xnorc_axi.v``, ``build.tcl`` (run with ``vivado -mode batch -source``) and
    ``driver.py`` (for the board).
    """  # fmt: skip
    here = files.files(__package__)
    return {
        f"{TOP}.v": AxiCore(accelerator, design).verilog(),
        "build.tcl": (here / "pynq_build.tcl").read_text().replace("@CLOCK_MHZ@", f"{mhz:g}"),
        "driver.py": (here / "pynq_driver.py").read_text(),
    }


def resources(verilog: str, progress: Progress | None = None, seconds: float = 3600.0) -> dict[str, dict[str, int]]:
    """What the core takes of an XC7Z020 after ``synth_xilinx`` (not placed, not routed): name → used, available.

    LUTs of one to six inputs count as one each, a RAMB18 as half a block.
    """
    with tempfile.TemporaryDirectory(prefix="xnorc-") as name:
        folder = Path(name)
        (folder / "top.v").write_text(verilog)
        script = f"read_verilog top.v; synth_xilinx -family xc7 -flatten -top {TOP}; tee -q -o stat.json stat -json"
        run(YOSYS, ["-p", script], folder, "yosys.log", progress, seconds)
        cells = json.loads((folder / "stat.json").read_text())["design"]["num_cells_by_type"]
    counts = dict.fromkeys(KINDS, 0)
    halves = 0
    for cell, number in cells.items():
        kind = kind_of(cell)
        if cell.startswith("RAMB18"):
            halves += number
        elif kind is not None:
            counts[kind] += number
    counts["BRAM"] += (halves + 1) // 2
    # A LUT that serves as memory is a LUT: the cells of 32 and 64 bits take one for each bit of a word, about.
    counts["LUT"] += counts["LUT RAM"]
    return {name: {"used": counts[name], "available": CAPACITY[name]} for name in CAPACITY}
