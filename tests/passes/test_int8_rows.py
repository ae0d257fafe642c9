"""``int8_rows``: ternary weights on activations rounded to 8 bits row by row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.mini import RealNet, count, inputs, reason
from xnorc import golden
from xnorc.model import prepare
from xnorc.passes.manager import Optimized, Options, optimize


def quantizer(net: RealNet, x: str, *, divide: bool = False, clip: str = "Clip", order: str = "round first") -> str:
    """Absolute maximum of each row to 128 (or its inverse), round and clamp: as exporters write it."""
    largest = net.node("ReduceMax", net.node("Abs", x), np.array([-1], np.int64), keepdims=1)
    largest = net.node("Clip", largest, np.float32(1e-5))
    scale = net.node("Div", largest, np.float32(127)) if divide else net.node("Div", np.float32(128), largest)
    value = net.node("Div" if divide else "Mul", x, scale, name="scaled")
    if order == "round first":
        value = net.node("Round", value, name="round")
    if clip == "Clip":
        value = net.node("Clip", value, np.float32(-128), np.float32(127), name="clip")
    else:
        value = net.node("Min", net.node("Max", value, np.float32(-128), name="clip"), np.float32(127))
    if order != "round first":
        value = net.node("Round", value, name="round")
    net.scale = scale
    return value


def ternary(net: RealNet, k: int, out: int, scale: float = 1.0) -> np.ndarray:
    return (net.rng.choice([-1, 0, 1], (k, out)) * np.float32(scale)).astype(np.float32)


def optimized(net: RealNet, output: str, tolerance: float = 0.0) -> Optimized:
    model = net.model(output)
    result = optimize(prepare(model), Options(), check=True)
    for seed in range(4):
        x = inputs(net.shape, seed)
        expected, found = (golden.run(m, {"x": x})[output] for m in (model, result.model))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    return result


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("clip", ["Clip", "MaxMin"])
@pytest.mark.parametrize("order", ["round first", "clip first"])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 40)])
def test_every_form_is_exact(divide, clip, order, shape) -> None:
    net = RealNet(shape)
    q = quantizer(net, "x", divide=divide, clip=clip, order=order)
    y = net.node("MatMul", q, ternary(net, 40, 12), name="m")
    result = optimized(net, net.node("Div", net.node("Add", y, net.floats(12)), net.scale))
    found = count(result)
    assert found["QuantizeRows"] == found["TernaryGemm"] == 1
    assert not {"MatMul", "Round"} & set(found)
    assert reason(result, "m").startswith("TernaryGemm 40→12: weights −1, 0, +1 (")
    assert "8-bit quantizer" in reason(result, "round")


def test_bias_inside_a_gemm_is_added_to_the_integer_sum() -> None:
    net = RealNet((3, 40))
    y = net.node("Gemm", quantizer(net, "x"), ternary(net, 40, 12).T.copy(), net.floats(12), transB=1, name="m")
    found = count(optimized(net, y, 40 * 2.0**-23))
    assert found["TernaryGemm"] == 1 and found["Add"] == 1


@pytest.mark.parametrize("after", ["Mul", "Div"])
def test_fake_quantizer_scales_the_sum(after) -> None:
    net = RealNet((2, 5, 40))
    q = quantizer(net, "x", divide=after == "Mul")
    y = net.node("MatMul", net.node(after, q, net.scale, name="back"), ternary(net, 40, 12, 0.37), name="m")
    found = count(optimized(net, y, 80 * 2.0**-23))
    assert found["TernaryGemm"] == 1 and "Round" not in found


def test_activations_are_quantized_once_for_several_layers() -> None:
    net = RealNet((2, 5, 40))
    q = quantizer(net, "x")
    y = net.node("Add", net.node("MatMul", q, ternary(net, 40, 12)), net.node("MatMul", q, ternary(net, 40, 12)))
    found = count(optimized(net, y))
    assert found["QuantizeRows"] == 1 and found["TernaryGemm"] == 2


def test_scale_of_the_whole_tensor_keeps_its_nodes() -> None:
    net = RealNet((3, 40))
    q = net.node("Clip", net.node("Round", net.node("Mul", "x", np.float32(17))), np.float32(-128), np.float32(127))
    found = count(optimized(net, net.node("MatMul", q, ternary(net, 40, 12))))
    assert found["TernaryGemm"] == 1 and found["Round"] == 1 and "QuantizeRows" not in found


@pytest.mark.parametrize(("limits", "rounds"), [((-129, 127), True), ((-128, 127.5), True), ((-128, 127), False)])
def test_what_is_no_8_bit_integer_stays_float(limits, rounds) -> None:
    net = RealNet((3, 40))
    v = net.node("Round", "x") if rounds else net.node("Relu", "x")
    q = net.node("Clip", v, np.float32(limits[0]), np.float32(limits[1]))
    found = count(optimized(net, net.node("MatMul", q, ternary(net, 40, 64)), 1e-5))
    assert "TernaryGemm" not in found


def test_other_weights_keep_their_reason() -> None:
    net = RealNet((3, 40))
    y = net.node("MatMul", quantizer(net, "x"), net.floats(40, 12), name="m")
    result = optimized(net, y)
    assert "TernaryGemm" not in count(result)
    assert "weights are not of few bits: output channel 0" in reason(result, "m")
