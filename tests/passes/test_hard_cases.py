"""The hard cases of exact packing, each as a whole small model from plain ONNX through every pass.

``compiled`` asserts that the packed model gives exactly what ONNX Runtime gives for the original, on inputs with many
zeros of both signs. The tests say what must have been packed, so that nothing passes by staying in float.
"""

import numpy as np
import pytest

from tests.passes.mini import RealNet, compiled, count, reason
from xnorc.passes.pack.pack import TWO_PASSES

ZEROS = pytest.mark.parametrize("zero", [-1, 0, 1])


def thresholds(optimized):
    """Integer thresholds and flips of the packed model, by the Pack's name."""
    values = {tensor.name: tensor for tensor in optimized.model.graph.initializer}
    return [
        node.name for node in optimized.model.graph.node
        if node.op_type == "Pack" and values[node.input[1]].data_type == 6
    ]  # fmt: skip


def two_layers(middle, *, zero=1, channels=16, shape=(2, 8, 9, 7), **attrs):
    """Sign → conv1 → ``middle`` → sign2 → conv2."""
    net = RealNet(shape)
    first = net.conv(net.sign("x", 1), shape[1], channels, name="conv1", **attrs)
    second = net.conv(net.sign(middle(net, first), zero, name="sign2"), channels, 6, (2, 2), name="conv2")
    return compiled(net, second)


@ZEROS
def test_negative_gamma(zero):
    result = two_layers(lambda net, y: net.bn(y, 16, gamma=-np.abs(net.floats(16))), zero=zero)
    assert "16 falling" in reason(result, "sign2") or "falling" in reason(result, "sign2")


@ZEROS
def test_gamma_of_zero_gives_constant_bits(zero):
    beta = np.array([0.0, -0.0, 1.0, -1.0] * 4)
    result = two_layers(lambda net, y: net.bn(y, 16, gamma=np.zeros(16), beta=beta, mean=np.zeros(16)), zero=zero)
    assert len(thresholds(result)) == (2 if zero == 0 else 1)
    assert "16 constant" in reason(result, "sign2")


@ZEROS
def test_gamma_of_minus_zero(zero):
    two_layers(lambda net, y: net.node("Mul", y, np.full((16, 1, 1), -0.0, np.float32)), zero=zero)


@pytest.mark.parametrize("source", ["input", "accumulator", "abs"])
def test_zero_reaching_a_sign_that_keeps_it(source):
    """torch.sign(0) is 0: neither −1 nor +1, and it must add nothing to the next layer."""
    net = RealNet((2, 8, 6, 6))
    y = "x"
    if source != "input":
        y = net.conv(net.sign("x"), 8, 10, name="conv1")
        y = net.node("Abs", y) if source == "abs" else y
    result = compiled(net, net.conv(net.sign(y, 0), 8 if source == "input" else 10, 5, pads=[1] * 4, name="conv2"))
    assert reason(result, "conv2").endswith(TWO_PASSES)
    assert "Sign" not in count(result) and "Conv" not in count(result)


def test_an_odd_number_of_terms_is_never_zero():
    """81 products of ±1 have an odd sum: one pass is exact though the model's sign keeps zero."""
    net = RealNet((2, 9, 6, 6))
    y = net.conv(net.sign("x"), 9, 10, name="conv1")
    result = compiled(net, net.conv(net.sign(y, 0), 10, 5, name="conv2"))
    assert count(result)["BinaryConv"] == 2


def test_choosing_the_sign_of_zero_halves_the_work():
    net = RealNet((2, 9, 6, 6))
    model = net.conv(net.node("Add", net.node("Abs", "x"), np.float32(1)), 9, 9)
    result = compiled(net, net.conv(net.sign(model, 0), 9, 5, name="conv2"), sign_zero=1)
    assert count(result)["BinaryConv"] == 1


@ZEROS
@pytest.mark.parametrize("size", [(7, 9), (11, 5), (8, 13)])
def test_zero_padding_with_stride_and_dilation_at_odd_sizes(size, zero):
    net = RealNet((1, 5, *size))
    y = net.conv(net.sign("x", zero), 5, 12, pads=[2, 1, 1, 2], strides=[2, 3], dilations=[2, 1], name="conv1")
    y = net.conv(net.sign(net.bn(y, 12)), 12, 3, (3, 2), pads=[2, 2, 2, 2], strides=[2, 1], dilations=[1, 2])
    result = compiled(net, y)
    assert len(thresholds(result)) == 1
    assert "zero padding kept exact by border corrections" in reason(result, "conv1")


