import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.mini import Net, node_of, ops, rewrite
from xnorc.passes.base import Status
from xnorc.passes.fuse.fuse_threshold import FuseThreshold
from xnorc.passes.pack.pack import PackLayers
from xnorc.passes.signs.split_bias import SplitBias
from xnorc.passes.step_function import NoStep, Order, Steps, find_steps

VALUES = np.arange(-9, 10, 2)
PASSES = (SplitBias(), PackLayers(), FuseThreshold())


def block(middle, *, channels=12, out=9, kernel=(3, 3), zero=1, second=True, shape=(2, 10, 8, 8), pads=(1, 1, 1, 1)):
    """Sign → Conv → ``middle(net, tensor)`` → Sign → Conv, with the names conv1, sign2, conv2."""
    net = Net(shape)
    first = net.conv(net.sign("x", name="sign1"), shape[1], channels, kernel, name="conv1", pads=list(pads))
    y = net.sign(middle(net, first), zero, name="sign2")
    return net.model(net.conv(y, channels, out, (2, 2), name="conv2") if second else y)


def fused(graph):
    """The integer thresholds: one for each Pack of int32."""
    return [n for n in graph.nodes if n.op == "Pack" and np.dtype(n.inputs[0].dtype) == np.int32]


# The search


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("step", range(len(VALUES) + 1))
def test_every_step_is_found(step, flip):
    bits = (np.arange(len(VALUES)) >= step)[:, None] ^ bool(flip)
    steps = find_steps(VALUES, bits)
    assert isinstance(steps, Steps)
    np.testing.assert_array_equal((VALUES[:, None] >= steps.threshold) ^ steps.flip.astype(bool), bits)
    assert VALUES[0] <= steps.threshold[0] <= VALUES[-1] + 1


def test_one_reachable_value():
    steps = find_steps(np.array([4]), np.array([[True, False]]))
    np.testing.assert_array_equal((steps.threshold <= 4) ^ steps.flip.astype(bool), [True, False])
    assert str(steps) == "2 thresholds: 2 constant"


def test_a_bit_that_changes_twice_names_channel_and_values():
    bits = np.zeros((len(VALUES), 3), dtype=bool)
    bits[4:7, 1] = True
    found = find_steps(VALUES, bits)
    assert found == NoStep(1, (-1, 5))
    assert str(found) == "channel 1 is not monotone: its sign changes at accumulator values -1, 5"


