"""Weights rounded by an input of the model: one int8 tensor, exact at every width, in the forms that exporters write."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import xnorc
from xnorc.golden import run
from xnorc.model import prepare
from xnorc.passes.base import Status
from xnorc.passes.manager import optimize

from .mini import RealNet, same_bits


def network(style: str, stored: type = np.int32) -> onnx.ModelProto:
    net = RealNet((1, 6, 7, 7))
    weights = [net.rng.integers(-128, 128, shape).astype(np.float32) for shape in ((8, 6, 3, 3), (8 * 49, 10))]
    step = net.node("Pow", np.float32(2), net.node("Cast", "k", to=1))

    def narrowed(value: np.ndarray) -> str:
        rounded = net.node("Round", net.node("Div", value, step))
        if style == "reciprocal":
            most = net.node("Mul", net.node("Reciprocal", step), np.float32(128))
        else:
            most = net.node("Div", np.float32(128), step)
        most = net.node("Sub", most, np.float32(1))
        if style == "clamped":
            rounded = net.node("Max", rounded, net.node("Div", np.float32(-128), step))
        return net.node("Min", rounded, most)

    codes = net.node("Clip", net.node("Round", net.node("Div", "x", np.float32(0.02))), np.float32(0), np.float32(255))
    y = net.node("Conv", codes, narrowed(weights[0]), pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="conv")
    y = net.node("Mul", y, net.node("Mul", step, np.float32(0.003)))
    codes = net.node("Clip", net.node("Round", net.node("Div", y, np.float32(0.11))), np.float32(-128), np.float32(127))
    rows = net.node("Flatten", codes, axis=1)
    y = net.node("MatMul", rows, narrowed(weights[1]), name="fc")
    made = helper.make_graph(
        net.nodes, "switched",
        [helper.make_tensor_value_info("x", 1, net.shape),
         helper.make_tensor_value_info("k", helper.np_dtype_to_tensor_dtype(np.dtype(stored)), [1])],
        [helper.make_tensor_value_info(y, 1, [1, 10])], net.constants,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("style", ["plain", "reciprocal", "clamped"])
def test_every_width_is_exact(style: str) -> None:
    model = network(style, np.int64 if style == "plain" else np.int32)
    optimized = optimize(prepare(model), check=False)
    ops = [node.op_type for node in optimized.model.graph.node]
    assert (
        ops.count("SwitchedConv") == 1 and ops.count("SwitchedGemm") == 1 and "Conv" not in ops and "MatMul" not in ops
    )
    assert [r.status for r in optimized.records if r.op in ("Conv", "MatMul")] == [Status.PACKED] * 2
    rng = np.random.default_rng(0)
    kind = np.int64 if style == "plain" else np.int32
    for k in range(8):
        feeds = {"x": (rng.standard_normal((1, 6, 7, 7)) * 3).astype(np.float32), "k": np.array([k], kind)}
        (expected,), (found,) = run(model, feeds).values(), run(optimized.model, feeds).values()
        assert same_bits(found, expected), k


def test_one_package_runs_at_every_width() -> None:
    package = xnorc.compile(network("plain"), "host", name="switched")
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((8, 1, 6, 7, 7)) * 3).astype(np.float32)
    result = package.validate("host", {"x": x, "k": np.arange(8, dtype=np.int32)[:, None]})
    assert result.ok, result.first_difference
    assert all(layer.differing == 0 for layer in result.layers)


def test_another_limit_is_no_second_rounding() -> None:
    model = network("plain")
    tensor = next(t for t in model.graph.initializer if onnx.numpy_helper.to_array(t).tolist() == 128.0)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(100), tensor.name))
    ops = [node.op_type for node in optimize(prepare(model)).model.graph.node]
    assert ops.count("SwitchedConv") + ops.count("SwitchedGemm") == 1
