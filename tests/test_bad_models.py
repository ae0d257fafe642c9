"""Models that look binary and are not, and models that nothing can be exact for: refused, or left in float with a line that
says what to do; and what is left in float still compiles and validates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import helper

import xnorc
from tests.passes.mini import RealNet
from xnorc.cli import app

ADVICE = "binarize them so, or leave the layer in float"


def layer(weight: np.ndarray) -> onnx.ModelProto:
    """A sign and a 3x3 convolution with these weights."""
    net = RealNet((1, weight.shape[1], 6, 6))
    return net.model(net.node("Conv", net.sign("x"), weight, kernel_shape=[3, 3], name="conv"))


def reason_of(model: onnx.ModelProto, node: str) -> str:
    record = next(record for record in xnorc.explain(model).records if record.node == node)
    assert record.status.value == "float"
    return record.reason


def weights() -> np.ndarray:
    return RealNet((1, 1), 3).signs(4, 8, 3, 3)


def validates(model: onnx.ModelProto) -> None:
    result = xnorc.compile(model, "host").validate("host")
    assert result.ok, result.first_difference


ALMOST_BINARY = {
    "three levels in one channel": (lambda w: np.where(np.arange(w.size).reshape(w.shape) == 77, 0, w), "2-bit weights"),
    "a scale for every place": (lambda w: w + 0.25 * np.arange(9).reshape(3, 3), "5-bit weights"),
    "a scale for every input channel": (lambda w: w * np.tile([1.0, 2.0], 4).reshape(1, 8, 1, 1), "3-bit weights"),
    # Beyond a few roundings two magnitudes are two: a sum of two binary weights.
    "two magnitudes that are nearly one": (lambda w: np.where(np.arange(w.size).reshape(w.shape) == 0, w * (1 + 2e-6), w), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", ALMOST_BINARY)
def test_weights_that_are_almost_binary_are_not_made_binary(case):
    """Nothing is rounded to fit one bit: they take the bits that they need, the record says how many, and all is exact."""
    change, said = ALMOST_BINARY[case]
    model = layer(change(weights()).astype(np.float32))
    optimized = xnorc.optimize(model, check=True)
    assert "BinaryConv" not in {node.op_type for node in optimized.model.graph.node}
    reason = next(record.reason for record in optimized.records if record.node == "conv")
    assert reason.startswith("BitSerialConv") and reason.endswith(said)
    x = np.random.default_rng(1).normal(size=(1, 8, 6, 6)).astype(np.float32)
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, optimized.model)
    )
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-5)  # sums of 72 floats against scaled integers
    validates(model)


def test_a_scale_for_every_element():
    scale = np.random.default_rng(0).uniform(0.5, 2, (4, 8, 3, 3))
    model = layer((weights() * scale).astype(np.float32))
    reason = reason_of(model, "conv")
    assert reason.startswith("its weights are not two-level: output channel 0 has 72 levels") and ADVICE in reason
    validates(model)


@pytest.mark.parametrize("kind, name", [(6, "int32"), (3, "int8"), (7, "int64")])
def test_the_sign_of_integers(kind, name):
    """Exact as it is; what the line says makes bits of it."""
    net = RealNet((1, 8, 6, 6))
    sign = net.node("Sign", net.node("Cast", "x", to=kind), name="sign")
    model = net.model(net.conv(net.node("Cast", sign, to=1), 8, 4, name="conv"))
    text = reason_of(model, "sign")
    assert name in text and text.endswith("cast to float32 before the sign, not after it")
    assert "BinaryConv" not in str(xnorc.optimize(model).model.graph.node)
    validates(model)


def test_the_advice_for_the_sign_of_integers_works():
    net = RealNet((1, 8, 6, 6))
    integers = net.node("Cast", "x", to=6)
    sign = net.node("Sign", net.node("Cast", integers, to=1), name="sign")
    assert "BinaryConv" in str(xnorc.optimize(net.model(net.conv(sign, 8, 4, name="conv"))).model.graph.node)


def random_model(op: str, *, reads: bool = True, kind: int = 1, **attrs: object) -> onnx.ModelProto:
    noise = helper.make_node(op, ["x"] if reads else [], ["y"], name="noise", **attrs)
    graph = helper.make_graph(
        [noise], "g", [helper.make_tensor_value_info("x", 1, [1, 8])], [helper.make_tensor_value_info("y", kind, None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


RANDOM = {
    "Bernoulli": (random_model("Bernoulli"), "probability > 0.5"),
    "Multinomial": (random_model("Multinomial", kind=6), "ArgMax"),
    "RandomNormal": (random_model("RandomNormal", reads=False, shape=[1, 8]), "input of the model"),
    "RandomNormalLike": (random_model("RandomNormalLike"), "input of the model"),
    "RandomUniform": (random_model("RandomUniform", reads=False, shape=[1, 8]), "input of the model"),
    "RandomUniformLike": (random_model("RandomUniformLike"), "input of the model"),
}


@pytest.mark.parametrize("op", RANDOM)
def test_random_nodes_are_refused(op, tmp_path: Path):
    model, advice = RANDOM[op]
    onnx.save(model, tmp_path / "m.onnx")
    for verb in (["explain"], ["optimize", "-o", tmp_path / "p.onnx"], ["compile", "-o", tmp_path / "p.xnorc"]):
        done = CliRunner().invoke(app, [verb[0], str(tmp_path / "m.onnx"), *map(str, verb[1:])])
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"node 'noise' ({op}) draws random numbers" in line and advice in line and "m.onnx" in line
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_random_node_inside_a_function_is_refused():
    function = helper.make_function(
        "mine", "Noisy", ["x"], ["y"], [helper.make_node("RandomNormalLike", ["x"], ["y"], name="inner")],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model = random_model("Neg")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Noisy", "mine"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(xnorc.errors.ModelError, match="draws random numbers"):
        xnorc.explain(model)


def test_dropout_that_trains_is_refused():
    model = random_model("Dropout")
    model.graph.node[0].input.extend(["ratio", "training"])
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(0.5), "ratio"),
            onnx.numpy_helper.from_array(np.array(True), "training"),
        ]
    )
    with pytest.raises(xnorc.errors.ModelError, match=r"drops at random .* export the model in eval mode"):
        xnorc.explain(model)