@pytest.mark.parametrize("channels", [1, 3, 9, 31, 33, 100, 127, 130])
def test_channels_that_fill_no_byte_or_word(channels):
    result = two_layers(lambda net, y: net.bn(y, channels), channels=channels, shape=(1, channels, 6, 5), pads=[1] * 4)
    assert len(thresholds(result)) == 1


@ZEROS
@pytest.mark.parametrize("group", [2, 3, 6])
def test_groups(group, zero):
    result = two_layers(lambda net, y: net.bn(y, 12), channels=12, shape=(1, 18, 7, 7), group=group, zero=zero)
    assert count(result)["BinaryConv"] >= 2


@ZEROS
def test_depthwise_with_zero_padding_where_parity_is_free(zero):
    """One channel a group: at the border 4 or 6 taps count, so accumulators of both parities occur."""
    result = two_layers(
        lambda net, y: net.bn(y, 12), channels=12, shape=(1, 12, 7, 7), group=12, zero=zero, pads=[1] * 4
    )
    assert "in 12 groups" in reason(result, "conv1")


@ZEROS
def test_ties_at_the_threshold(zero):
    """Means that are reachable accumulators: the chain is exactly zero there."""

    def middle(net, y):
        mean = 2.0 * net.rng.integers(-6, 7, 16)
        return net.bn(y, 16, beta=np.zeros(16), mean=mean)

    result = two_layers(middle, zero=zero)
    assert (TWO_PASSES in reason(result, "conv2")) == (zero == 0)


@ZEROS
def test_max_pool_before_a_decreasing_chain(zero):
    def middle(net, y):
        pooled = net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], name="pool")
        return net.bn(pooled, 16, gamma=-np.abs(net.floats(16)) - 0.1)

    result = two_layers(middle, zero=zero)
    assert "AND in" in reason(result, "pool")
    assert "MaxPool" not in count(result)


@ZEROS
def test_max_pool_after_a_chain_of_mixed_signs(zero):
    result = two_layers(
        lambda net, y: net.node(
            "MaxPool", net.bn(y, 16), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, name="pool"
        ),
        zero=zero,
    )
    assert reason(result, "pool").startswith("OR of bits") and "AND" not in reason(result, "pool")


@ZEROS
def test_relu_before_the_threshold(zero):
    """sign(BN(ReLU(acc))): constant below zero, so that many channels are one-sided."""
    result = two_layers(lambda net, y: net.bn(net.node("Relu", y), 16), zero=zero)
    assert len(thresholds(result)) >= 1


@ZEROS
def test_relu_right_before_the_sign(zero):
    """sign(ReLU(x)) is 0 or 1 where sign(0) = 0: half a sign and a half, which takes one pass."""
    result = two_layers(lambda net, y: net.node("Relu", net.bn(y, 16)), zero=zero)
    assert len(thresholds(result)) == 1 and TWO_PASSES not in reason(result, "conv2")


@ZEROS
@pytest.mark.parametrize("place", ["after the sum", "in the weights"])
def test_scale_of_either_sign(place, zero):
    """A learned scale may be negative; powers of two in the weights, so that ONNX Runtime's own sum is exact."""
    net = RealNet((2, 8, 9, 7))
    alpha = 2.0 ** net.rng.integers(-3, 3, (16, 1, 1)) * np.where(np.arange(16) % 3, 1, -1).reshape(16, 1, 1)
    if place == "in the weights":
        weight = net.const((net.signs(16, 8, 3, 3) * alpha[..., None]).astype(np.float32))
        y = net.conv(net.sign("x"), 8, 16, weight=weight, pads=[1] * 4, name="conv1")
    else:
        y = net.conv(net.sign("x"), 8, 16, pads=[1] * 4, name="conv1")
        y = net.node("Mul", y, (alpha * 0.7).astype(np.float32))
    result = compiled(net, net.conv(net.sign(net.bn(y, 16), zero, name="sign2"), 16, 6, name="conv2"))
    assert len(thresholds(result)) == 1 and count(result)["BinaryConv"] == 2
    assert "rising" in reason(result, "sign2") and "falling" in reason(result, "sign2")


