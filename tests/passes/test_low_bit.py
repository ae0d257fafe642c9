"""``low_bit``: weights of few levels become codes; ordinary weights stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.passes.mini import RealNet, count, inputs, reason
from xnorc import golden
from xnorc.model import prepare
from xnorc.opset import REGISTRY
from xnorc.passes.manager import Optimized, Options, optimize
from xnorc.passes.weights.levels import decode, find_levels, find_powers
from xnorc.passes.weights.weight_codes import encode


def quantized(rng: np.random.Generator, rows: int, k: int, kind: str, group: int | None = None) -> np.ndarray:
    """Float32 weights as a quantizer of the named kind leaves them: ``[rows, k]``."""
    size = group or k
    w = rng.standard_normal((rows * k // size, size)).astype(np.float32)
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    bits = int(kind[-1])
    if kind.startswith("sign"):
        made = np.abs(w).mean(1, keepdims=True) * np.where(w > 0, np.float32(1), np.float32(-1))
    elif kind.startswith("mean"):
        middle = w.mean(1, keepdims=True)
        made = middle + np.abs(w - middle).mean(1, keepdims=True) * np.where(w > middle, np.float32(1), np.float32(-1))
    elif kind.startswith("symmetric"):
        scale = np.abs(w).max(1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
        made = np.round(w / scale) * scale
    elif kind.startswith("asymmetric"):
        scale = (high - low) / np.float32(2**bits - 1)
        zero = np.round(-low / scale)
        made = (np.clip(np.round(w / scale) + zero, 0, 2**bits - 1) - zero) * scale
    else:
        scale = (high - low) / np.float32(2**bits - 1)
        made = np.round((w - low) / scale) * scale + low
    return made.reshape(rows, k).astype(np.float32)


KINDS = ("sign1", "mean1", "symmetric2", "symmetric3", "symmetric4", "asymmetric2", "asymmetric3", "asymmetric4",
         "minimum2", "minimum3", "minimum4")  # fmt: skip


def close(net: RealNet, output: str) -> Optimized:
    """Optimize; the result must lie within the a-priori bound of both float32 sums (γ of at most 4000 terms)."""
    model = net.model(output)
    optimized = optimize(prepare(model), Options(), check=True)
    for seed in range(3):
        x = inputs(net.shape, seed)
        expected, found = golden.run(model, {"x": x})[output], golden.run(optimized.model, {"x": x})[output]
        np.testing.assert_allclose(found, expected, rtol=0, atol=4000 * 2.0**-23 * np.abs(expected).max())
    return optimized


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [None, 32, 128])
def test_gemm_of_each_quantizer(kind: str, group: int | None) -> None:
    net = RealNet((3, 256))
    w = quantized(net.rng, 24, 256, kind, group)
    y = net.node("Gemm", "x", net.const(w), net.floats(24), transB=1, name="g")
    optimized = close(net, y)
    assert count(optimized) == {"LowBitGemm": 1, "Add": 1}
    bits = min(int(kind[-1]), 4)
    assert reason(optimized, "g").startswith(f"LowBitGemm 256→24: {bits}-bit weights with a scale")
    stored = {t.name: t for t in optimized.model.graph.initializer}
    (codes,) = [t for name, t in stored.items() if name.endswith("/w")]
    assert list(codes.dims) == [bits, 24, 32]


def test_matmul_of_three_axes_shares_weights() -> None:
    net = RealNet((2, 5, 64))
    w = net.const(np.ascontiguousarray(quantized(net.rng, 64, 64, "symmetric4").T))
    y = net.node("MatMul", net.node("Relu", net.node("MatMul", "x", w, name="a")), w, name="b")
    optimized = close(net, y)
    assert count(optimized) == {"LowBitGemm": 2, "Relu": 1}
    assert sum(t.name.endswith("/w") for t in optimized.model.graph.initializer) == 1


@pytest.mark.parametrize(("shape", "group", "settings"), [
    ((1, 8, 9, 7), 1, {"pads": [1, 1, 1, 1]}),
    ((2, 8, 8, 8), 4, {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    ((1, 8, 12), 1, {"pads": [1, 1], "strides": [2]}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["sign1", "symmetric3", "powers"])
def test_convolutions(shape, group, settings, kind) -> None:
    net = RealNet(shape)
    k = shape[1] // group * 3 ** (len(shape) - 2)
    w = quantized(net.rng, 12, k, kind) if kind != "powers" else powers(net.rng, 12, k)
    w = w.reshape(12, shape[1] // group, *[3] * (len(shape) - 2))
    y = net.node("Conv", "x", net.const(w), net.floats(12), name="c", group=group, **settings)
    found = count(close(net, y))
    assert found.pop("ShiftConv" if kind == "powers" else "LowBitConv") == 1
    assert found == ({"Add": 1} if len(shape) == 4 else {"Add": 1, "Reshape": 2})


@pytest.mark.parametrize("channels", [16, 2000])
def test_a_small_depthwise_layer_stays_in_float(channels: int) -> None:
    """A blur of fixed weights has few levels, but nothing worth saving."""
    net = RealNet((1, channels, 4, 4))
    w = np.tile(np.float32([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16, (channels, 1, 1, 1))
    y = net.node("Conv", "x", net.const(w), name="c", group=channels, pads=[1, 1, 1, 1])
    assert count(close(net, y)).get("Conv", 0) == (1 if channels == 16 else 0)


def powers(rng: np.random.Generator, rows: int, k: int, most: int = 3) -> np.ndarray:
    """±2^0..2^most times a scale a row; every row has the smallest and the largest."""
    exponent = rng.integers(0, most + 1, (rows, k))
    exponent[:, :2] = 0, most
    signs = np.where(rng.random((rows, k)) < 0.5, -1, 1)
    return (np.exp2(exponent) * signs * rng.uniform(0.01, 0.2, (rows, 1)).astype(np.float32)).astype(np.float32)


@pytest.mark.parametrize(("most", "bits"), [(1, 2), (3, 3), (7, 4)])
def test_powers_of_two_are_exact(most: int, bits: int) -> None:
    rows = powers(np.random.default_rng(1), 9, 100, most)
    found = find_powers(rows)
    assert found is not None and found.exact and found.bits == bits
    encoded = encode(rows)
    assert encoded is not None and encoded.family == "Shift"
    given = [np.zeros((1, 100), np.float32), *encoded.constants.values()]
    np.testing.assert_array_equal(REGISTRY["ShiftGemm"].weights(given, {"k": 100}), rows)


def test_ordinary_weights_stay_float() -> None:
    rng = np.random.default_rng(0)
    assert encode(rng.standard_normal((64, 256)).astype(np.float32)) is None
    assert encode(rng.standard_normal((3, 4)).astype(np.float32)) is None  # fewer weights than levels
    assert encode(rng.integers(-1000, 1000, (16, 64)).astype(np.float32)) is None


@pytest.mark.parametrize(("what", "weights"), [
    ("a scale an element", lambda rng: rng.uniform(0.5, 1.5, (16, 64)) * rng.choice([-1, 1], (16, 64))),
    ("levels that are not evenly spaced", lambda rng: rng.choice([-1.0, -0.37, 0.2, 0.9], (16, 64))),
    ("too many levels", lambda rng: rng.integers(0, 40, (16, 64)) * 0.01),
    ("one channel of other weights", lambda rng: np.vstack([rng.choice([-1.0, 1.0], (15, 64)), rng.random((1, 64))])),
])  # fmt: skip
def test_looks_low_bit_but_is_not(what, weights) -> None:
    net = RealNet((2, 64))
    y = net.node("MatMul", "x", net.const(weights(net.rng).astype(np.float32).T.copy()), name="m")
    optimized = close(net, y)
    assert count(optimized) == {"MatMul": 1}
    assert "its weights are not" in reason(optimized, "m")


def salient(rng: np.random.Generator, rows: int, k: int, kind: str, group: int | None = None) -> np.ndarray:
    """One bit a weight, of which about a tenth are 8-bit numbers: the largest."""
    w = rng.standard_normal((rows, k)).astype(np.float32)
    listed = np.abs(w) > np.quantile(np.abs(w), 0.9)
    base = quantized(rng, rows, k, "mean1", group)
    if kind == "unsigned":
        low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
        scale = (high - low) / np.float32(255)
        zero = np.round(-low / scale)
        made = (np.clip(np.round(w / scale) + zero, 0, 255) - zero) * scale
    elif kind == "float":
        made = w
    else:
        scale = np.abs(w).max(None if kind == "tensor" else 1, keepdims=True) / np.float32(127)
        made = np.round(w / scale) * scale
    return np.where(listed, made, base).astype(np.float32)


@pytest.mark.parametrize("kind", ["row", "tensor", "unsigned"])
@pytest.mark.parametrize("group", [None, 64])
def test_salient_weights_are_listed(kind, group) -> None:
    net = RealNet((2, 3, 256))
    w = salient(net.rng, 32, 256, kind, group)
    y = net.node("MatMul", "x", net.const(np.ascontiguousarray(w.T)), name="m")
    optimized = close(net, y)
    assert count(optimized) == {"SparseResidualGemm": 1}
    assert "of them replaced by a list of 8-bit ones, equal bit for bit" in reason(optimized, "m")
    (node,) = optimized.model.graph.node
    stored = {t.name: numpy_helper.to_array(t) for t in optimized.model.graph.initializer}
    constants = [np.zeros(0), *(stored[name] for name in node.input[1:])]
    attrs = {a.name: a.i for a in node.attribute}
    np.testing.assert_array_equal(REGISTRY["SparseResidualGemm"].weights(constants, attrs), w)


def test_salient_weights_of_any_float_stay_float_with_the_reason() -> None:
    net = RealNet((2, 256))
    w = salient(net.rng, 32, 256, "float")
    y = net.node("MatMul", "x", net.const(np.ascontiguousarray(w.T)), name="m")
    optimized = close(net, y)
    assert count(optimized) == {"MatMul": 1}
    assert "are not on a grid of 8 bits" in reason(optimized, "m")


def test_lists_are_checked() -> None:
    op = REGISTRY["SparseResidualGemm"]
    starts = np.array([0, 2, 3], np.int32)
    op.check_lists(np.array([1, 4, 0]), starts, 5)
    for columns, begin in (([4, 1, 0], starts), ([1, 5, 0], starts), ([1, 4, 0], starts[::-1]), ([1, 4], starts)):
        with pytest.raises(ValueError, match="must"):
            op.check_lists(np.array(columns), begin, 5)


def test_layers_of_signs_are_left_to_pack() -> None:
    net = RealNet((2, 64))
    ternary = np.random.default_rng(2).choice([-0.5, 0, 0.5], (64, 8)).astype(np.float32)
    y = net.node("MatMul", net.sign("x"), net.const(ternary), name="m")
    optimized = close(net, y)
    assert "LowBitGemm" not in count(optimized)


def test_a_layer_must_become_half_as_large() -> None:
    assert encode(np.float32([[1.0, -1.0], [2.0, -2.0]])) is None


@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(2, 90), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_levels_come_back(seed: int, kind: str, k: int, factor: float) -> None:
    rows = quantized(np.random.default_rng(seed), 6, k, kind) * np.float32(factor)
    found = find_levels(rows)
    assert found is not None
    back = decode(found.codes, found.scale, found.zero, found.offset)
    off = np.abs(back.astype(np.float64) - rows)
    assert (off <= 4 * np.spacing(np.abs(rows).max(axis=1, keepdims=True))).all()
    assert found.exact == (not off.any())
