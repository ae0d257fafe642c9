"""Products of run-time signs: what is packed, that it is exact, and why the rest is not."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.golden import run
from xnorc.model import prepare
from xnorc.passes import Options, optimize
from xnorc.passes.pack.fuse_attention import FuseAttention

from .attention import Attention
from .mini import RealNet, compiled, count, inputs, reason


@pytest.fixture(autouse=True)
def _unfused(monkeypatch):
    """Products one by one: what ``fuse_attention`` makes of them has tests of its own."""
    monkeypatch.setattr(FuseAttention, "run", lambda self, graph, ctx: False)


@pytest.mark.parametrize("zero", [1, 0, -1])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_without_softmax_is_bits_from_end_to_end(zero, scaled):
    net = Attention()
    q, k, v = net.operands(zero)
    v = net.node("Mul", v, np.float32(0.5)) if scaled else v
    positive = net.node("Cast", net.node("Greater", net.scores(q, k), np.float32(0)), to=1, name="bits")
    context = net.node("MatMul", positive, v, name="context")
    optimized = compiled(net, net.linear(net.join(context)))
    found = count(optimized)
    assert (found["BinaryMatMul"], found["AndMatMul"], found["BinaryGemm"]) == (1, 1, 4)
    assert reason(optimized, "context") == "AndMatMul of 6 bits, 6x8"
    assert "integer threshold on 'scores' (6 thresholds: 6 rising)" in reason(optimized, "bits")
    assert not {"MatMul", "Greater", "Binarize", "Unpack"} & set(found)


def test_ties_are_not_above_zero():
    """One in six scores is 0 here, and counts as the comparison says."""
    for op, rising in (
        ("Greater", "rising"),
        ("GreaterOrEqual", "rising"),
        ("Less", "falling"),
        ("LessOrEqual", "falling"),
    ):
        net = Attention(tokens=9)
        q, k, v = net.operands()
        bits = net.node("Cast", net.node(op, net.scores(q, k), np.float32(0)), to=1, name="bits")
        optimized = compiled(net, net.node("MatMul", bits, v))
        assert rising in reason(optimized, "bits")


@pytest.mark.parametrize(
    "levels",
    [
        lambda net, x: net.node("Where", net.node("Greater", x, np.float32(0)), np.float32(1), np.float32(0)),
        lambda net, x: net.node("Where", net.node("LessOrEqual", x, np.float32(0)), np.float32(0), np.float32(1)),
        lambda net, x: net.node("Relu", net.node("Sign", x)),
        lambda net, x: net.node("Sign", net.node("Relu", x)),
        lambda net, x: net.node("Clip", net.node("Sign", x), np.float32(0), np.float32(1)),
        lambda net, x: net.node("Cast", net.node("Not", net.node("Greater", np.float32(0), x)), to=1),
        lambda net, x: net.node("Div", net.node("Add", net.sign(x, 1), np.float32(1)), np.float32(2)),
        lambda net, x: net.node("Mul", net.node("Sub", np.float32(1), net.sign(x, -1)), np.float32(0.5)),
        lambda net, x: net.node("Clip", net.node("Round", x), np.float32(0), np.float32(1)),
        lambda net, x: net.node("Min", net.node("Max", net.node("Round", x), np.float32(0)), np.float32(1)),
        lambda net, x: net.node("Round", net.node("Max", net.node("Min", x, np.float32(1)), np.float32(0))),
        lambda net, x: net.node("Round", net.node("Clip", x, np.float32(0), np.float32(1))),
    ],
)
def test_idioms_of_zero_and_one(levels):
    net = Attention(tokens=7)
    q, k, v = net.operands()
    optimized = compiled(net, net.node("MatMul", levels(net, net.scores(q, k)), v, name="context"))
    found = count(optimized)
    assert (found["BinaryMatMul"], found["AndMatMul"]) == (1, 1)
    assert not {"MatMul", "Round", "Clip", "Max", "Min", "Where", "Sign"} & set(found)


def test_scores_may_be_compared_with_one_another():
    """The row's largest: the comparison stays, its outcome is packed."""
    net = Attention()
    q, k, v = net.operands()
    scores = net.scores(q, k)
    largest = net.node("ReduceMax", scores, np.array([-1]))
    bits = net.node("Cast", net.node("GreaterOrEqual", scores, largest), to=1)
    optimized = compiled(net, net.node("MatMul", bits, v, name="context"))
    assert count(optimized)["AndMatMul"] == 1
    assert "boolean" in reason(optimized, "cast" + bits.removeprefix("cast").removesuffix("_y"))


@pytest.mark.parametrize("mask", ["add", "where", "constant"])
def test_masks(mask):
    net = Attention()
    q, k, v = net.operands()
    scores = net.scores(q, k)
    keys = np.array([0, 0, 1, 0, 1, 1], np.float32)
    if mask == "constant":
        scores = net.node("Add", scores, -10000 * keys)
    else:
        hidden = net.node("Greater", net.node("ReduceSum", "x", np.array([2]), keepdims=0), np.float32(0))
        if mask == "where":
            scores = net.node("Where", hidden, np.float32(-1e30), scores)
        else:
            scores = net.node("Add", scores, net.node("Mul", net.node("Cast", hidden, to=1), np.float32(-10000)))
    bits = net.node("Cast", net.node("Greater", scores, np.float32(0)), to=1, name="bits")
    optimized = compiled(net, net.node("MatMul", bits, v, name="context"))
    assert (count(optimized)["BinaryMatMul"], count(optimized)["AndMatMul"]) == (1, 1)
    if mask == "constant":
        assert "3 rising, 3 constant" in reason(optimized, "bits")


