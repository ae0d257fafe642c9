import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from tests.passes.mini import Net, node_of, ops, rewrite
from xnorc.golden import evaluate
from xnorc.passes.base import Status
from xnorc.passes.pack.pack import TWO_PASSES, PackLayers
from xnorc.passes.signs.binary_layer import ADVICE
from xnorc.passes.signs.split_bias import SplitBias
from xnorc.passes.windows import window


def packed(model):
    graph, ctx = rewrite(model, SplitBias(), PackLayers())
    return graph, ctx, ops(graph)


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize("channels", [1, 7, 8, 13, 33, 130])
def test_conv_at_any_channel_count(zero, channels):
    net = Net((2, channels, 5, 6))
    _, ctx, found = packed(
        net.model(net.conv(net.sign("x", zero), channels, 9, bias=True, name="conv", pads=[1, 0, 2, 1]))
    )
    passes = 1 if zero else 2
    assert found["BinaryConv"] == found["Pack"] == passes
    assert "Conv" not in found and "Binarize" not in found
    reason = f"BinaryConv 3x3 {channels}→9, zero padding kept exact by border corrections"
    assert ctx.records["conv"].reason == (reason if zero else f"{reason}; {TWO_PASSES}")


@pytest.mark.parametrize("group", [1, 2, 4, 12])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 5)])
def test_conv_groups_strides_dilations(group, kernel):
    net = Net((1, 12, 11, 13))
    y = net.conv(net.sign("x"), 12, 24, kernel, group=group, strides=[2, 3], dilations=[2, 1], pads=[2, 1, 0, 3])
    _, _, found = packed(net.model(y))
    assert found["BinaryConv"] == 1


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad):
    net = Net((1, 6, 8, 9))
    graph, _, _ = packed(net.model(net.conv(net.sign("x"), 6, 5, (2, 4), auto_pad=auto_pad, strides=[2, 3])))
    assert node_of(graph, "BinaryConv").attrs["pad_value"] == 0


@pytest.mark.parametrize("zero", [-1, 0, 1])
def test_conv1d_is_lifted_to_height_one(zero):
    net = Net((3, 10, 17))
    y = net.conv(net.sign("x", zero), 10, 6, (5,), bias=True, pads=[2, 1], strides=[2], dilations=[2])
    _, ctx, found = packed(net.model(y))
    assert found["BinaryConv"] == (1 if zero else 2)
    assert all(origin.perm == [0, 2, 1] for origin in ctx.origins.values())


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize(("op", "attrs"), [("Gemm", {"transB": 1}), ("Gemm", {"transB": 0}), ("MatMul", {})])
def test_rows(op, attrs, zero):
    net = Net((4, 37))
    weight = net.signs(11, 37) if attrs.get("transB") else net.signs(37, 11)
    bias = [net.floats(11)] if op == "Gemm" else []
    _, ctx, found = packed(net.model(net.node(op, net.sign("x", zero), weight, *bias, name="fc", **attrs)))
    assert found["BinaryGemm"] == (1 if zero else 2)
    assert ctx.records["fc"].reason.startswith("BinaryGemm 37→11")


def test_gemm_with_alpha_and_beta():
    net = Net((4, 20))
    model = net.model(net.node("Gemm", net.sign("x"), net.signs(20, 3), net.floats(3), alpha=0.5, beta=2.0))
    _, _, found = packed(model)
    assert found["BinaryGemm"] == 1


def test_matmul_over_sequences():
    net = Net((2, 5, 3, 24))
    _, _, found = packed(net.model(net.node("MatMul", net.sign("x"), net.signs(24, 10))))
    assert found["BinaryGemm"] == 1


@pytest.mark.parametrize("channels", [3, 8, 20])
@pytest.mark.parametrize("how", ["Flatten", "Reshape", "Transpose", "Pool"])
def test_rows_flattened_from_a_feature_map(channels, how):
    net = Net((2, channels, 4, 6))
    x = net.sign("x")
    size = 24 * channels
    if how == "Pool":
        x, size = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 6 * channels
    if how == "Transpose":
        x = net.node("Transpose", x, perm=[0, 2, 3, 1])
    flat = net.node("Reshape", x, np.array([2, -1], np.int64)) if how == "Reshape" else net.node("Flatten", x)
    graph, ctx, found = packed(net.model(net.node("Gemm", flat, net.signs(size, 5), name="fc")))
    assert node_of(graph, "BinaryGemm").attrs["k"] == size
    assert "Transpose" not in found and "Flatten" not in found
    assert ("permuted" in ctx.records["fc"].reason) == (how != "Transpose")


