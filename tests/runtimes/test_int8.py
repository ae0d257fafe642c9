"""``--float-layers int8`` from the model to a device: exact there, with the effect told apart from the check."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import xnorc
from tests.runtimes.small import build
from xnorc.cli import app
from xnorc.errors import PackageError


def mixed() -> onnx.ModelProto:
    """Stem, batch norm, depthwise with ReLU, 1x1 shortcut beside a binary layer, head: all that int8 has to do with."""
    rng = np.random.default_rng(4)

    def floats(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)

    constants = {
        "stem_w": floats(12, 3, 5, 5), "gamma": rng.uniform(0.5, 2, 12).astype(np.float32), "beta": floats(12),
        "mean": floats(12), "var": rng.uniform(0.5, 2, 12).astype(np.float32),
        "depth_w": floats(12, 1, 3, 3), "depth_b": floats(12),
        "binary_w": np.where(rng.integers(0, 2, (20, 12, 3, 3)) > 0, 1, -1).astype(np.float32),
        "point_w": floats(20, 12, 1, 1), "head_w": floats(7, 20), "head_b": floats(7),
        "zero": np.zeros((), np.float32), "one": np.ones((), np.float32), "minus": -np.ones((), np.float32),
        "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem_w"], ["stem"], "stem", strides=[2, 2], pads=[2, 2, 2, 2]),
        node("BatchNormalization", ["stem", "gamma", "beta", "mean", "var"], ["normal"], "norm"),
        node("Conv", ["normal", "depth_w", "depth_b"], ["depth"], "depthwise", pads=[1, 1, 1, 1], group=12),
        node("Relu", ["depth"], ["features"], "relu"),
        node("Greater", ["features", "beta_all"], ["above"], "greater"),
        node("Where", ["above", "one", "minus"], ["signs"], "where"),
        node("Conv", ["signs", "binary_w"], ["binary"], "binary", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("AveragePool", ["features"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["pooled", "point_w"], ["point"], "shortcut"),
        node("Add", ["binary", "point"], ["sum"], "sum"),
        node("ReduceMean", ["sum", "axes"], ["vector"], "mean_of", keepdims=0),
        node("Gemm", ["vector", "head_w", "head_b"], ["logits"], "head", transB=1),
    ]
    constants["beta_all"] = np.float32(0.2)
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 24, 24])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 7])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def samples(count: int, seed: int, *shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 1, *shape)).astype(np.float32)}


@pytest.fixture(scope="module")
def package() -> xnorc.Package:
    return xnorc.compile(mixed(), float_layers="int8", calibration=samples(16, 0, 3, 24, 24))


def test_device_is_exact_and_the_effect_is_told(package):
    data = samples(60, 1, 3, 24, 24)
    labels = np.zeros(60, np.int64)
    result = package.validate("host", {**data, "labels": labels}, layer_samples=3)
    assert result.ok, result.first_difference
    effect = result.int8_effect
    assert effect is not None
    assert effect.layers == ["stem", "depthwise", "shortcut", "head"]
    integers = [layer for layer in result.layers if layer.op in ("QuantizeMap", "IntegerConv", "IntegerGemm")]
    assert len(integers) >= 4 and not any(layer.differing for layer in integers if not layer.bound)
    # Signs of the binary layer flip near their threshold, so that a sample may move; most do not.
    assert effect.agreement is not None and effect.agreement >= 0.8
    assert 0 < effect.mean_error < 0.1 * effect.output_range
    assert effect.float_accuracy is not None and effect.int8_accuracy == result.end_to_end.device_accuracy
    assert result.end_to_end.agreement is not None and result.end_to_end.agreement >= 0.95
    assert "int8_effect" in result.to_json()


def test_report_and_manifest_say_so(package):
    assert package.manifest["choices"]["float_layers"] == "int8"
    reasons = {node["node"]: node for node in package.report()["nodes"]}
    for name in ("stem", "depthwise", "shortcut", "head"):
        assert "by choice" in reasons[name]["reason"] and reasons[name]["status"] == "packed"


def test_a_wrong_scale_is_found(package):
    """The device is held to the model that the recorded scales make: another scale is another model."""
    packed = package.packed()
    entry = next(entry for entry in packed.metadata_props if entry.key == "xnorc.int8")
    scales = json.loads(entry.value)
    entry.value = json.dumps({name: scale * 1.01 for name, scale in scales.items()})
    changed = dataclasses.replace(
        package, _members={**package._members, "packed.onnx": packed.SerializeToString(deterministic=True)}
    )
    assert not changed.validate("host", samples(2, 1, 3, 24, 24)).ok
    entry.value = "[1]"
    broken = dataclasses.replace(package, _members={**package._members, "packed.onnx": packed.SerializeToString()})
    with pytest.raises(PackageError, match=r"xnorc\.int8"):
        broken.validate("host", samples(2, 1, 3, 24, 24))


def test_without_the_choice_nothing_is_reported():
    result = xnorc.compile(build()).validate("host")
    assert result.ok and result.int8_effect is None


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_emulated_devices_are_exact(target):
    package = xnorc.compile(mixed(), target, float_layers="int8", calibration=samples(4, 0, 3, 24, 24))
    result = package.validate("qemu", samples(6, 1, 3, 24, 24), layer_samples=2)
    assert result.ok and result.int8_effect is not None, result.first_difference


def test_command_line(tmp_path):
    onnx.save(mixed(), tmp_path / "m.onnx")
    np.savez(tmp_path / "good.npz", **samples(4, 0, 3, 24, 24))
    np.savez(tmp_path / "narrow.npz", **samples(4, 0, 3, 24, 20))
    np.savez(tmp_path / "double.npz", x=samples(4, 0, 3, 24, 24)["x"].astype(np.float64))

    def run(*arguments: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, [arg.replace("@", f"{tmp_path}/") for arg in arguments])
        return found.exit_code, found.output

    code, text = run("explain", "@m.onnx", "--float-layers", "int8", "--calibration", "@good.npz")
    assert code == 0 and "IntegerConv" in text
    for wrong, message in (
        (["--float-layers", "int8"], "need calibration data"),
        (["--calibration", "@good.npz"], "float layers stay float32"),
        (["--float-layers", "int8", "--calibration", "@narrow.npz"], "has shape"),
        (["--float-layers", "int8", "--calibration", "@double.npz"], "float64"),
        (["--float-layers", "int8", "--calibration", "@none.npz"], "none.npz"),
        (["--float-layers", "int4"], "int4"),
    ):
        code, text = run("compile", "@m.onnx", "-o", "@m.xnorc", *wrong)
        assert code == 2 and message in text and len(text.strip().splitlines()) == 1, text
    assert not (tmp_path / "m.xnorc").exists()