@pytest.mark.parametrize("which", ["both", "left", "right", "value"])
@pytest.mark.parametrize("sign_zero", [None, 1, -1])
def test_signs_that_can_be_zero(which, sign_zero):
    """Straight from the input, where zeros are common: ge and gt of each operand, end to end."""
    net = RealNet((2, 5, 11), seed=3)
    left, right = (net.node("Sign", "x") if which in (side, "both") else net.sign("x") for side in ("left", "right"))
    if which == "value":
        left = net.node("Cast", net.node("Greater", "x", np.float32(0.1)), to=1)
        right = net.node("Sign", "x")
    y = net.node("MatMul", left, net.node("Transpose", right, perm=[0, 2, 1]), name="product")
    if sign_zero is None:
        text = reason(compiled(net, y), "product")
        assert f"{4 if which == 'both' else 2} times the bits" in text
    else:
        text = reason(optimize(prepare(net.model(y)), Options(sign_zero=sign_zero), check=True), "product")
        assert "times" not in text


def test_scales_per_row_and_through_moves():
    net = RealNet((2, 5, 8), seed=3)
    q = net.node("Mul", net.sign("x"), net.floats(2, 5, 1))
    k = net.node("Transpose", net.node("Div", net.sign("x"), np.float32(3)), perm=[0, 2, 1])
    y = net.node("MatMul", q, k, name="product")
    optimized = optimize(prepare(net.model(y)), check=True)
    assert count(optimized)["BinaryMatMul"] == 1 and count(optimized)["Mul"] == 2


def test_products_of_two_axes_and_of_heads_merged_for_bmm():
    net = RealNet((6, 24), seed=2)
    y = net.node("MatMul", net.sign("x"), net.node("Transpose", net.sign("x"), perm=[1, 0]), name="product")
    assert reason(compiled(net, y), "product") == "BinaryMatMul of 24 bits, 6x6"
    net = Attention()
    q, k, v = net.operands()
    q, k, v = (net.node("Reshape", x, np.array([2, *s])) for x, s in ((q, (6, 8)), (k, (8, 6)), (v, (6, 8))))
    bits = net.node("Cast", net.node("Greater", net.scores(q, k), np.float32(0)), to=1)
    split = net.node("Reshape", net.node("MatMul", bits, v, name="context"), np.array([1, 2, 6, 8]))
    optimized = compiled(net, net.linear(net.join(split)))
    assert (count(optimized)["BinaryMatMul"], count(optimized)["AndMatMul"]) == (1, 1)


@pytest.mark.parametrize("zero", [1, 0])
def test_heads_of_odd_size_are_packed_behind_the_split(zero):
    net = Attention(size=5)
    q, k, _ = net.operands(zero)
    assert count(compiled(net, net.node("MatMul", q, k)))["BinaryMatMul"] == 1
    q, k = (net.sign("x", zero) for _ in range(2))  # signs first, then heads
    found = count(compiled(net, net.node("MatMul", net.split(q), net.split(k, (0, 2, 3, 1)))))
    assert found["BinaryMatMul"] == 1


def test_signs_times_floats_are_added_and_subtracted():
    """On either side, with signs that can be 0, and 0 and 1: the sum of floats may be in another order."""
    for make, sums in (
        (lambda net: (net.sign("x"), net.node("Transpose", "x", perm=[0, 2, 1])), 1),
        (lambda net: ("x", net.node("Transpose", net.sign("x"), perm=[0, 2, 1])), 1),
        (lambda net: (net.node("Sign", "x"), net.node("Transpose", "x", perm=[0, 2, 1])), 2),
        (lambda net: ("x", net.node("Transpose", net.node("Sign", "x"), perm=[0, 2, 1])), 2),
        (lambda net: (net.node("Relu", net.node("Sign", "x")), net.node("Transpose", "x", perm=[0, 2, 1])), 1),
    ):
        net = RealNet((2, 5, 11))
        model = net.model(net.node("MatMul", *make(net), name="product"))
        optimized = optimize(prepare(model), check=True)
        assert count(optimized)["SignMatMul"] == sums and "MatMul" not in count(optimized)
        x = inputs(net.shape, 0)
        (expected,), (got,) = run(model, {"x": x}).values(), run(optimized.model, {"x": x}).values()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


class TestLeftInFloat:
    def test_neither_is_a_sign(self):
        net = RealNet((2, 5, 8))
        y = net.node("MatMul", "x", net.node("Transpose", "x", perm=[0, 2, 1]), name="product")
        assert reason(compiled(net, y), "product") == "a product of two computed operands that are no signs"

    def test_broadcasting(self):
        net = RealNet((2, 5, 8))
        k = net.node("Transpose", net.node("Slice", net.sign("x"), np.array([0]), np.array([1])), perm=[0, 2, 1])
        y = net.node("MatMul", net.sign("x"), k, name="product")
        assert "leading axes must be equal" in reason(compiled(net, y), "product")

    def test_zero_and_one_on_the_right_are_added_as_floats(self):
        net = RealNet((2, 5, 8))
        bits = net.node("Cast", net.node("Greater", "x", np.float32(0)), to=1)
        y = net.node("MatMul", net.sign("x"), net.node("Transpose", bits, perm=[0, 2, 1]), name="product")
        assert reason(compiled(net, y), "product").startswith("SignMatMul: 8 terms")
