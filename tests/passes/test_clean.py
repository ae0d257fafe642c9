"""``clean``: what has no effect goes, with a record; what has one stays."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.base import Status
from xnorc.passes.tidy.clean import Clean

from .util import apply, assert_same, ops, parse

G = "g (float[2,3,4] x) => (float[2,3,4] y)"
WITH_SIN = "{ a = Sin (x)\n b = %s\n y = Neg (b) }"


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        ("Identity (a)", {}),
        ("Dropout (a)", {}),
        ("Dropout (a, r, t)", {"r": np.float32(0.5), "t": np.array(False)}),
        ("Reshape (a, s)", {"s": np.int64([2, 3, 4])}),
        ("Expand (a, s)", {"s": np.int64([3, 1])}),
        ("Transpose <perm = [0, 1, 2]> (a)", {}),
        ("Cast <to = 1> (a)", {}),
        ("Pad (a, p)", {"p": np.int64([0] * 6)}),
        ("Slice (a, s, e)", {"s": np.int64([0]), "e": np.int64([99])}),
        ("Mul (a, one)", {"one": np.float32([1])}),
        ("Mul (one, a)", {"one": np.float32([[1]])}),
        ("Div (a, one)", {"one": np.float32(1)}),
        ("Sub (a, zero)", {"zero": np.float32(0)}),
        ("Concat <axis = 1> (a)", {}),
        ("Sum (a)", {}),
    ],
)
def test_nodes_without_effect_are_removed(node, constants):
    before = parse(f"{G} {WITH_SIN % node}", constants)
    after, ctx = apply(before, Clean())
    assert ops(after) == ["Sin", "Neg"]
    assert_same(before, after)
    (record,) = ctx.records.values()
    assert record.status is Status.REMOVED


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        ("Add (a, zero)", {"zero": np.float32(0)}),  # turns −0 to +0
        ("Sub (a, zero)", {"zero": np.float32(-0.0)}),
        ("Div (one, a)", {"one": np.float32(1)}),
        ("Sub (zero, a)", {"zero": np.float32(0)}),
        ("Slice (a, s, e, k, d)", {"s": np.int64([-1]), "e": np.int64([-99]), "k": np.int64([2]), "d": np.int64([-1])}),
    ],
)
def test_nodes_with_an_effect_stay(node, constants):
    before = parse(f"{G} {WITH_SIN % node}", constants)
    after, _ = apply(before, Clean())
    assert len(ops(after)) == 3
    assert_same(before, after)


def test_a_multiplication_by_one_that_broadcasts_stays():
    before = parse("g (float[1,4] x) => (float[3,4] y) { y = Mul (x, one) }", {"one": np.ones((3, 1), np.float32)})
    assert ops(apply(before, Clean())[0]) == ["Mul"]


def test_dropout_in_training_stays(monkeypatch):
    monkeypatch.setattr("xnorc.model_checks.check_deterministic", lambda graph: None)  # reading such a model refuses it
    before = parse(f"{G} {WITH_SIN % 'Dropout (a, r, t)'}", {"r": np.float32(0.5), "t": np.array(True)})
    assert "Dropout" in ops(apply(before, Clean())[0])


def test_an_identity_at_the_output_gives_its_name_to_the_producer():
    before = parse(f"{G} {{ a = Sin (x)\n y = Identity (a) }}")
    after, _ = apply(before, Clean())
    assert ops(after) == ["Sin"]
    assert after.graph.node[0].output[0] == "y"
    assert_same(before, after)


@pytest.mark.parametrize(
    "text",
    [
        f"{G} {{ y = Identity (x) }}",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Sin (x)\n z = Identity (y) }",
    ],
)
def test_an_identity_between_input_or_output_and_output_stays(text):
    before = parse(text)
    after, _ = apply(before, Clean())
    assert "Identity" in ops(after)
    assert_same(before, after)


def test_dead_code_is_removed_with_a_record():
    before = parse(f"{G} {{ a = Sin (x)\n b = Cos (a)\n y = Neg (x) }}")
    after, ctx = apply(before, Clean())
    assert ops(after) == ["Neg"]
    assert {record.node for record in ctx.records.values()} == {"Sin_0", "Cos_1"}


def test_what_only_a_subgraph_reads_is_alive():
    before = parse(
        """g (bool c, float[2] x) => (float[2] y) {
        b = Neg (x)
        y = If (c) <
            then_branch = t () => (float[2] p) { p = Add (x, b) },
            else_branch = e () => (float[2] q) { q = Sub (x, b) }
        >
    }"""
    )
    assert ops(apply(before, Clean())[0]) == ["Neg", "If"]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 3), (2, 1, 3), (2, 1, 2), (3, 1, 5), (4, 1, 2)])
def test_auto_pad_becomes_explicit_pads(mode, stride, dilation, kernel):
    w = np.random.default_rng(0).integers(-3, 4, (5, 3, kernel, 2)).astype(np.float32)
    attrs = f'auto_pad = "{mode}", strides = [{stride}, 1], dilations = [{dilation}, 1]'
    before = parse(f"g (float[1,3,11,8] x) => (float[n,c,h,w] y) {{ y = Conv <{attrs}> (x, w) }}", {"w": w})
    after, _ = apply(before, Clean())
    names = {attr.name for attr in after.graph.node[0].attribute}
    assert "auto_pad" not in names
    assert ("pads" in names) == (mode != "NOTSET")
    from xnorc import golden

    x = {"x": np.random.default_rng(1).integers(-3, 4, (1, 3, 11, 8)).astype(np.float32)}
    np.testing.assert_array_equal(golden.run(after, x)["y"], golden.run(before, x)["y"])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_auto_pad_of_pools(op, mode):
    before = parse(
        f"g (float[1,2,7,7] x) => (float[n,c,h,w] y) "
        f'{{ y = {op} <auto_pad = "{mode}", kernel_shape = [2, 3], strides = [2, 2]> (x) }}'
    )
    after, _ = apply(before, Clean())
    assert_same(before, after)