def test_flatten_of_one_pixel_and_of_one_channel():
    for shape in [(2, 9, 1, 1), (2, 1, 5, 3), (1, 6, 1, 4)]:
        net = Net(shape)
        flat = net.node("Flatten", net.sign("x"))
        _, _, found = packed(net.model(net.node("Gemm", flat, net.signs(int(np.prod(shape[1:])), 4))))
        assert found["BinaryGemm"] == 1


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize(
    "pool",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [3, 2], "ceil_mode": 1, "pads": [1, 0, 0, 0]},
        {"kernel_shape": [3, 3], "strides": [2, 1], "auto_pad": "SAME_UPPER"},
    ],
)
def test_max_pool_of_signs(pool, zero):
    net = Net((2, 11, 10, 9))
    y = net.conv(net.node("MaxPool", net.sign("x", zero), name="pool", **pool), 11, 4, (2, 2))
    _, ctx, found = packed(net.model(y))
    assert found["BinaryMaxPool"] == (1 if zero else 2)
    assert "MaxPool" not in found
    assert ctx.records["pool"].status is Status.PACKED


@pytest.mark.parametrize("size", [5, 6, 7, 10])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_ceil_mode_is_that_of_onnx_runtime(size, kernel, stride):
    """ONNX's shape inference counts a last window that would start in the padding; ONNX Runtime and we do not."""
    for begin, end in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        pads = [begin, 0, end, 0]
        attrs = {"kernel_shape": [kernel, 1], "strides": [stride, 1], "pads": pads, "ceil_mode": 1}
        found = evaluate(
            [helper.make_node("MaxPool", ["x"], ["y"], **attrs)], {"x": np.zeros((1, 1, size, 4), np.float32)}, ["y"]
        )
        resolved = window(gs.Node("MaxPool", "pool", attrs), (size, 4), (kernel, 1))
        assert resolved.output(size, 4) == found["y"].shape[2:]


def test_max_pool_in_one_dimension():
    net = Net((2, 11, 16))
    y = net.conv(net.node("MaxPool", net.sign("x"), kernel_shape=[3], strides=[2], pads=[1, 0]), 11, 4, (3,))
    assert packed(net.model(y))[2]["BinaryMaxPool"] == 1


def test_layout_operations_between_sign_and_layer():
    net = Net((2, 6, 5, 16))
    moved = net.node("Transpose", net.sign("x"), perm=[0, 3, 2, 1])
    squeezed = net.node("Reshape", net.node("Unsqueeze", moved, np.array([2], np.int64)), np.array([2, 16, 5, 6]))
    _, _, found = packed(net.model(net.conv(squeezed, 16, 4, (2, 2))))
    assert found["BinaryConv"] == 1


def test_one_pack_serves_all_readers():
    net = Net((1, 8, 6, 6))
    sign = net.sign("x", name="sign")
    pooled = net.node("MaxPool", sign, kernel_shape=[2, 2])
    model = net.model(net.conv(sign, 8, 4), net.conv(sign, 8, 6, (1, 1)), net.conv(pooled, 8, 4))
    _, ctx, found = packed(model)
    assert (found["Pack"], found["BinaryConv"]) == (1, 3)
    assert ctx.records["sign"].reason == "packed into bits for 3 layers"


def test_shared_weights_are_packed_once():
    net = Net((1, 8, 6, 6))
    weight = net.const(net.signs(8, 8, 3, 3))
    first = net.conv(net.sign("x"), 8, 8, weight=weight, pads=[1, 1, 1, 1])
    graph, _, _ = packed(net.model(net.conv(net.sign(first), 8, 8, weight=weight)))
    first_conv, second = (node for node in graph.nodes if node.op == "BinaryConv")
    assert first_conv.inputs[1] is second.inputs[1]


def test_a_sign_that_something_else_reads_stays_too():
    net = Net((1, 8, 6, 6))
    sign = net.sign("x", name="sign")
    _, ctx, found = packed(net.model(net.conv(sign, 8, 4), net.node("Relu", sign, name="relu")))
    assert (found["Pack"], found["Binarize"]) == (1, 1)
    assert ctx.records["sign"].reason == "packed into bits for 1 layer; also kept in float for 'relu'"