@settings(deadline=None, max_examples=200)
@given(
    scale=st.floats(-1e3, 1e3, width=32), shift=st.floats(-1e3, 1e3, width=32), slope=st.floats(0, 2, width=32),
    count=st.integers(1, 300), strict=st.booleans(), relu=st.booleans(),
)  # fmt: skip
def test_any_affine_chain_is_reproduced(scale, shift, slope, count, strict, relu):
    values = np.arange(-count, count + 1, 2, dtype=np.int32)
    v = values.astype(np.float32)[:, None] * np.float32(scale) + np.float32(shift)
    v = np.maximum(v, 0) if relu else np.where(v < 0, v * np.float32(slope), v)
    bits = v > 0 if strict else v >= 0
    steps = find_steps(values, bits)
    assert isinstance(steps, Steps)
    np.testing.assert_array_equal((values[:, None] >= steps.threshold) ^ steps.flip.astype(bool), bits)
    assert steps.rising + steps.falling + steps.constant == 1


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=20), cut=st.integers(-6, 6), falls=st.booleans())
def test_order_of_a_bit_in_the_pooled_value(values, cut, falls):
    v = np.array(values, np.float32)[:, None]
    bits = (v < cut) if falls else (v >= cut)
    order = Order(1)
    for part in (slice(0, len(v) // 2), slice(len(v) // 2, None)):
        if len(v[part]):
            order.feed(v[part], bits[part])
    minimum = order.minimum()
    assert isinstance(minimum, np.ndarray)
    combine = np.all if minimum[0] else np.any
    highest = np.argmax(v[:, 0])
    assert combine(bits) == bits[highest, 0]


@pytest.mark.parametrize(("v", "bits"), [([0.0, -0.0], [1, 0]), ([1, 2, 3], [0, 1, 0]), ([np.nan, 1], [1, 1])])
def test_order_refuses_what_a_maximum_cannot_follow(v, bits):
    order = Order(2)
    order.feed(np.stack([np.arange(len(v)), np.array(v)], 1).astype(np.float32), np.array([[1] * len(v), bits]).T == 1)
    assert order.minimum() == 1


# The pass


@pytest.mark.parametrize("zero", [-1, 1])
def test_batch_norm_becomes_a_threshold(zero):
    graph, ctx = rewrite(block(lambda net, x: net.bn(x, 12, scale=20), zero=zero), *PASSES)
    assert ops(graph) == {"Pack": 2, "BinaryConv": 2, "Transpose": 1, "Cast": 1}
    (pack,) = fused(graph)
    assert pack.inputs[1].values.dtype == np.int32
    assert ctx.records["sign2"].reason.startswith("packed into bits for 1 layer; integer threshold on 'conv1' (12 thr")
    assert ctx.records["bn_add3"].status is Status.FUSED
    assert ctx.records["conv1"].status is Status.PACKED
    # The bits still stand for the original sign.
    assert ctx.origins[pack.outputs[0].name].tensor == "sign2_y"


CHAINS = {
    "nothing": lambda net, x: x,
    "relu": lambda net, x: net.bn(net.node("Relu", net.bn(x, 12)), 12),
    "prelu": lambda net, x: net.node("PRelu", net.bn(x, 12), np.abs(net.floats(12, 1, 1))),
    "leaky": lambda net, x: net.bn(net.node("LeakyRelu", net.bn(x, 12), alpha=0.1), 12),
    "clip": lambda net, x: net.bn(net.node("Clip", x, np.array(-7, np.float32), np.array(9.5, np.float32)), 12),
    "clip one side": lambda net, x: net.node("Sub", net.node("Clip", x, "", np.array(9.5, np.float32)), np.float32(3)),
    "hard tanh, neg": lambda net, x: net.node("Neg", net.node("HardSigmoid", net.bn(x, 12), alpha=0.3, beta=-0.2)),
    "constant first": lambda net, x: net.node("Sub", net.floats(12, 1, 1), net.node("Div", x, net.floats(12, 1, 1))),
    "min, max": lambda net, x: net.node("Max", net.node("Min", x, net.floats(12, 1, 1)), np.float32([-0.5])),
    "there and back": lambda net, x: net.node(
        "Transpose", net.affine(net.node("Transpose", x, perm=[0, 2, 3, 1]), np.ones(1), net.floats(12), 0),
        perm=[0, 3, 1, 2],
    ),
    "reshapes": lambda net, x: net.node(
        "Reshape", net.affine(net.node("Reshape", x, np.array([2, 12, 64])), net.floats(12), net.floats(12), 1),
        np.array([2, 12, 8, 8]),
    ),
    "expanded constant": lambda net, x: net.node("Add", x, np.tile(net.floats(12, 1, 1), (1, 8, 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("zero", [-1, 0, 1])
def test_chains(name, zero):
    graph, _ = rewrite(block(CHAINS[name], zero=zero), *PASSES)
    assert len(fused(graph)) in ((1, 2) if zero == 0 else (1,))
    assert not {"Mul", "Sub", "Div", "Relu", "PRelu"} & set(ops(graph)) or zero == 0


def test_zero_reaching_the_sign_gives_two_thresholds_and_their_sum_one_again():
    """conv1 → sign (zero stays zero) → conv2 in two passes → BN → sign → conv3: the sum of two accumulators is stepped."""
    net = Net((2, 10, 8, 8))
    first = net.conv(net.sign("x"), 10, 12, name="conv1")
    second = net.conv(net.sign(first, 0, name="sign2"), 12, 7, name="conv2", pads=[1, 1, 1, 1])
    third = net.conv(net.sign(net.bn(second, 7), 1, name="sign3"), 7, 4, name="conv3")
    graph, ctx = rewrite(net.model(third), *PASSES)
    assert ops(graph) == {"Pack": 4, "BinaryConv": 4, "Add": 1, "Transpose": 1, "Cast": 1}
    assert len(fused(graph)) == 3
    assert "integer threshold on 'conv2'" in ctx.records["sign3"].reason


def test_the_float_value_is_kept_where_a_residual_reads_it():
    def residual(net, x):
        y = net.bn(x, 12)
        net.extra = net.node("Relu", y, name="relu")
        return y

    net = Net((2, 10, 8, 8))
    y = residual(net, net.conv(net.sign("x"), 10, 12, name="conv1"))
    model = net.model(net.conv(net.sign(y, name="sign2"), 12, 4), net.extra)
    graph, ctx = rewrite(model, *PASSES)
    assert not fused(graph)
    assert "is needed in float by Relu 'relu' anyway" in ctx.records["sign2"].reason


def test_two_signs_of_one_layer_get_a_threshold_each():
    net = Net((2, 10, 8, 8))
    y = net.conv(net.sign("x"), 10, 12, name="conv1")
    left = net.conv(net.sign(net.bn(y, 12)), 12, 4)
    right = net.conv(net.sign(net.bn(y, 12)), 12, 4)
    graph, _ = rewrite(net.model(left, right), *PASSES)
    assert len(fused(graph)) == 2


def test_a_residual_stops_the_chain_and_says_so():
    net = Net((2, 12, 8, 8))
    y = net.node("Add", net.conv(net.sign("x"), 12, 12, pads=[1] * 4), "x", name="add")
    graph, ctx = rewrite(net.model(net.conv(net.sign(y, name="sign2"), 12, 4)), *PASSES)
    assert not fused(graph)
    assert ctx.records["sign2"].reason.endswith("compared in float: Add 'add' joins 2 computed tensors before it")


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda net, x: net.node("Abs", net.bn(x, 12), name="abs") and net.affine(
            "abs_y", np.full(12, 1.0), np.full(12, -5.5)), "is not monotone: its sign changes at accumulator values"),
        (lambda net, x: net.node("Add", x, net.floats(8, 8), name="add"),
         "Add 'add' has a constant that varies within a channel"),
        (lambda net, x: net.node("Softmax", x, name="soft"), "it comes from Softmax 'soft' on floats"),
        (lambda net, x: net.node("Transpose", x, perm=[0, 1, 3, 2], name="turn"),
         "the chain reorders pixels between the accumulator and the sign"),
    ],
)  # fmt: skip
def test_reasons(middle, reason):
    graph, ctx = rewrite(block(middle), *PASSES)
    assert not fused(graph)
    assert reason in ctx.records["sign2"].reason


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_max_pool_on_either_side_of_the_batch_norm(before, zero, padding):
    def middle(net, x):
        pool = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": list(padding), "name": "pool"}
        return net.bn(net.node("MaxPool", x, **pool), 12) if before else net.node("MaxPool", net.bn(x, 12), **pool)

    net_model = block(middle, zero=zero)
    graph, ctx = rewrite(net_model, *PASSES)
    assert ops(graph)["BinaryMaxPool"] >= 1 and "MaxPool" not in ops(graph)
    flips = np.unpackbits(node_of(graph, "BinaryMaxPool").inputs[1].values) if zero else np.zeros(1)
    assert zero == 0 or bool(flips.any()) == before
    assert ctx.records["pool"].status is Status.PACKED


def test_two_pools_in_one_chain():
    def middle(net, x):
        first = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1])
        return net.node("MaxPool", net.bn(first, 12), kernel_shape=[2, 2], strides=[2, 2])

    graph, _ = rewrite(block(middle), *PASSES)
    assert ops(graph)["BinaryMaxPool"] == 2 and len(fused(graph)) == 1


def test_one_dimension_with_pool():
    net = Net((2, 9, 20))
    y = net.conv(net.sign("x"), 9, 12, (3,), pads=[1, 1])
    y = net.bn(net.node("MaxPool", y, kernel_shape=[2], strides=[2]), 12, trailing=1)
    graph, _ = rewrite(net.model(net.conv(net.sign(y), 12, 4, (3,))), *PASSES)
    assert len(fused(graph)) == 1 and ops(graph)["BinaryMaxPool"] == 1


@pytest.mark.parametrize("batch", [1, 5])
def test_fully_connected_layers(batch):
    net = Net((batch, 30))
    y = net.node("Gemm", net.sign("x"), net.signs(30, 12), net.floats(12))
    y = net.node("Gemm", net.sign(net.bn(y, 12, trailing=0)), net.signs(12, 4), net.floats(4))
    graph, _ = rewrite(net.model(y), *PASSES)
    assert len(fused(graph)) == 1


def test_flattened_feature_map_behind_a_threshold():
    net = Net((3, 5, 6, 6))
    y = net.sign(net.bn(net.conv(net.sign("x"), 5, 11), 11))
    graph, _ = rewrite(net.model(net.node("MatMul", net.node("Flatten", y), net.signs(176, 4))), *PASSES)
    assert ops(graph) == {"Pack": 2, "BinaryConv": 1, "Reshape": 1, "BinaryGemm": 1, "Cast": 1}


def test_one_channel_that_is_flattened_is_packed_along_its_rows():
    net = Net((1, 5, 4, 6))
    y = net.sign(net.bn(net.conv(net.sign("x"), 5, 1, (1, 1)), 1), name="sign2")
    graph, ctx = rewrite(net.model(net.node("MatMul", net.node("Flatten", y), net.signs(24, 4))), *PASSES)
    assert not fused(graph)
    assert "packed along another axis than the accumulator's channels" in ctx.records["sign2"].reason


def test_bits_are_needed_only_where_something_reads_them():
    graph, _ = rewrite(block(lambda net, x: net.bn(x, 12), second=False), *PASSES)
    assert ops(graph)["Pack"] == 1 and ops(graph)["Binarize"] == 1
