"""``recognise_sign``: every idiom becomes Binarize with the right value at zero, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.base import Options, Status
from xnorc.passes.signs.recognise_sign import RecogniseSign
from xnorc.passes.tidy.fold_constants import FoldConstants

from .util import apply, assert_rewrites, assert_same, ops, parse

PASSES = FoldConstants(), RecogniseSign()
G = "g (float[2,3,4] x) => (float[2,3,4] out)"
C = "<float one = {1}, float minus = {-1}, float zero = {0}, float half = {0.5}, float two = {2}, float c = {0.25}>"


def binarize(zero: int, before: str = "x") -> str:
    return f"{G} {{ out = ai.xnorc.Binarize <zero: int = {zero}> ({before}) }}"


@pytest.mark.parametrize(
    ("op", "left", "right", "zero"),
    [
        ("Greater", "one", "minus", -1),
        ("GreaterOrEqual", "one", "minus", 1),
        ("Less", "minus", "one", 1),
        ("LessOrEqual", "minus", "one", -1),
    ],
)
def test_where_of_each_comparison_has_its_own_value_at_zero(op, left, right, zero):
    text = f"{G} {C} {{ m = {op} (x, zero)\n out = Where (m, {left}, {right}) }}"
    ctx = assert_rewrites(parse(text), parse(binarize(zero)), *PASSES)
    assert ctx.records[next(iter(ctx.original))].status is Status.FUSED


@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("negated", [False, True])
def test_every_mixture_of_comparison_order_and_not_keeps_ties(op, swapped, mirrored, negated):
    sides = "zero, x" if mirrored else "x, zero"
    levels = "minus, one" if swapped else "one, minus"
    negation = "n = Not (m)" if negated else "n = Cast <to = 9> (m)"
    before = parse(f"{G} {C} {{ m = {op} ({sides})\n {negation}\n out = Where (n, {levels}) }}")
    after, _ = apply(before, *PASSES)
    assert ops(after) in (["Binarize"], ["Neg", "Binarize"])
    assert_same(before, after)


@pytest.mark.parametrize(
    "text",
    [
        "b = Cast <to = 1> (m)\n d = Mul (b, two)\n out = Sub (d, one)",
        "b = Cast <to = 1> (m)\n d = Mul (two, b)\n out = Add (minus, d)",
        "b = Cast <to = 1> (m)\n d = Sub (b, half)\n out = Mul (d, two)",
        "b = Cast <to = 6> (m)\n f = Cast <to = 1> (b)\n d = Sub (f, half)\n out = Div (d, half)",
        "b = Where (m, two, zero)\n out = Sub (b, one)",
    ],
)
def test_arithmetic_on_a_comparison(text):
    assert_rewrites(parse(f"{G} {C} {{ m = Greater (x, zero)\n {text} }}"), parse(binarize(-1)), *PASSES)


def test_one_minus_two_bits_is_the_negated_sign():
    text = f"{G} {C} {{ m = Greater (x, zero)\n b = Cast <to = 1> (m)\n d = Mul (b, two)\n out = Sub (one, d) }}"
    expected = f"{G} {{ n = Neg (x)\n out = ai.xnorc.Binarize <zero: int = 1> (n) }}"
    assert_rewrites(parse(text), parse(expected), *PASSES)


@pytest.mark.parametrize("c", [0.25, 1.0, -1e-45, 3e38])
def test_a_threshold_other_than_zero_is_subtracted_exactly_with_denormals_and_overflow(c):
    threshold = np.float32(c)
    text = f"{G} {C} {{ m = GreaterOrEqual (x, t)\n out = Where (m, one, minus) }}"
    expected = f"{G} {{ d = Sub (x, t)\n out = ai.xnorc.Binarize <zero: int = 1> (d) }}"
    assert_rewrites(parse(text, {"t": threshold}), parse(expected, {"t": threshold}), *PASSES)


def test_neighbouring_floats_are_told_apart_by_the_subtraction():
    tiny = np.float32(1e-45)
    for base in np.float32([0, 1e-45, 1.1754944e-38, 1, 3.4e38, -2.5e-39, 16777216]):
        for x in (np.nextafter(base, np.float32(np.inf)), np.nextafter(base, np.float32(-np.inf)), base):
            assert (x > base) == (np.float32(x - base) > 0)
            assert (x >= base) == (np.float32(x - base) >= 0)
    assert tiny > 0


def test_thresholds_per_channel():
    t = np.float32([[0.1], [0], [-0.5]])
    before = parse(f"{G} {C} {{ m = Greater (x, t)\n out = Where (m, one, minus) }}", {"t": t})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Sub", "Binarize"]
    assert_same(before, after)


def test_scaled_levels_leave_a_multiplication():
    a = np.float32([[0.3], [-2], [1]])
    text = f"{G} {C} {{ m = Greater (x, zero)\n out = Where (m, a, b) }}"
    expected = f"{G} {{ s = ai.xnorc.Binarize <zero: int = -1> (x)\n out = Mul (s, a) }}"
    assert_rewrites(parse(text, {"a": a, "b": -a}), parse(expected, {"a": a}), *PASSES)


def test_sign_is_zero_at_zero_unless_chosen():
    before = parse(f"{G} {{ out = Sign (x) }}")
    assert_rewrites(before, parse(binarize(0)), *PASSES)
    for zero in (1, -1):
        after, _ = apply(before, *PASSES, options=Options(sign_zero=zero))
        assert after.graph.node[0].attribute[0].i == zero
        assert {p.key: p.value for p in after.metadata_props}["xnorc.sign_zero"] == f"{zero:+d}"


def test_the_choice_for_sign_of_zero_leaves_comparisons_alone():
    before = parse(f"{G} {C} {{ m = Greater (x, zero)\n out = Where (m, one, minus) }}")
    after, _ = apply(before, *PASSES, options=Options(sign_zero=1))
    assert after.graph.node[0].attribute[0].i == -1


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("s = Sign (x)\n e = Equal (s, zero)\n out = Where (e, one, s)", 1),
        ("s = Sign (x)\n e = Equal (s, zero)\n out = Where (e, minus, s)", -1),
        ("s = Sign (x)\n e = Equal (zero, x)\n b = Cast <to = 9> (e)\n out = Where (b, one, s)", 1),
        ("s = Sign (x)\n e = Equal (s, zero)\n n = Not (e)\n out = Where (n, s, one)", 1),
        ("s = Sign (x)\n e = Equal (x, zero)\n f = Cast <to = 1> (e)\n out = Add (s, f)", 1),
        ("s = Sign (x)\n e = Equal (x, zero)\n f = Cast <to = 1> (e)\n out = Sub (s, f)", -1),
        ("s = Sign (x)\n t = Add (s, half)\n out = Sign (t)", 1),
        ("s = Sign (x)\n t = Sub (s, c)\n out = Sign (t)", -1),
        ("s = Sign (x)\n out = Sign (s)", 0),
        ("s = Sign (x)\n t = Mul (s, two)\n out = Sign (t)", 0),
    ],
)
def test_a_sign_whose_zeros_are_replaced(text, zero):
    assert_rewrites(parse(f"{G} {C} {{ {text} }}"), parse(binarize(zero)), *PASSES)


def test_masked_assignment_of_the_dynamo_exporter():
    text = """
        s = Sign (x)
        e = Equal (s, zero)
        i = NonZero (e)
        t = Transpose <perm = [1, 0]> (i)
        flat = Reshape (e, all)
        bits = Cast <to = 7> (flat)
        n = ReduceSum <keepdims = 1> (bits)
        u = Expand (one, n)
        out = ScatterND (s, t, u)
    """
    before = parse(f"{G} {C} {{ {text} }}", {"all": np.int64([-1])})
    assert_rewrites(before, parse(binarize(1)), *PASSES)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (-0.5, 3.0)])
def test_a_clip_with_zero_inside_is_dropped(low, high):
    limits = {"low": np.float32(low), "high": np.float32(high)}
    before = parse(f"{G} {{ k = Clip (x, low, high)\n out = Sign (k) }}", limits)
    assert_rewrites(before, parse(binarize(0)), *PASSES)
    before = parse(
        f"{G} {C} {{ k = Clip (x, low, high)\n m = GreaterOrEqual (k, zero)\n out = Where (m, one, minus) }}", limits
    )
    assert_rewrites(before, parse(binarize(1)), *PASSES)


def test_a_clip_that_starts_at_zero_stays():
    before = parse(f"{G} {{ k = Clip (x, low, high)\n out = Sign (k) }}", {"low": np.float32(0), "high": np.float32(1)})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Clip", "Binarize"]
    assert_same(before, after)


def test_sine_before_a_sign_stays_in_float():
    before = parse(f"{G} {C} {{ k = Mul (x, two)\n w = Sin (k)\n out = Sign (w) }}")
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Mul", "Sin", "Binarize"]


@pytest.mark.parametrize(
    "text",
    [
        "d = Sub (s, y)\n out = Add (d, y)",
        "d = Sub (s, y)\n out = Add (y, d)",
        "d = Add (s, y)\n out = Sub (d, y)",
        "d = Add (y, s)\n out = Sub (d, y)",
        "d = Sub (y, y)\n out = Add (s, d)",
        "d = Sub (y, y)\n out = Add (d, s)",
        "d = Sub (s, y)\n z = Tanh (x)\n out = Add (d, z)",
    ],
)
def test_straight_through_residue_is_the_sign(text):
    before = parse(f"g (float[2,3,4] x) => (float[2,3,4] out) {{ s = Sign (x)\n y = Tanh (x)\n {text} }}")
    ctx = assert_rewrites(before, parse(binarize(0)), *PASSES, tolerance=1e-6)
    assert all(name in ctx.records for name in ctx.original)


def test_a_residue_of_other_values_stays():
    before = parse(f"{G} {{ s = Sign (x)\n y = Tanh (x)\n z = Sin (x)\n d = Sub (s, y)\n out = Add (d, z) }}")
    after, _ = apply(before, *PASSES)
    assert ops(after).count("Add") == 1


def test_a_float_residue_stays():
    before = parse(f"{G} {{ s = Sin (x)\n y = Tanh (x)\n d = Sub (s, y)\n out = Add (d, y) }}")
    assert ops(apply(before, *PASSES)[0]) == ["Sin", "Tanh", "Sub", "Add"]


def test_zero_and_one_are_not_a_sign_and_the_reason_is_told():
    before = parse(f"{G} {C} {{ m = Greater (x, zero)\n out = Where (m, one, zero) }}")
    after, ctx = apply(before, *PASSES)
    assert ops(after) == ["Greater", "Where"]
    assert any("not opposite" in record.reason for record in ctx.records.values())


def test_sign_plus_a_small_number_is_not_simplified():
    before = parse(f"{G} {C} {{ t = Add (x, c)\n out = Sign (t) }}")
    assert ops(apply(before, *PASSES)[0]) == ["Add", "Binarize"]


def test_a_sign_of_double_stays_with_a_reason():
    before = parse("g (double[2,3] x) => (double[2,3] out) { out = Sign (x) }")
    after, ctx = apply(before, *PASSES)
    assert ops(after) == ["Sign"]
    assert "float64" in ctx.records["Sign_0"].reason


def test_a_comparison_that_is_used_elsewhere_stays_for_the_other_reader():
    before = parse(
        f"g (float[2,3,4] x) => (float[2,3,4] out, bool[2,3,4] m) {C} "
        "{ m = Greater (x, zero)\n out = Where (m, one, minus) }"
    )
    after, _ = apply(before, *PASSES)
    assert sorted(ops(after)) == ["Binarize", "Greater"]
    assert_same(before, after)


def test_the_name_of_the_sign_tensor_stays():
    before = parse(f"{G} {C} {{ s = Sign (x)\n out = Mul (s, c) }}")
    after, _ = apply(before, *PASSES)
    assert after.graph.node[0].output[0] == "s"
