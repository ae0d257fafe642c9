"""``binary_weights``: weights are seen by value; the accumulator becomes exact, scale and bias follow it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from xnorc import golden
from xnorc.errors import ModelError
from xnorc.passes.base import Status
from xnorc.passes.signs.binary_weights import BinaryWeights, binary_levels
from xnorc.passes.signs.recognise_sign import RecogniseSign
from xnorc.passes.tidy.clean import Clean
from xnorc.passes.tidy.fold_constants import FoldConstants

from .util import apply, assert_same, ops, parse

PASSES = FoldConstants(), RecogniseSign(), BinaryWeights(), Clean()
CONV = "g (float[1,4,5,5] x) => (float[1,3,3,3] y) { s = Sign (x)\n y = Conv (s, w) }"
rng = np.random.default_rng(7)


def signs(*shape: int) -> np.ndarray:
    return np.where(rng.integers(0, 2, shape) > 0, 1, -1).astype(np.float32)


def scale_of(model, suffix: str = "/scale") -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(suffix))


def weight_of(model, op: str) -> np.ndarray:
    node = next(node for node in model.graph.node if node.op_type == op)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return next(tensors[name] for name in node.input if name in tensors)


def test_conv_with_scales_per_channel():
    s = np.float32([0.5, 0.3, 7]).reshape(3, 1, 1, 1)
    w = signs(3, 4, 3, 3)
    before = parse(CONV, {"w": w * s})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Conv", "Mul"]
    np.testing.assert_array_equal(weight_of(after, "Conv"), w)
    np.testing.assert_array_equal(scale_of(after), s.reshape(1, 3, 1, 1))
    assert after.graph.node[-1].output[0] == "y"
    assert_same(before, after, tolerance=1e-5)


def test_exact_signs_without_a_bias_are_left_alone():
    before = parse(CONV, {"w": signs(3, 4, 3, 3)})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Conv"]
    assert {t.name for t in after.graph.initializer} == {"w"}
    assert_same(before, after)


def test_a_bias_becomes_an_add_so_that_the_accumulator_is_an_integer():
    text = "g (float[1,4,5,5] x) => (float[1,3,3,3] y) { s = Sign (x)\n y = Conv (s, w, b) }"
    before = parse(text, {"w": signs(3, 4, 3, 3), "b": np.float32([0.1, -3, 1e-3])})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Conv", "Add"]
    assert_same(before, after, tolerance=1e-5)


@pytest.mark.parametrize("ulp", [0, 1, 3])
def test_straight_through_noise_of_a_few_ulp_is_still_binary(ulp):
    w = signs(3, 4, 3, 3) * np.float32(0.7)
    noisy = w + (rng.integers(-ulp, ulp + 1, w.shape) * np.spacing(np.float32(0.7))).astype(np.float32)
    levels = binary_levels(noisy.astype(np.float32), 0)
    np.testing.assert_array_equal(levels.signs, np.sign(w))
    assert np.isin(levels.scale, np.abs(noisy)).all()


def test_noise_of_many_ulp_is_not_binary():
    w = signs(3, 4, 3, 3)
    w[1, 2, 0, 0] += np.float32(20) * np.spacing(np.float32(1))
    after, ctx = apply(parse(CONV, {"w": w}), *PASSES)
    assert ops(after) == ["Binarize", "Conv"]
    assert "not binary: output channel 1" in ctx.records["Conv_1"].reason


def test_a_channel_of_one_sign_only_is_binary():
    w = np.abs(signs(3, 4, 3, 3)) * np.float32(-0.25)
    after, _ = apply(parse(CONV, {"w": w}), *PASSES)
    assert (weight_of(after, "Conv") == -1).all()
    assert (scale_of(after) == 0.25).all()


def test_ternary_weights_stay_and_say_so():
    w = signs(3, 4, 3, 3)
    w[2, 0, 0, 0] = 0
    after, ctx = apply(parse(CONV, {"w": w}), *PASSES)
    assert ops(after) == ["Binarize", "Conv"]
    assert "ternary" in ctx.records["Conv_1"].reason


def test_an_all_zero_channel_is_an_error_that_names_node_and_channel():
    w = signs(3, 4, 3, 3)
    w[1] = 0
    with pytest.raises(ModelError, match=r"'Conv_1'.*output channel 1 .*'w'"):
        apply(parse(CONV, {"w": w}), *PASSES)


def test_binary_weights_on_float_activations_stay_and_say_so():
    before = parse(
        "g (float[1,4,5,5] x) => (float[1,3,3,3] y) { s = Sin (x)\n y = Conv (s, w) }", {"w": signs(3, 4, 3, 3)}
    )
    after, ctx = apply(before, *PASSES)
    assert ops(after) == ["Sin", "Conv"]
    record = ctx.records["Conv_1"]
    assert record.status is Status.FLOAT
    assert "weights are binary, activations are not" in record.reason
    assert "Sin" in record.reason


def test_an_all_zero_channel_under_float_activations_is_no_error():
    w = signs(3, 4, 3, 3)
    w[1] = 0
    after, _ = apply(parse("g (float[1,4,5,5] x) => (float[1,3,3,3] y) { y = Conv (x, w) }", {"w": w}), *PASSES)
    assert ops(after) == ["Conv"]


def test_signs_are_seen_through_pool_pad_transpose_and_reshape():
    text = """g (float[1,4,6,6] x) => (float[1,5] y) {
        s = Sign (x)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)
        p = Pad (m, pads, minus)
        t = Transpose <perm = [0, 2, 3, 1]> (p)
        f = Flatten (t)
        y = MatMul (f, w)
    }"""
    constants = {
        "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
        "minus": np.float32(-1),
        "w": signs(100, 5) * np.float32(0.1),
    }
    before = parse(text, constants)
    after, _ = apply(before, *PASSES)
    assert ops(after)[-2:] == ["MatMul", "Mul"]
    assert_same(before, after, tolerance=1e-5)


def test_signs_padded_with_another_value_are_not_signs():
    text = "g (float[1,4,3,3] x) => (float[1,3,3,3] y) { s = Sign (x)\n p = Pad (s, pads, half)\n y = Conv (p, w) }"
    constants = {"pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "half": np.float32(0.5), "w": signs(3, 4, 3, 3)}
    _, ctx = apply(parse(text, constants), *PASSES)
    assert "padded" in ctx.records["Conv_2"].reason


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_bias_alpha_beta_and_either_layout(transposed):
    s = np.float32([0.5, 0.25, 2, 3])
    w = signs(6, 4)
    stored = (w * s).T if transposed else w * s
    text = (
        f"g (float[2,6] x) => (float[2,4] y) {{ s = Sign (x)\n "
        f"y = Gemm <transB = {transposed}, alpha = 0.5, beta = 3.0> (s, w, b) }}"
    )
    before = parse(text, {"w": np.ascontiguousarray(stored), "b": np.float32([1, 2, 3, 4])})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Gemm", "Mul", "Mul", "Add"]
    np.testing.assert_array_equal(scale_of(after), s)
    assert_same(before, after, tolerance=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_the_weight_on_the_left(transposed):
    s = np.float32([[0.5], [0.25], [2]])
    w = signs(3, 6) * s
    text = f"g (float[6,2] x) => (float[3,2] y) {{ s = Sign (x)\n y = Gemm <transA = {transposed}> (w, s) }}"
    before = parse(text, {"w": np.ascontiguousarray(w.T if transposed else w)})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Gemm", "Mul"]
    np.testing.assert_array_equal(scale_of(after), s)
    assert_same(before, after, tolerance=1e-5)


def test_matmul_with_the_weight_on_the_left():
    s = np.float32([[0.5], [0.25], [2]])
    before = parse(
        "g (float[2,6,5] x) => (float[2,3,5] y) { s = Sign (x)\n y = MatMul (w, s) }", {"w": signs(3, 6) * s}
    )
    after, _ = apply(before, *PASSES)
    np.testing.assert_array_equal(scale_of(after), s)
    assert_same(before, after, tolerance=1e-5)


def test_a_weight_shared_by_two_nodes_stays_shared():
    text = """g (float[2,6] x) => (float[2,6] y) {
        s = Sign (x)
        a = MatMul (s, w)
        t = Sign (a)
        y = MatMul (t, w)
    }"""
    before = parse(text, {"w": signs(6, 6) * np.float32(0.5)})
    after, _ = apply(before, *PASSES)
    assert sum(t.name.startswith("w_sign") for t in after.graph.initializer) == 1
    assert_same(before, after, tolerance=1e-5)


def test_a_weight_shared_along_different_axes_gets_a_scale_each():
    w = signs(6, 6) * np.float32(0.5)
    text = "g (float[2,6] x) => (float[2,6] y) { s = Sign (x)\n a = Gemm (s, w)\n t = Sign (a)\n y = Gemm <transB = 1> (t, w) }"
    before = parse(text, {"w": w})
    after, _ = apply(before, *PASSES)
    assert ops(after).count("Mul") == 2
    assert_same(before, after, tolerance=1e-5)


def test_conv1d_and_grouped():
    text = "g (float[1,4,9] x) => (float[1,6,7] y) { s = Sign (x)\n y = Conv <group = 2> (s, w, b) }"
    before = parse(text, {"w": signs(6, 2, 3) * np.float32(0.5), "b": rng.normal(size=6).astype(np.float32)})
    after, _ = apply(before, *PASSES)
    assert ops(after) == ["Binarize", "Conv", "Mul", "Add"]
    assert_same(before, after, tolerance=1e-5)


def test_the_accumulator_is_an_integer():
    before = parse(CONV, {"w": signs(3, 4, 3, 3) * np.float32(1 / 3)})
    after, _ = apply(before, *PASSES)
    inner = after.graph.node[-1].input[0]
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 5)).astype(np.float32)
    value = golden.run(after, {"x": x}, [inner])[inner]
    assert (value == np.round(value)).all()