def test_prelu_with_negative_slope_is_not_monotone():
    slope = np.full((16, 1, 1), 0.25, np.float32)
    slope[3] = -0.5

    def middle(net, y):
        return net.bn(net.node("PRelu", y, slope), 16, gamma=np.ones(16), mean=np.full(16, 5.3), beta=np.zeros(16))

    result = two_layers(middle)
    assert not thresholds(result)
    assert "channel 3 is not monotone: its sign changes at accumulator values" in reason(result, "sign2")
    assert count(result)["BinaryConv"] == 2


def test_residual_whose_shortcut_is_used_twice():
    """x feeds a sign and an Add; the sum feeds the next sign and the next Add."""
    net = RealNet((2, 10, 7, 7))
    y = "x"
    for i in range(3):
        branch = net.bn(net.conv(net.sign(y), 10, 10, pads=[1] * 4, name=f"conv{i}"), 10)
        y = net.node("Add", branch, y, name=f"add{i}")
    result = compiled(net, y)
    assert count(result)["BinaryConv"] == 3
    assert reason(result, "add1") == "in the epilogue of 'conv1'"


def test_weights_shared_by_two_nodes():
    net = RealNet((1, 12, 8, 8))
    weight = net.const(net.signs(12, 12, 3, 3), "shared")
    y = net.bn(net.conv(net.sign("x"), 12, 12, weight=weight, pads=[1] * 4), 12)
    result = compiled(net, net.conv(net.sign(y), 12, 12, weight=weight, group=1, strides=[2, 2]))
    assert len({node.input[1] for node in result.model.graph.node if node.op_type == "BinaryConv"}) == 1


@ZEROS
def test_conv1d_with_pool(zero):
    net = RealNet((2, 11, 31))
    y = net.conv(net.sign("x", zero), 11, 13, (5,), pads=[2, 2], bias=True, name="conv1")
    y = net.bn(net.node("MaxPool", y, kernel_shape=[2], strides=[2]), 13)
    y = net.conv(net.sign(y), 13, 4, (3,), dilations=[2])
    result = compiled(net, y)
    assert len(thresholds(result)) == 1 and "Conv" not in count(result)


@ZEROS
@pytest.mark.parametrize("channels", [3, 10, 20])
def test_gemm_after_flatten_with_holes_in_the_last_byte(channels, zero):
    net = RealNet((3, 4, 7, 7))
    y = net.bn(net.conv(net.sign("x"), 4, channels, name="conv1"), channels)
    y = net.node("Flatten", net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    size = 4 * channels
    y = net.node("Gemm", net.sign(y, zero), net.signs(9, size), net.floats(9), transB=1, name="fc1")
    y = net.node("Gemm", net.sign(net.bn(y, 9), zero), net.signs(5, 9), net.floats(5), transB=1, name="fc2")
    result = compiled(net, y)
    assert "Gemm" not in count(result) and len(thresholds(result)) >= 2
    assert "weights permuted to channels last" in reason(result, "fc1")


@ZEROS
@pytest.mark.parametrize("padding", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("first", ["pad", "sign"])
def test_explicit_padding(padding, first, zero):
    net = RealNet((1, 6, 7, 7))
    amounts = np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)
    y = net.node("Pad", "x" if first == "pad" else net.sign("x", zero), amounts, np.float32(padding))
    y = net.sign(y, zero) if first == "pad" else y
    result = compiled(net, net.conv(y, 6, 8, strides=[2, 2]))
    assert "Pad" not in count(result) and "BinaryConv" in count(result)


def test_negative_zero_is_a_zero():
    """The inputs hold zeros of both signs; a chain that ends in −0.0 must take the side that sign(0) takes."""
    for zero in (-1, 0, 1):
        net = RealNet((2, 8, 6, 6))
        y = net.node("Neg", net.node("Relu", net.conv(net.sign("x", zero), 8, 8)))
        result = compiled(net, net.conv(net.sign(y, zero), 8, 4))
        assert len(thresholds(result)) == (2 if zero == 0 else 1)
