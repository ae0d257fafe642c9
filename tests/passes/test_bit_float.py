"""``bit_float``: activations of 0 and 1 on float weights become bits, compared before the function that precedes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from tests.passes.mini import RealNet, count, inputs, reason
from xnorc import golden
from xnorc.model import prepare
from xnorc.passes.manager import Optimized, Options, optimize
from xnorc.passes.weights.bit_float import find_step


def code(net: RealNet, x: str, op: str = "Greater", limit: float = 0.5, function: str = "Sigmoid") -> str:
    value = net.node(function, x, name="function") if function else x
    return net.node("Cast", net.node(op, value, np.float32(limit)), to=1, name="code")


def optimized(net: RealNet, output: str) -> Optimized:
    model = net.model(output)
    result = optimize(prepare(model), Options(), check=True)
    for seed in range(4):
        x = inputs(net.shape, seed) * np.float32([1, 1e-7, 1e-3, 10][seed])  # near the step of sigmoid too
        expected, found = (golden.run(m, {"x": x})[output] for m in (model, result.model))
        np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 2.0**-22 * max(1, np.abs(expected).max()))
    return result


@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", ""])
def test_comparison_moves_before_the_function(op, function) -> None:
    net = RealNet((3, 40))
    y = net.node("MatMul", code(net, "x", op, 0.25, function), net.floats(40, 12), name="m")
    result = optimized(net, y)
    assert count(result) == {"Pack": 1, "BitFloatGemm": 1}
    assert reason(result, "m").startswith("BitFloatGemm 40→12")


def test_step_of_a_sigmoid_is_not_at_zero() -> None:
    net = RealNet((3, 40))
    result = optimized(net, net.node("Gemm", code(net, "x"), net.floats(12, 40), net.floats(12), transB=1))
    assert count(result) == {"Pack": 1, "BitFloatGemm": 1, "Add": 1}
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    threshold = stored[next(n for n in result.model.graph.node if n.op_type == "Pack").input[1]]
    assert 0 < threshold[0] < 1e-6
    one = np.array([threshold[0], np.nextafter(threshold[0], np.float32(0))], np.float32)
    probe = RealNet((2,))
    found = golden.run(probe.model(probe.node("Sigmoid", "x", name="s")), {"x": one})["s_y"]
    assert found[0] > 0.5 and found[1] == 0.5


def test_feature_map_is_packed_as_it_lies() -> None:
    net = RealNet((2, 24, 5, 3))
    rows = net.node("Transpose", code(net, "x"), perm=[0, 2, 3, 1])
    result = optimized(net, net.node("Transpose", net.node("MatMul", rows, net.floats(24, 12)), perm=[0, 3, 1, 2]))
    assert count(result) == {"Pack": 1, "BitFloatGemm": 1, "Transpose": 1}


def test_flattened_places() -> None:
    net = RealNet((2, 24, 5, 3))
    flat = net.node("Reshape", code(net, "x"), np.array([2, 24, 15], np.int64))
    result = optimized(net, net.node("MatMul", net.node("Transpose", flat, perm=[0, 2, 1]), net.floats(24, 12)))
    assert count(result) == {"Reshape": 1, "Pack": 1, "BitFloatGemm": 1}


def test_code_that_is_read_as_floats_too() -> None:
    net = RealNet((3, 12))
    bits = code(net, "x")
    result = optimized(net, net.node("Add", net.node("MatMul", bits, net.floats(12, 12)), bits))
    assert count(result)["BitFloatGemm"] == 1 and count(result)["Sigmoid"] == 1


def test_what_is_no_single_step_stays_before_the_bits() -> None:
    net = RealNet((3, 40))
    result = optimized(net, net.node("MatMul", code(net, "x", "Greater", 0.25, "Abs"), net.floats(40, 12)))
    assert count(result) == {"Abs": 1, "Pack": 1, "BitFloatGemm": 1}


def test_find_step() -> None:
    for limit in (0.0, 1e-40, -3.5, 3e38):
        assert find_step(lambda v, limit=limit: v >= np.float32(limit)) == (np.float32(limit), True)
        assert find_step(lambda v, limit=limit: v < np.float32(limit)) == (np.float32(limit), False)
    assert "always the same" in str(find_step(lambda v: v > np.inf))
    assert "neither rises nor falls" in str(find_step(lambda v: np.abs(v) > 1))
