"""``gelu_sign``: what only a sign reads of GELU is x and the numbers that GELU makes zero, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.passes.mini import RealNet, compiled, count, reason, run
from xnorc.golden import run as run_golden
from xnorc.model import prepare
from xnorc.passes import optimize
from xnorc.passes.base import Options
from xnorc.passes.floats import COUNT, floats

Chain = Callable[[RealNet, str], str]


def gelu(net: RealNet, x: str) -> str:
    """As torch exports it."""
    inner = net.node("Add", net.node("Erf", net.node("Div", x, np.float32(2**0.5))), np.float32(1))
    return net.node("Mul", net.node("Mul", x, inner), np.float32(0.5), name="gelu")


def gelu_tanh(net: RealNet, x: str) -> str:
    """Its other form, with x³. ONNX Runtime's tanh goes a little beyond −1, where the signs of this jump to and fro."""
    cube = net.node("Mul", net.node("Pow", x, np.float32(3)), np.float32(0.044715))
    inner = net.node("Tanh", net.node("Mul", net.node("Add", x, cube), np.float32((2 / np.pi) ** 0.5)))
    return net.node("Mul", net.node("Mul", x, np.float32(0.5)), net.node("Add", inner, np.float32(1)), name="gelu")


def silu(net: RealNet, x: str) -> str:
    """ONNX Runtime's sigmoid is zero from −18 on, and here and there from −16.3 on."""
    return net.node("Mul", x, net.node("Sigmoid", x), name="silu")


def crafted() -> np.ndarray:
    """Every kind of float: around zero, around the places where GELU and its like become zero, large ones."""
    zero = int(np.flatnonzero(floats(np.arange(COUNT // 2 - 4, COUNT // 2 + 4)) == 0)[0]) + COUNT // 2 - 4
    near = floats(np.arange(zero - 40, zero + 40))
    spread = floats(np.linspace(1, COUNT - 2, 3000).astype(np.int64))
    tails = [np.linspace(low, high, 6000, dtype=np.float32) for low, high in ((-5.6, -5.5), (-6, -4), (-110, -80))]
    return np.concatenate([near, spread, *tails])


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize("function", [gelu, gelu_tanh, silu])
def test_the_sign_of_every_kind_of_float(function: Chain, zero: int) -> None:
    x = crafted()
    x = np.resize(x, (-(-x.size // 8), 8)).astype(np.float32)
    net = RealNet(x.shape)
    y = net.node("MatMul", net.sign(function(net, "x"), zero, name="sign"), net.const(net.signs(8, 6)), name="layer")
    model = net.model(y)
    result = compiled(net, y)
    left = set() if function is gelu else {"Tanh"} if function is gelu_tanh else {"Sigmoid"} if zero >= 0 else set()
    assert {"Erf", "Tanh", "Sigmoid"} & set(count(result)) == left
    assert count(result).get("ThresholdedRelu", 0) == (function is gelu and zero >= 0)
    np.testing.assert_array_equal(run(result.model, {"x": x})[y], run(model, {"x": x})[y])


def test_the_operators_of_newer_opsets() -> None:
    """``Gelu`` and ``Mish`` are such functions by themselves."""
    x = np.resize(crafted(), (600, 8)).astype(np.float32)
    weights = np.where(np.arange(48).reshape(8, 6) % 3 > 0, 1, -1).astype(np.float32)
    nodes, outputs = [], []
    for op in ("Gelu", "Mish"):
        nodes += [
            helper.make_node(op, ["x"], [f"{op}_y"], name=op),
            helper.make_node("GreaterOrEqual", [f"{op}_y", "zero"], [f"{op}_test"], name=f"{op}_test"),
            helper.make_node("Where", [f"{op}_test", "one", "minus"], [f"{op}_sign"], name=f"{op}_sign"),
            helper.make_node("MatMul", [f"{op}_sign", "w"], [f"{op}_out"], name=f"{op}_layer"),
        ]
        outputs.append(helper.make_tensor_value_info(f"{op}_out", 1, [600, 6]))
    values = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1), "w": weights}
    graph = helper.make_graph(
        nodes, "newer", [helper.make_tensor_value_info("x", 1, [600, 8])], outputs,
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    result = optimize(prepare(model), Options(), check=True)
    assert not {"Gelu", "Mish"} & {node.op_type for node in result.model.graph.node}
    expected = run_golden(model, {"x": x})
    for name, value in run_golden(result.model, {"x": x}).items():
        np.testing.assert_array_equal(value, expected[name])


def test_between_two_binary_layers() -> None:
    """Integer thresholds where no accumulator comes so far down, a step of the first layer's epilogue elsewhere."""
    for scale, fused in ((0.02, False), (0.5, True)):
        net = RealNet((5, 64))
        hidden = net.node("MatMul", net.sign("x"), net.const(np.float32(scale) * net.signs(64, 24)), name="wide")
        hidden = net.node("Add", hidden, net.floats(24), name="bias")
        y = net.node("MatMul", net.sign(gelu(net, hidden), name="sign"), net.const(net.signs(24, 6)), name="narrow")
        result = compiled(net, y)
        assert ("ThresholdedRelu" in count(result)) is fused
        assert reason(result, "gelu").startswith(
            "in the epilogue of 'wide'" if fused else "part of the integer threshold"
        )
        assert ("integer threshold" in reason(result, "sign")) is not fused


def test_a_function_that_something_else_reads_stays() -> None:
    net = RealNet((5, 16))
    both = gelu(net, "x")
    y = net.node("MatMul", net.sign(both), net.const(net.signs(16, 6)))
    assert count(compiled(net, y, net.node("Relu", both)))["Erf"] == 1


def test_a_function_that_is_positive_elsewhere_stays() -> None:
    """x · tanh(x) is never below zero; (x − 1) · x is above it on both sides."""
    for make in (
        lambda net: net.node("Sub", net.node("Mul", "x", net.node("Tanh", "x")), np.float32(0.25)),
        lambda net: net.node("Mul", "x", net.node("Sub", "x", np.float32(1))),
    ):
        net = RealNet((5, 16))
        y = net.node("MatMul", net.sign(make(net)), net.const(net.signs(16, 6)))
        assert count(compiled(net, y))["Mul"] == 1
