"""Quantizers in all the ways that models write them: found, exact on every float, packed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.mini import Net, RealNet, compiled, count, reason
from xnorc.golden import evaluate, run
from xnorc.model import prepare
from xnorc.opset import DOMAIN
from xnorc.passes.floats import from_keys, to_keys
from xnorc.passes.graph import import_graph
from xnorc.passes.levels.float_steps import FloatSteps, find_float_steps, step_values
from xnorc.passes.levels.recognise_levels import RecogniseLevels
from xnorc.passes.manager import Optimized, optimize

f32 = np.float32
Quantizer = Callable[[Net, str], str]


def clip_round(net: Net, x: str) -> str:
    v = net.node("Clip", net.node("Div", x, f32(0.37)), f32(-4), f32(3))
    return net.node("Mul", net.node("Round", v), f32(0.37))


def round_clip(net: Net, x: str) -> str:
    v = net.node("Round", net.node("Mul", x, f32(2.7)))
    return net.node("Div", net.node("Clip", v, f32(0), f32(15)), f32(2.7))


def dorefa(net: Net, x: str) -> str:
    v = net.node("Mul", net.node("Clip", x, f32(0), f32(1)), f32(3))
    return net.node("Div", net.node("Round", v), f32(3))


def residue(net: Net, x: str) -> str:
    v = net.node("Clip", net.node("Div", x, f32(0.11)), f32(-8), f32(7))
    rounded = net.node("Add", net.node("Sub", net.node("Round", v), v), v)
    return net.node("Mul", rounded, f32(0.11))


def falling(net: Net, x: str) -> str:
    return net.node("Neg", net.node("Round", net.node("Clip", x, f32(-2), f32(2))))


def qdq(net: Net, x: str) -> str:
    q = net.node("QuantizeLinear", x, f32(0.043), np.int8(-3))
    return net.node("DequantizeLinear", q, f32(0.043), np.int8(-3))


def comparisons(net: Net, x: str) -> str:
    outcomes = [net.node("Cast", net.node("Greater", x, f32(t)), to=1) for t in (-0.5, 0.0, 0.7)]
    return net.node("Add", net.node("Add", outcomes[0], outcomes[1]), outcomes[2])


def nested_where(net: Net, x: str) -> str:
    third = f32(1) / f32(3)
    low = net.node("Where", net.node("Less", x, f32(-0.6)), f32(-1), -third)
    high = net.node("Where", net.node("GreaterOrEqual", x, f32(0.6)), f32(1), third)
    return net.node("Where", net.node("GreaterOrEqual", x, f32(0)), high, low)


def floor_half(net: Net, x: str) -> str:
    v = net.node("Floor", net.node("Add", net.node("Mul", x, f32(1.9)), f32(0.5)))
    return net.node("Max", net.node("Min", v, f32(3)), f32(0))


FORMS: list[tuple[Quantizer, int]] = [
    (clip_round, 8), (round_clip, 16), (dorefa, 4), (residue, 16), (falling, 5), (qdq, 256), (comparisons, 4),
    (nested_where, 4), (floor_half, 4),
]  # fmt: skip


def few_bit_weights(net: Net, *shape: int, bits: int = 2) -> np.ndarray:
    """Integers times a scale per output channel."""
    integers = net.rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)
    scale = net.rng.uniform(0.02, 0.3, (shape[0], *[1] * (len(shape) - 1)))
    return (integers * scale.astype(f32)).astype(f32)


@pytest.mark.parametrize(("form", "levels"), FORMS, ids=[form.__name__ for form, _ in FORMS])
def test_every_float_gets_the_model_s_level(form: Quantizer, levels: int) -> None:
    net = Net((1, 4, 5, 5))
    conv = net.conv(form(net, "x"), 4, 3)
    model = net.model(conv)
    graph, ctx = import_graph(prepare(model))
    RecogniseLevels().run(graph, ctx)
    (node,) = [n for n in graph.nodes if n.op == "Quantize"]
    threshold, flip, value = (np.asarray(tensor.values) for tensor in node.inputs[1:])
    assert len(value) == levels and node.inputs[0].name == "x"
    assert not [n for n in graph.nodes if n.op not in ("Quantize", "Conv")]
    found = FloatSteps(threshold[:, 0], value, int(flip[0]))
    keys = to_keys(threshold[:, 0])
    near = from_keys(np.concatenate([keys + shift for shift in range(-3, 4)]))
    rng = np.random.default_rng(0)
    x = np.concatenate([near, rng.normal(0, 3, 5000).astype(f32), f32([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45])])
    short = Net(x.shape)
    expected = run(short.model(form(short, "x")), {"x": x})
    np.testing.assert_array_equal(step_values(x, found), next(iter(expected.values())))


@pytest.mark.parametrize(("form", "levels"), FORMS, ids=[form.__name__ for form, _ in FORMS])
def test_a_layer_of_levels_is_packed(form: Quantizer, levels: int) -> None:
    net = RealNet((1, 5, 7, 6), seed=levels)
    q = form(net, net.bn("x", 5, scale=0.5))
    w = net.const(few_bit_weights(net, 6, 5, 3, 3))
    y = net.node("Conv", q, w, net.floats(6), pads=[1, 1, 1, 1], name="layer")
    optimized = optimized_within(net, y)
    assert count(optimized)["BitSerialConv"] == 1 and "Quantize" not in count(optimized)
    assert reason(optimized, "layer").startswith("BitSerialConv 3x3 5→6")


def optimized_within(net: Net, output: str, tolerance: float = 1e-5) -> Optimized:
    """As ``compiled``, within rounding; on inputs whose levels no rounding moves (the quantizer is exact)."""

    model = net.model(output)
    optimized = optimize(prepare(model), check=True)
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal(net.shape).astype(f32)
        expected, found = (run(m, {"x": x})[output] for m in (model, optimized.model))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    return optimized


def test_gemm_behind_a_flattened_map_and_a_pool() -> None:
    net = RealNet((2, 5, 6, 6))
    pooled = net.node("MaxPool", clip_round(net, "x"), kernel_shape=[2, 2], strides=[2, 2])
    flat = net.node("Flatten", pooled)
    y = net.node("Gemm", flat, few_bit_weights(net, 7, 45, bits=4), net.floats(7), transB=1, name="layer")
    optimized = optimized_within(net, y)
    assert count(optimized)["BitSerialGemm"] == 1 and "Quantize" not in count(optimized)


def test_sums_of_two_bases() -> None:
    net = RealNet((1, 12, 5, 5))
    first, second = (np.where(net.rng.random((8, 12, 3, 3)) > 0.5, f32(1), f32(-1)) for _ in range(2))
    s1, s2 = (net.rng.uniform(0.1, 1, (8, 1, 1, 1)).astype(f32) for _ in range(2))
    y = net.node("Conv", round_clip(net, "x"), net.const(s1 * first + s2 * second), pads=[1, 1, 1, 1], name="layer")
    optimized = optimized_within(net, y)
    assert count(optimized)["BitSerialConv"] == 2 and count(optimized)["PackLevels"] == 1


def test_signs_with_weights_of_few_bits() -> None:
    for zero in (-1, 0, 1):
        net = RealNet((1, 9, 5, 5))
        signs = net.sign("x", zero)
        y = net.node("Conv", signs, net.const(few_bit_weights(net, 8, 9, 3, 3)), pads=[1, 1, 1, 1], name="layer")
        assert count(optimized_within(net, y))["BitSerialConv"] == 1


def test_integers_are_exact() -> None:
    """Without scales nothing rounds at all: bit for bit."""
    net = RealNet((2, 3, 9))
    q = net.node("Round", net.node("Clip", "x", f32(-4), f32(3)))
    w = net.const(net.rng.integers(-8, 8, (5, 3, 4)).astype(f32))
    y = net.node("Conv", q, w, pads=[2, 1], strides=[2], name="layer")
    optimized = compiled(net, y)
    assert count(optimized) == {"PackLevels": 1, "Reshape": 2, "BitSerialConv": 1, "Transpose": 1, "Cast": 1}


def test_sums_that_do_not_fit_32_bits_are_left() -> None:
    k = 1 << 17  # times 127 times 255 is above 2^31
    net = RealNet((1, k))
    q = net.node("Round", net.node("Clip", "x", f32(0), f32(255)))
    w = net.rng.integers(-127, 128, (k, 2)).astype(f32)
    y = net.node("MatMul", q, net.const(w), name="layer")
    optimized = compiled(net, y, runs=0)
    assert "BitSerialGemm" not in count(optimized) and "do not fit 32 bits" in reason(optimized, "layer")


def test_what_is_no_quantizer_says_why() -> None:
    net = RealNet((1, 4, 5, 5))
    unbounded = net.node("Round", net.node("Mul", "x", f32(3)), name="round")
    y = net.conv(unbounded, 4, 3, name="layer")
    assert "more than 256 levels" in reason(optimized_within(net, y), "round")
    net = RealNet((1, 4, 5, 5))
    y = net.node("Conv", clip_round(net, "x"), net.const(net.floats(3, 4, 3, 3)), name="layer")
    assert "weights are not of few bits" in reason(optimized_within(net, y), "layer")


def test_joined_roundings_are_left() -> None:
    """round(x) + round(1.5 x) has steps, but not those of one chain: nothing is assumed."""
    net = RealNet((1, 4, 5, 5))
    both = net.node("Add", clip_round(net, "x"), "x", name="joined")
    y = net.conv(both, 4, 3, name="layer")
    assert "joins rounded values" in reason(optimized_within(net, y), "joined")


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_uniform_quantizers(data: st.DataObject) -> None:
    scale = f32(data.draw(st.floats(1e-3, 30)))
    low = data.draw(st.integers(-128, 0))
    high = data.draw(st.integers(low + 1, low + 255))
    shift = f32(data.draw(st.floats(-3, 3)))

    def function(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return (np.clip(np.round(x / scale + shift), f32(low), f32(high)) * scale).astype(f32)

    found = find_float_steps(function)
    assert isinstance(found, FloatSteps) and len(found.value) == high - low + 1
    keys = to_keys(found.threshold)
    x = from_keys(np.concatenate([keys - 1, keys]))
    np.testing.assert_array_equal(step_values(x, found), function(x))


def test_quantize_in_onnx_runtime_is_the_step_function() -> None:
    from onnx import helper

    rng = np.random.default_rng(1)
    threshold, value = np.sort(rng.normal(size=(7, 1)), axis=0).astype(f32), np.sort(rng.normal(size=8)).astype(f32)
    node = helper.make_node("Quantize", ["x", "t", "f", "v"], ["y"], domain=DOMAIN, axis=0)
    x = rng.normal(size=500).astype(f32)
    got = evaluate([node], {"x": x, "t": threshold, "f": np.zeros(1, np.uint8), "v": value}, ["y"])["y"]
    np.testing.assert_array_equal(got, step_values(x, FloatSteps(threshold[:, 0], value, 0)))


def test_few_bit_layers_connect_in_integers() -> None:
    """Batch norms of either sign, a ReLU and the quantizer between two layers: integer thresholds, nothing in float."""
    net = RealNet((1, 6, 7, 6))
    q = net.node("Round", net.node("Clip", "x", f32(-4), f32(3)))
    y = net.node("Conv", q, net.const(net.rng.integers(-3, 4, (9, 6, 3, 3)).astype(f32)), pads=[1, 1, 1, 1])
    gamma = net.floats(9)
    gamma[3] = 0
    y = net.node("Relu", net.bn(y, 9, gamma=gamma))
    q = net.node("Round", net.node("Clip", net.node("Mul", y, f32(1.7)), f32(0), f32(7)), name="second")
    y = net.node("Conv", q, net.const(net.rng.integers(-3, 4, (5, 9, 3, 3)).astype(f32)))
    optimized = compiled(net, y)
    assert count(optimized) == {"PackLevels": 2, "BitSerialConv": 2, "Transpose": 1, "Cast": 1}
    assert "7 integer thresholds a channel" in reason(optimized, "second")
