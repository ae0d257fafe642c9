"""Products of two computed tensors on integers: scores, and attention probabilities on grids of base 2 and √2."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xnorc
from xnorc.passes.base import Status

from .mini import RealNet, compiled, count, reason


def codes(net: RealNet, x: str, scale: float) -> str:
    return net.node("Clip", net.node("Round", net.node("Div", x, np.float32(scale))), np.float32(-8), np.float32(7))


def attention(base: float = 2.0, sign: float = -1.0, levels: int = 16, tokens: int = 12) -> tuple[RealNet, str]:
    """Integer scores, softmax, quantized logarithms, integer values."""
    net = RealNet((1, 2, tokens, 8))
    q = codes(net, net.node("Mul", "x", np.float32(1.3)), 0.3)
    k = codes(net, net.node("Add", "x", np.float32(0.2)), 0.4)
    v = codes(net, net.node("Sub", "x", np.float32(0.1)), 0.35)
    scores = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 1, 3, 2]), name="scores")
    p = net.node("Softmax", net.node("Mul", scores, np.float32(0.04)), axis=-1)
    logs = net.node("Mul", net.node("Log", p), np.float32(sign / math.log(base)))
    n = net.node("Clip", net.node("Round", logs), np.float32(0), np.float32(levels - 1))
    if base == 2:
        level = net.node("Pow", np.float32(2), net.node("Neg", n))
        return net, net.node("MatMul", level, v, name="mix")
    odd = net.node("Mod", n, np.float32(2), fmod=1)
    half = net.node("Div", net.node("Add", n, odd), np.float32(2))
    level = net.node("Pow", np.float32(2), net.node("Neg", half))
    even = net.node("MatMul", net.node("Mul", level, net.node("Sub", np.float32(1), odd)), v, name="mix")
    other = net.node("MatMul", net.node("Mul", level, odd), v, name="mix2")
    return net, net.node("Add", even, net.node("Mul", other, np.float32(math.sqrt(2))))


@pytest.mark.parametrize("base", [2.0, math.sqrt(2)])
def test_attention_is_integer_and_equal(base: float) -> None:
    net, y = attention(base)
    optimized = compiled(net, y)
    found = count(optimized)
    products = 1 if base == 2 else 2
    assert found["IntegerMatMul"] == 1 and found["ShiftMatMul"] == products and found["StepCode"] == 1
    assert not {"MatMul", "Log", "Pow", "Mod"} & set(found)
    assert {r.status for r in optimized.records if r.op == "MatMul"} == {Status.PACKED}


def test_device_gives_the_same_integers() -> None:
    net, y = attention(math.sqrt(2))
    package = xnorc.compile(net.model(y), "host", name="attention")
    x = np.random.default_rng(5).standard_normal((6, 1, 2, 12, 8)).astype(np.float32)
    result = package.validate("host", {"x": x})
    assert result.ok, result.first_difference
    assert all(layer.differing == 0 for layer in result.layers if layer.kind == "integer")


def test_sums_past_2_24_are_left_with_the_reason() -> None:
    net, y = attention(levels=25)
    optimized = compiled(net, y, runs=1)
    assert "ShiftMatMul" not in count(optimized)
    assert "float32 is exact below 2^24 only" in reason(optimized, "mix")


def test_a_code_that_rises_is_left() -> None:
    net, y = attention(sign=1.0)
    optimized = compiled(net, y, runs=1)
    assert "ShiftMatMul" not in count(optimized)