def test_a_sign_that_is_an_output_stays_too():
    net = Net((1, 8, 6, 6))
    sign = net.sign("x", name="sign")
    _, ctx, _ = packed(net.model(net.conv(sign, 8, 4), sign))
    assert ctx.records["sign"].reason == "packed into bits for 1 layer; also kept in float for the model output"


def test_one_pass_where_zero_cannot_reach_the_sign():
    net = Net((1, 8, 6, 6))
    first = net.conv(net.sign("x"), 8, 4)
    shifted = net.affine(first, np.full(4, 0.37), np.full(4, 0.011))
    model = net.model(net.conv(net.sign(shifted, 0), 4, 5, name="conv"))
    _, ctx, found = packed(model)
    assert (found["Pack"], found["BinaryConv"]) == (2, 2)
    assert TWO_PASSES not in ctx.records["conv"].reason


def test_two_passes_where_zero_reaches_the_sign_in_one_channel():
    net = Net((1, 8, 6, 6))
    first = net.conv(net.sign("x"), 8, 4)
    shifted = net.affine(first, np.full(4, 0.5), np.array([0.25, 0.25, 3.0, 0.25]))
    model = net.model(net.conv(net.sign(shifted, 0), 4, 5, name="conv"))
    _, ctx, found = packed(model)
    assert found["BinaryConv"] == 3
    assert ctx.records["conv"].reason.endswith(TWO_PASSES)


def test_reasons_name_what_is_missing():
    net = Net((2, 4, 6, 6))
    sign = net.sign("x")
    outputs = [
        net.conv("x", 4, 4, name="first"),
        net.conv(net.node("Relu", "x", name="relu"), 4, 4, name="relued"),
        net.conv(sign, 4, 4, weight=net.const(net.floats(4, 4, 3, 3)), name="floats"),
        net.conv(sign, 4, 4, weight=net.const(0.5 * net.signs(4, 4, 3, 3)), name="scaled"),
        net.conv("x", 4, 4, weight=net.const(net.floats(4, 4, 3, 3)), name="nothing"),
        net.node("Conv", sign, net.node("Neg", net.const(net.signs(4, 4, 3, 3))), name="dynamic", kernel_shape=[3, 3]),
        net.node("MatMul", net.signs(5, 6), sign, name="left"),
        net.node("MatMul", sign, sign, name="both"),
        net.node("Gemm", net.node("Reshape", sign, np.array([72, 4])), net.signs(72, 3), transA=1, name="turned"),
    ]
    _, ctx, found = packed(net.model(*outputs))
    assert "Pack" not in found
    assert {name: record.reason for name, record in ctx.records.items()} == {
        "first": "its input 'x' is not binarized (it is an input of the model)",
        "relued": "its input comes from Relu 'relu', not from a sign",
        "floats": f"its weights are not two-level: output channel 0 has 36 levels; {ADVICE}",
        "scaled": "its weights are not −1 and +1: a channel has the levels -0.5, 0.5",
        "nothing": "its input 'x' is not binarized (it is an input of the model); "
                   "its weights are not two-level: output channel 0 has 36 levels",
        "dynamic": "its weights 'neg8_y' are computed at run time",
        "left": "its constant operand is the left one: packed layers have it on the right",
        "both": "its weights 'binarize1_y' are computed at run time",
        "turned": "it transposes its activations (transA = 1)",
    }  # fmt: skip


def test_three_dimensional_convolution_stays():
    net = Net((1, 2, 4, 4, 4))
    _, ctx, _ = packed(net.model(net.conv(net.sign("x"), 2, 3, (3, 3, 3), name="conv")))
    assert ctx.records["conv"].reason == "a 3-D convolution: bits are packed for 1-D and 2-D ones"


def test_origin_is_the_original_sign():
    net = Net((2, 9, 4, 5))
    graph, ctx, _ = packed(net.model(net.conv(net.sign("x", name="sign"), 9, 4)))
    origin = ctx.origins[node_of(graph, "Pack").outputs[0].name]
    assert (origin.tensor, origin.perm, origin.channels) == ("sign_y", [0, 2, 3, 1], 9)
