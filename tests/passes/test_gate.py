"""``gate``: precision gating on accumulators, in each of the forms that exporters write, and where it must not fire."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.base import Status

from .mini import RealNet, compiled, count, reason


def gated(style: str, gamma: float = 1.0, weight: float = 2.0, scaled: bool = False) -> tuple[RealNet, str]:
    """``where(high > d, low, 0) + 2·high`` of two sign convolutions with one weight, a batch norm and a sign behind it."""
    net = RealNet((1, 16, 6, 6))
    weights = net.const(net.signs(12, 16, 3, 3))
    high = net.conv(net.sign("x"), 16, 12, weight=weights, pads=[1, 1, 1, 1], name="high")
    rest = net.sign(net.node("Sub", "x", np.float32(0.4)))
    low = net.conv(rest, 16, 12, weight=weights, pads=[1, 1, 1, 1], name="low")
    limit = net.rng.integers(-9, 10, (1, 12, 1, 1)).astype(np.float32)
    low = net.node("Mul", low, np.float32(0.37)) if scaled else low
    compared = net.node("Mul", high, np.float32(gamma), name="scale")
    if style == "where":
        y = net.node("Where", net.node("Greater", compared, limit), low, np.float32(0), name="gate")
    elif style == "else":
        y = net.node("Where", net.node("LessOrEqual", compared, limit), np.float32(0), low, name="gate")
    elif style == "swapped":
        y = net.node("Where", net.node("Less", limit, compared), low, np.float32(0), name="gate")
    else:
        y = net.node("Mul", net.node("Cast", net.node("GreaterOrEqual", compared, limit), to=1), low, name="gate")
    doubled = net.node("Mul", high, np.float32(weight)) if weight != 1 else high
    y = net.node("Add", y, doubled, name="sum")
    y = net.conv(net.sign(net.bn(y, 12)), 12, 5, name="next")
    return net, y


@pytest.mark.parametrize("style", ["where", "else", "swapped", "mask"])
@pytest.mark.parametrize("gamma", [1.0, -0.7, 0.0])
def test_gate_and_sum_become_one_accumulator(style: str, gamma: float) -> None:
    net, y = gated(style, gamma)
    optimized = compiled(net, y)
    found = count(optimized)
    assert found["GatedSum"] == 1 and found["BinaryConv"] == 3
    assert not {"Where", "Greater", "LessOrEqual", "Less", "GreaterOrEqual", "Mul"} & set(found)  # BN is a threshold
    assert [r.status for r in optimized.records if r.op == "Conv"] == [Status.PACKED] * 3


def test_sum_with_a_fraction_stays_in_float() -> None:
    net, y = gated("where", weight=0.6)
    found = count(compiled(net, y))
    assert found["GatedSum"] == 1 and found["Add"] >= 1


def test_gate_of_a_scaled_sum_is_left_with_the_reason() -> None:
    net, y = gated("where", scaled=True)
    optimized = compiled(net, y)
    assert "GatedSum" not in count(optimized)
    assert "not the plain sum of a packed layer" in reason(optimized, "gate")
