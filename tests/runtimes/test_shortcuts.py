"""``--shortcuts float16`` from the model to a device: exact there, with the effect told apart from the check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import xnorc
from tests.lower.harness import run_emulated, run_on_host
from tests.lower.test_copies import network
from xnorc import golden
from xnorc.cli import app
from xnorc.errors import InputError, PackageError, TargetError
from xnorc.package import Package
from xnorc.passes.fixed.half_shortcuts import candidates


def halves(package: Package) -> list[str]:
    """Tensors that the device stores as float16."""
    return [tensor["name"] for tensor in package.manifest["tensors"] if tensor["dtype"] == "float16"]


@pytest.fixture(scope="module")
def package() -> Package:
    return xnorc.compile(network(False), "host", shortcuts="float16")


def test_shortcuts_between_blocks_are_halves(package: Package) -> None:
    """Those that a sum and signs read; not the input, nor a sum that signs alone read. No step casts."""
    assert package.manifest["choices"]["shortcuts"] == "float16"
    assert len(halves(package)) == 2
    assert not [step["op"] for step in package.manifest["steps"] if step["op"] == "Cast"]


def test_device_is_exact_and_the_effect_is_told(package: Package) -> None:
    result = package.validate("host")
    assert result.ok and result.int8_effect is not None
    assert result.int8_effect.shortcuts == ["sum1_node", "sum2_node"] and result.int8_effect.layers == []
    stored = [layer for layer in result.layers if layer.dtype == "float16"]
    assert len(stored) == 2 and all(layer.max_error == 0 for layer in stored)
    assert all(found.ok and found.differing == 0 for found in result.passes)
    assert result.int8_effect.max_error > 0


def test_by_default_nothing_is_rounded() -> None:
    plain = xnorc.compile(network(False), "host")
    assert not halves(plain) and "shortcuts" not in plain.manifest["choices"]
    assert plain.validate("host").int8_effect is None


@pytest.mark.parametrize("target", [pytest.param(name, marks=pytest.mark.slow) for name in ("rpi4", "rpi2")])
def test_the_packed_model_says_what_is_rounded(target: str) -> None:
    model = network(True)
    packed = xnorc.optimize(model, shortcuts="float16").model
    assert [node.op_type for node in packed.graph.node].count("Cast") >= 4
    feeds = {"x": (np.random.default_rng(1).standard_normal((1, 20, 9, 11)) * 3).astype(np.float32)}
    expected = golden.run(packed, feeds)["y"]
    got = run_emulated(packed, feeds, target)
    np.testing.assert_allclose(got["y"], expected, rtol=0, atol=1e-5)  # a mean, whose sum has another order


def test_what_others_read_stays_float32() -> None:
    """A sum that is an output as well, or goes through a pool, is no candidate."""
    model = network(False)
    model.graph.output.append(helper.make_tensor_value_info("sum0", 1, [1, 20, 9, 11]))
    model.graph.node.append(helper.make_node("MaxPool", ["sum1"], ["pooled"], "pool", kernel_shape=[2, 2]))
    model.graph.output.append(helper.make_tensor_value_info("pooled", 1, [1, 20, 8, 10]))
    assert candidates(xnorc.optimize(model).model, model) == {}
    package = xnorc.compile(model, "host", shortcuts="float16")
    assert not halves(package) and package.validate("host").ok


def test_a_cast_of_the_model_itself() -> None:
    """Rounding to float16 and back that the model has for its own reasons runs too; computing in float16 is refused."""

    def made(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(nodes), "casts", [helper.make_tensor_value_info("x", 1, [2, 3, 4, 5])],
            [helper.make_tensor_value_info("y", 1, [2, 3, 4, 5])],
            [numpy_helper.from_array(np.float32(0.5), "half")],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    down, up = (helper.make_node("Cast", [a], [b], b, to=to) for a, b, to in (("s", "h", 10), ("h", "y", 1)))
    model = made(helper.make_node("Mul", ["x", "half"], ["s"], "scale"), down, up)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)}
    expected = golden.run(model, feeds)["y"]
    np.testing.assert_array_equal(run_on_host(xnorc.optimize(model).model, feeds)["y"], expected)
    above = helper.make_node("Relu", ["h"], ["r"], "relu")
    up = helper.make_node("Cast", ["r"], ["y"], "up", to=1)
    with pytest.raises(xnorc.errors.XnorcError, match="float16"):
        xnorc.compile(made(helper.make_node("Mul", ["x", "half"], ["s"], "scale"), down, above, up), "host")


def test_choices_that_there_are_not() -> None:
    with pytest.raises(InputError, match="shortcuts must be float32 or float16"):
        xnorc.optimize(network(False), shortcuts="int16")
    with pytest.raises(TargetError, match="FPGA board"):
        xnorc.compile(network(False), "ulx3s-85f", shortcuts="float16")


def test_damaged_choice(package: Package) -> None:
    packed = package.packed()
    entry = next(entry for entry in packed.metadata_props if entry.key == "xnorc.shortcuts")
    assert set(json.loads(entry.value)) == {"sum1_node", "sum2_node"}
    for text in ("[]", '{"sum1_node": 7}', "{", '{"sum1_node": "x"}'):
        entry.value = text
        members = {**package._members, "packed.onnx": packed.SerializeToString()}
        with pytest.raises(PackageError, match=r"xnorc\.shortcuts"):
            dataclasses.replace(package, _members=members).validate("host")


def test_command_line(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "m.xnorc"
    onnx.save(network(False), path)
    done = CliRunner().invoke(app, ["compile", str(path), "--shortcuts", "float16", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert len(halves(xnorc.load(out))) == 2
    done = CliRunner().invoke(app, ["validate", str(out)])
    assert done.exit_code == 0 and "float16 by choice" in done.output and "2 shortcuts" in done.output
    done = CliRunner().invoke(app, ["explain", str(path), "--shortcuts", "float16"])
    assert done.exit_code == 0
