"""Whole attention in one operator: masks of every form, ties, softmax taken away; exact, or left as it is."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.golden import run
from xnorc.passes.pack.fuse_attention import nearest_within

from .attention import Attention
from .mini import compiled, count, inputs, reason


def bits(net: Attention, scores: str, op: str = "Greater") -> str:
    return net.node("Cast", net.node(op, scores, np.float32(0)), to=1, name=f"bits{net.count}")


def masked(net: Attention, scores: str, mask: str) -> str:
    """One of the ways to hide keys. The hidden ones differ from input to input."""
    keys = net.node("ReduceSum", "x", np.array([2]), keepdims=0)
    if mask == "constant":
        return net.node("Add", scores, np.array([0, 0, -10000, 0, -10000, -0.5], np.float32))
    if mask == "any value":  # of the size of the scores, so that it moves thresholds
        return net.node("Add", scores, net.node("Unsqueeze", keys, np.array([1, 2])))
    hidden = net.node("Unsqueeze", net.node("Greater", keys, np.float32(0)), np.array([1, 2]))
    if mask == "where":
        return net.node("Where", hidden, np.float32(-np.inf), scores)
    if mask == "where not":
        return net.node("Where", net.node("Not", hidden), scores, np.float32(-1e30))
    return net.node("Add", scores, net.node("Mul", net.node("Cast", hidden, to=1), np.float32(-10000)))


@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("mask", [None, "constant", "any value", "where", "where not", "add"])
def test_scores_above_zero(mask, op):
    net = Attention()
    q, k, v = net.operands()
    scores = net.scores(q, k)
    scores = scores if mask is None else masked(net, scores, mask)
    context = net.node("MatMul", bits(net, scores, op), v, name="context")
    optimized = compiled(net, net.linear(net.join(context)), runs=8)
    found = count(optimized)
    assert found["BinaryAttention"] == 1
    assert not {"BinaryMatMul", "AndMatMul", "MatMul"} & set(found)
    text = "a constant for each key" if mask in (None, "constant") else "found from the mask"
    assert text in reason(optimized, "context") and text in reason(optimized, "scores")


def test_layers_share_the_thresholds_of_a_mask():
    net = Attention()
    keys = net.node("ReduceSum", "x", np.array([2]), keepdims=0)
    mask = net.node("Mul", net.node("Cast", net.node("Greater", keys, np.float32(0)), to=1), np.float32(-10000))
    mask = net.node("Unsqueeze", mask, np.array([1, 2]))
    x = "x"
    for _ in range(2):
        q, k, v = (net.linear(x) for _ in range(3))
        q, k, v = (net.sign(t) for t in (net.split(q), net.split(k, (0, 2, 3, 1)), net.split(v)))
        scores = net.node("Div", net.node("MatMul", q, k), np.float32(2.5))
        x = net.linear(net.join(net.node("MatMul", bits(net, net.node("Add", scores, mask)), v)))
    found = count(compiled(net, x))
    assert (found["BinaryAttention"], found["ReduceSum"]) == (2, 2)  # one counts the accumulators that pass


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("form", ["right", "left", "divided"])
def test_a_share_of_the_largest_probability_needs_no_softmax(form, size):
    net = Attention(tokens=9, size=size)
    q, k, v = net.operands()
    p = net.node("Softmax", net.scores(q, k), axis=-1, name="softmax")
    largest = net.node("ReduceMax", p, np.array([-1]))
    limit = net.node("Div", largest, np.float32(4)) if form == "divided" else net.node("Mul", np.float32(0.25), largest)
    near = net.node("LessOrEqual", limit, p) if form == "left" else net.node("GreaterOrEqual", p, limit)
    optimized = compiled(net, net.node("MatMul", net.node("Cast", near, to=1), v, name="context"), runs=8)
    found = count(optimized)
    assert found["BinaryAttention"] == 1 and not {"Softmax", "MatMul", "ReduceMax"} & set(found)
    # ln 4 · √size in steps of 2, as scores differ by even numbers
    assert f"largest − {int(np.log(4) * np.sqrt(size)) // 2 * 2}" in reason(optimized, "softmax")


def test_nearest_within_refuses_what_rounding_could_decide():
    values = np.arange(-8, 9, 2)
    assert nearest_within(values, values / 4.0, 0.25) == 4
    assert nearest_within(values, values * np.log(4) / 4, 0.25) is None  # a gap of 4 is exactly a quarter
    assert nearest_within(values, np.where(values > 0, values, values / 9.0), 0.25) is None  # not of the gap alone


@pytest.mark.parametrize("why", ["scores are an output", "it falls", "zeros in values", "mask for each head"])
def test_it_is_left_as_products(why):
    net = Attention()
    q, k, v = net.operands()
    if why == "zeros in values":
        v = net.node("Sign", net.split("x"))
    scores = net.scores(q, k)
    if why == "it falls":
        scores = net.node("Neg", scores)
    if why == "mask for each head":
        each = net.node("MatMul", net.split("x"), net.split("x", (0, 2, 3, 1)))
        scores = net.node("Add", scores, net.node("Mul", each, np.float32(0.25)))
    context = net.node("MatMul", bits(net, scores), v)
    outputs = [context, scores] if why == "scores are an output" else [context]
    if why == "mask for each head":
        model = net.model(*outputs)
        from xnorc.model import prepare
        from xnorc.passes import optimize

        optimized = optimize(prepare(model))
        x = inputs(net.shape, 0)
        for name, value in run(model, {"x": x}).items():
            np.testing.assert_array_equal(run(optimized.model, {"x": x})[name], value)
    else:
        optimized = compiled(net, *outputs)
    found = count(optimized)
    assert "BinaryAttention" not in found and (found["BinaryMatMul"], found["AndMatMul"]) == (1, 1)
