"""One layer for query, key and value, cut into three."""

from __future__ import annotations

import numpy as np
import pytest

from .attention import Attention
from .mini import compiled, count, reason


def fused(net: Attention, sizes: list[int]) -> list[str]:
    """A layer of all columns, scaled and shifted for each, and its parts."""
    total = sum(sizes)
    y = net.node("MatMul", net.sign("x"), net.signs(net.width, total), name="parts")
    y = net.node("Add", net.node("Mul", y, net.floats(total)), net.floats(total))
    net.node("Split", y, np.array(sizes), axis=-1, name="split")
    names = [f"part{i}" for i in range(len(sizes))]
    del net.nodes[-1].output[:]
    net.nodes[-1].output.extend(names)
    return names


def test_query_key_and_value_have_thresholds_of_their_own():
    net = Attention()
    q, k, v = fused(net, [net.width] * 3)
    q, k, v = (net.node("Sign", x) for x in (net.split(q), net.split(k, (0, 2, 3, 1)), net.split(v)))
    bits = net.node("Cast", net.node("Greater", net.scores(q, k), np.float32(0)), to=1)
    optimized = compiled(net, net.linear(net.join(net.node("MatMul", bits, v))))
    found = count(optimized)
    assert (found["BinaryGemm"], found["BinaryAttention"]) == (4, 1) and "Split" not in found
    assert "layers of their own" in reason(optimized, "split")


@pytest.mark.parametrize("sizes", [[3, 5], [8, 16, 1]])
def test_parts_of_any_size(sizes):
    net = Attention()
    optimized = compiled(net, *fused(net, sizes))
    assert count(optimized)["BinaryGemm"] == len(sizes)


def test_a_whole_that_is_read_is_not_cut():
    net = Attention()
    y = net.node("MatMul", net.sign("x"), net.signs(net.width, 8))
    net.node("Split", y, np.array([4, 4]), axis=-1, name="split")
    del net.nodes[-1].output[:]
    net.nodes[-1].output.extend(["a", "b"])
    optimized = compiled(net, "a", "b", y)
    assert count(optimized)["BinaryGemm"] == 1 and count(optimized)["Split"] == 1
