"""``sink_affine``: {0, 1} activations and scaled signs are packed; what cannot be is left, with the reason."""

import numpy as np
import pytest

from tests.passes.mini import RealNet, compiled, count, inputs, reason
from xnorc.golden import run
from xnorc.model import prepare
from xnorc.passes.manager import optimize

ZERO = np.float32(0)


def nearly(net, *outputs, runs=3, tolerance=2e-6):
    """As ``compiled``, for layers whose scale moves: float rounding apart from the original."""
    model = net.model(*outputs)
    optimized = optimize(prepare(model), check=True)
    for seed in range(runs):
        x = inputs(net.shape, seed)
        expected = run(model, {"x": x})
        for name, value in run(optimized.model, {"x": x}).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max())
    return optimized


def above_zero(net, x, op="Greater"):
    return net.node("Cast", net.node(op, x, ZERO), to=1)


def mean_of_magnitudes(net, x, axes):
    return net.node("ReduceMean", net.node("Abs", x), np.array(axes, np.int64), keepdims=1)


@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("pads", [[0] * 4, [1, 1, 1, 1], [2, 0, 1, 1]])
def test_zero_one_activations_are_exact(op, pads):
    """{0, 1} × ±1, zero padding too: no bit of the result may differ, as every number is a half of an integer."""
    net = RealNet((2, 9, 7, 6))
    result = compiled(net, net.conv(above_zero(net, "x", op), 9, 12, pads=pads, strides=[1, 2], bias=True, name="conv"))
    assert count(result)["BinaryConv"] == 1 and "Conv" not in count(result)
    assert ("padded with -1" if op in ("Greater", "GreaterOrEqual") else "padded with") in reason(result, "conv") + (
        "" if any(pads) else "padded with -1"
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_sign_of_a_relu(rank):
    shape = (2, 10, 9) if rank == 1 else (2, 10, 9, 8)
    net = RealNet(shape)
    y = net.node("Sign", net.node("Relu", "x"))
    result = compiled(net, net.conv(y, 10, 7, (3,) * rank, pads=[1] * 2 * rank))
    assert count(result)["BinaryConv"] == 1 and "Sign" not in count(result)


def test_zero_one_behind_an_accumulator_becomes_a_threshold():
    net = RealNet((1, 8, 6, 6))
    y = net.bn(net.conv(net.sign("x"), 8, 16, pads=[1] * 4), 16)
    result = compiled(net, net.conv(above_zero(net, y), 16, 5, pads=[1] * 4))
    assert count(result)["BinaryConv"] == 2 and "integer threshold" in next(
        record.reason for record in result.records if record.op == "Cast"
    )


def test_zero_one_rows_with_pool_and_flatten():
    net = RealNet((2, 5, 6, 6))
    y = net.node("MaxPool", above_zero(net, "x"), kernel_shape=[2, 2], strides=[2, 2])
    y = net.node("Gemm", net.node("Flatten", y), net.signs(7, 45), net.floats(7), transB=1)
    result = compiled(net, y)
    assert count(result)["BinaryGemm"] == 1 and count(result)["BinaryMaxPool"] == 1


def test_straight_through_residue_of_zero_one():
    net = RealNet((2, 6, 5, 5))
    clipped = net.node("Clip", "x", ZERO, np.float32(1))
    y = net.node("Add", net.node("Sub", above_zero(net, "x"), clipped), clipped)
    result = nearly(net, net.conv(y, 6, 4, pads=[1] * 4))
    assert count(result)["BinaryConv"] == 1 and "Sub" not in count(result)


@pytest.mark.parametrize("levels", [(0.75, -0.25), (-1.0, 2.0), (0.5, 0.0), (0.0, -3.0)])
def test_any_two_levels(levels):
    """Zero padding is then neither of the levels: the shift's own border takes it back."""
    net = RealNet((2, 6, 5, 7))
    above, below = (np.float32(level) for level in levels)
    y = net.node("Where", net.node("GreaterOrEqual", "x", ZERO), above, below)
    result = compiled(net, net.conv(y, 6, 4, pads=[1] * 4))
    assert count(result)["BinaryConv"] == 1 and "Where" not in count(result)


def test_scaled_signs_share_their_bits():
    net = RealNet((2, 6, 5, 5))
    scaled = net.node("Where", net.node("Greater", "x", ZERO), np.float32(0.3), np.float32(-0.3))
    first = net.conv(scaled, 6, 4, pads=[1] * 4)
    result = nearly(net, first, net.conv(scaled, 6, 9, (1, 1), strides=[2, 2]))
    assert count(result)["BinaryConv"] == 2 and count(result)["Pack"] == 1


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_scale_of_each_sample(op):
    """XNOR-Net: the mean magnitude of each sample, before the layer and behind a max-pool."""
    net = RealNet((3, 8, 6, 6))
    scale = mean_of_magnitudes(net, "x", [1, 2, 3])
    y = net.node(op, net.sign("x", 1), scale)
    if op == "Mul":
        y = net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    weights = net.signs(5, 8, 3, 3) * np.abs(net.floats(5, 1, 1, 1))
    y = net.conv(y, 8, 5, pads=[1] * 4, weight=net.const(weights), bias=True)
    result = nearly(net, y)
    assert count(result)["BinaryConv"] == 1 and "Conv" not in count(result)


def test_scale_of_each_row_and_of_a_flattened_sample():
    net = RealNet((2, 7, 12))
    rows = net.node("Mul", mean_of_magnitudes(net, "x", [-1]), net.sign("x", 1))
    first = net.node("MatMul", rows, net.signs(12, 9))
    scaled = net.node("Mul", net.sign("x", -1), mean_of_magnitudes(net, "x", [1, 2]))
    flat = net.node("Flatten", scaled)
    result = nearly(net, first, net.node("Gemm", flat, net.signs(4, 84), net.floats(4), transB=1))
    assert count(result)["BinaryGemm"] == 2


def test_scale_of_each_channel_of_a_depthwise_layer():
    net = RealNet((2, 6, 5, 5))
    y = net.node("Mul", net.sign("x", 1), net.floats(6, 1, 1))
    dynamic = net.node("Mul", net.sign("x", 1), mean_of_magnitudes(net, "x", [2, 3]))
    result = nearly(net, net.conv(y, 6, 12, group=6), net.conv(dynamic, 6, 12, group=6, pads=[1] * 4))
    assert count(result)["BinaryConv"] == 2


def test_negative_scale_and_constant_minus_signs():
    net = RealNet((2, 6, 5, 5))
    y = net.node("Sub", np.float32(0.5), net.node("Neg", net.node("Mul", net.sign("x", 1), np.float32(-0.25))))
    result = compiled(net, net.conv(y, 6, 12, pads=[1] * 4))
    assert count(result)["BinaryConv"] == 1


@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_explicit_padding_of_zero_one(padding):
    net = RealNet((2, 6, 5, 5))
    amounts = np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)
    y = net.node("Pad", above_zero(net, "x"), amounts, np.float32(padding))
    result = compiled(net, net.conv(y, 6, 12))
    assert count(result)["BinaryConv"] == 1 and "Pad" not in count(result)


def test_scale_along_the_summed_axis_is_left_with_its_reason():
    net = RealNet((2, 6, 5, 5))
    scale = net.const(np.abs(net.floats(6, 1, 1)), "scale")
    y = net.conv(net.node("Mul", net.sign("x", 1), scale), 6, 4, name="conv")
    result = compiled(net, y)
    assert "BinaryConv" not in count(result)
    assert "the scale 'scale' of its signs varies along axis 1" in reason(result, "conv")


def test_scale_that_may_be_negative_stays_before_its_max_pool():
    net = RealNet((2, 6, 6, 6))
    scale = net.node("ReduceMean", "x", np.array([1, 2, 3], np.int64), keepdims=1, name="mean")
    y = net.node("MaxPool", net.node("Mul", net.sign("x", 1), scale), kernel_shape=[2, 2], name="pool")
    result = compiled(net, net.conv(y, 6, 4, name="conv"))
    assert "may turn the order of its signs round before MaxPool 'pool'" in reason(result, "conv")


def test_zero_one_that_no_layer_reads_stays():
    net = RealNet((2, 6, 5, 5))
    result = compiled(net, net.node("Mul", above_zero(net, "x"), "x"))
    assert "Binarize" not in count(result)
