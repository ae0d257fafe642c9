"""``fold_constants``: weight chains of any size become weights; everything else stays."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.base import Options, Status
from xnorc.passes.tidy.fold_constants import FoldConstants

from .util import apply, assert_same, ops, parse


def test_a_large_weight_chain_is_folded():
    w = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)  # exporters stop at 8,192 elements
    text = """g (float[2,300] x) => (float[2,200] y) <float k = {20.0}> {
        a = Mul (w, k)
        b = Sin (a)
        s = Sign (b)
        m = Abs (w)
        r = ReduceMean <keepdims = 1> (m)
        q = Mul (s, r)
        y = MatMul (x, q)
    }"""
    before = parse(text, {"w": w})
    after, ctx = apply(before, FoldConstants())
    assert ops(after) == ["MatMul"]
    assert_same(before, after)
    folded = [name for name, record in ctx.records.items() if record.status is Status.FOLDED]
    assert len(folded) == 6


def test_only_what_is_read_remains_as_an_initializer():
    before = parse(
        "g (float[2] x) => (float[2] y) <float a = {2}> { b = Add (a, a)\n c = Mul (b, b)\n y = Mul (x, c) }"
    )
    after, _ = apply(before, FoldConstants())
    assert [tensor.name for tensor in after.graph.initializer] == ["c"]


def test_shape_of_a_static_tensor_is_constant():
    before = parse(
        """g (float[2,3,4] x) => (float[2,12] y) <int64[1] rest = {-1}> {
        s = Shape <start = 0, end = 1> (x)
        t = Concat <axis = 0> (s, rest)
        y = Reshape (x, t)
    }"""
    )
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["Reshape"]
    assert_same(before, after)


def test_size_and_scalars_keep_their_rank():
    before = parse("g (float[2,3] x) => (float[2,3] y) { s = Size (x)\n f = Cast <to = 1> (s)\n y = Div (x, f) }")
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["Div"]
    assert list(after.graph.initializer[0].dims) == []
    assert_same(before, after)


def test_constants_of_every_kind_of_attribute():
    before = parse(
        """g (float[3] x) => (float[3] y) {
        a = Constant <value_float = 2.0> ()
        b = Constant <value = float[3] {1, 2, 3}> ()
        c = Constant <value_ints = [3]> ()
        d = Expand (a, c)
        e = Mul (b, d)
        y = Add (x, e)
    }"""
    )
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["Add"]
    assert_same(before, after)


def test_random_nodes_are_not_folded(monkeypatch):
    monkeypatch.setattr("xnorc.model_checks.check_deterministic", lambda graph: None)  # reading such a model refuses it
    before = parse("g (float[3] x) => (float[3] y) { r = RandomNormal <shape = [3]> ()\n y = Add (x, r) }")
    assert ops(apply(before, FoldConstants())[0]) == ["RandomNormal", "Add"]


def test_a_constant_output_keeps_its_node():
    before = parse("g (float[3] x) => (float[3] y, float[1] z) <float[1] a = {1}> { y = Neg (x)\n z = Neg (a) }")
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["Neg", "Neg"]
    assert_same(before, after)


@pytest.mark.parametrize(("zero", "expected"), [(None, [1, 0, -1, 0]), (1, [1, 1, -1, 1]), (-1, [1, -1, -1, -1])])
def test_sign_of_zero_weights_follows_the_choice(zero, expected):
    w = np.float32([2, 0, -3, -0.0])
    before = parse("g (float[4] x) => (float[4] y) { s = Sign (w)\n y = Mul (x, s) }", {"w": w})
    after, ctx = apply(before, FoldConstants(), options=Options(sign_zero=zero))
    found = np.frombuffer(after.graph.initializer[0].raw_data, np.float32)
    np.testing.assert_array_equal(found, expected)
    assert ("chosen" in ctx.records["Sign_0"].reason) == (zero is not None)


def test_a_constant_read_by_a_subgraph_is_folded_in_place():
    before = parse(
        """g (bool c, float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
        b = Neg (a)
        y = If (c) <
            then_branch = t () => (float[2] p) { p = Add (x, b) },
            else_branch = e () => (float[2] q) { q = Sub (x, b) }
        >
    }"""
    )
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["If"]
    from xnorc import golden

    feeds = {"c": np.array(True), "x": np.float32([1, 1])}
    np.testing.assert_array_equal(golden.run(after, feeds)["y"], golden.run(before, feeds)["y"])


def test_quantized_weights_are_folded_to_float():
    before = parse(
        "g (float[1,2] x) => (float[1,2] y) <float s = {0.5}> { w = DequantizeLinear (q, s)\n y = MatMul (x, w) }",
        {"q": np.int8([[1, -1], [-1, 1]])},
    )
    after, _ = apply(before, FoldConstants())
    assert ops(after) == ["MatMul"]
    assert_same(before, after)
