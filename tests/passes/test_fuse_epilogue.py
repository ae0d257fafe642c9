import numpy as np
import pytest

from tests.passes.mini import Net, node_of, ops, rewrite
from xnorc.passes.base import Status
from xnorc.passes.fuse.fuse_epilogue import FuseEpilogue
from xnorc.passes.fuse.fuse_threshold import FuseThreshold
from xnorc.passes.pack.pack import PackLayers
from xnorc.passes.signs.split_bias import SplitBias

PASSES = (SplitBias(), PackLayers(), FuseThreshold(), FuseEpilogue())


def groups(model):
    """Anchor → operators in its group, in graph order; and the graph and the context."""
    graph, ctx = rewrite(model, *PASSES)
    found = {}
    for node in graph.nodes:
        if node.name in ctx.groups:
            found.setdefault(ctx.groups[node.name], []).append(node.op)
    return found, graph, ctx


def test_threshold_is_the_epilogue():
    net = Net((1, 8, 6, 6))
    y = net.bn(net.conv(net.sign("x"), 8, 8, name="one"), 8)
    found, graph, _ = groups(net.model(net.conv(net.sign(y), 8, 4, name="two")))
    assert found == {"one/BinaryConv": ["Pack"], "two/BinaryConv": ["Transpose", "Cast"]}
    assert ops(graph)["Pack"] == 2


def test_scale_bias_activations_and_residual():
    net = Net((2, 8, 6, 6))
    y = net.conv(net.sign("x"), 8, 8, name="conv", pads=[1] * 4, bias=True)
    y = net.node("Add", net.bn(y, 8), "x", name="residual")
    y = net.node("PRelu", y, net.floats(8, 1, 1), name="prelu")
    y = net.node("Sub", net.floats(8, 1, 1), net.node("Relu", y))
    y = net.node("Clip", net.node("Div", y, np.float32(3)), np.float32(-1), np.float32(1))
    y = net.node("LeakyRelu", y, name="last", alpha=0.1)
    found, _, ctx = groups(net.model(y))
    (steps,) = found.values()
    assert steps == [
        "Transpose",
        "Cast",
        "Add",
        "Mul",
        "Add",
        "Add",
        "PRelu",
        "Relu",
        "Sub",
        "Div",
        "Clip",
        "LeakyRelu",
    ]
    for name in ("residual", "prelu", "last"):
        assert (ctx.records[name].status, ctx.records[name].reason) == (Status.FUSED, "in the epilogue of 'conv'")
    assert ctx.records["conv"].status is Status.PACKED


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (lambda net, y: net.node("Div", np.float32(3), y), "a constant divided by the value"),
        (lambda net, y: net.node("Mul", y, net.floats(4, 1)), "a constant that varies along rows of pixels"),
        (lambda net, y: net.node("Add", y, y), "both operands are the value"),
        (lambda net, y: net.node("Sigmoid", y), "no epilogue operation"),
        (
            lambda net, y: net.node(
                "Mul", y, net.node("Slice", net.floats(1, 1, 6, 1), *(np.array([v]) for v in (0, 4, 2)))
            ),
            "one value for rows of pixels",
        ),
        (lambda net, y: net.node("PRelu", y, net.node("Abs", net.const(net.floats(8, 1, 1)))), "slope of run time"),
    ],
)
def test_stops_before(node, why):
    net = Net((2, 8, 6, 6))
    y = node(net, net.conv(net.sign("x"), 8, 8))
    found, _, _ = groups(net.model(net.node("Relu", y)))
    assert list(found.values()) == [["Transpose", "Cast"]], why


def test_stops_at_a_tensor_with_two_readers_and_at_an_output():
    net = Net((2, 8, 6, 6))
    y = net.bn(net.conv(net.sign("x"), 8, 8), 8)
    found, _, _ = groups(net.model(net.node("Relu", y), net.node("Neg", y)))
    assert list(found.values()) == [["Transpose", "Cast", "Mul", "Add"]]
    net = Net((2, 8, 6, 6))
    y = net.bn(net.conv(net.sign("x"), 8, 8), 8)
    found, _, _ = groups(net.model(net.node("Relu", y), y))
    assert list(found.values()) == [["Transpose", "Cast", "Mul", "Add"]]


def test_a_residual_that_depends_on_the_layer_is_not_fused():
    """x → conv → y; y + f(y) would need y before the kernel that makes y has run."""
    net = Net((2, 8, 6, 6))
    y = net.conv(net.sign("x"), 8, 8, pads=[1] * 4, name="one")
    z = net.conv(net.sign(y), 8, 8, pads=[1] * 4, name="two")
    found, _, _ = groups(net.model(net.node("Add", y, z)))
    assert found == {"one/BinaryConv": ["Transpose", "Cast"], "two/BinaryConv": ["Transpose", "Cast", "Add"]}


def test_two_branches_that_meet_are_added_by_one_of_them():
    net = Net((2, 8, 6, 6))
    sign = net.sign("x")
    left, right = net.bn(net.conv(sign, 8, 8, name="left"), 8), net.bn(net.conv(sign, 8, 8, name="right"), 8)
    found, _, _ = groups(net.model(net.node("Relu", net.node("Add", left, right))))
    assert sorted(map(len, found.values())) == [4, 6]


def test_an_accumulator_with_two_readers_has_no_epilogue():
    net = Net((2, 8, 6, 6))
    y = net.conv(net.sign("x"), 8, 8, name="one")
    left, right = net.sign(net.bn(y, 8)), net.sign(net.bn(y, 8))
    found, _, _ = groups(net.model(net.conv(left, 8, 4, name="two"), net.conv(right, 8, 4, name="three")))
    assert "one/BinaryConv" not in found


def test_two_passes_are_summed_in_float_by_the_epilogue():
    net = Net((2, 9, 6, 6))
    y = net.bn(net.conv(net.sign("x", 0), 9, 8, name="conv", bias=True), 8)
    found, graph, _ = groups(net.model(y))
    assert sorted(map(tuple, found.values())) == [
        ("Transpose", "Cast"), ("Transpose", "Cast", "Add", "Mul", "Add", "Mul", "Add"),
    ]  # fmt: skip
    assert all(np.dtype(node.inputs[0].dtype) == np.float32 for node in graph.nodes if node.op == "Add")


def test_rows():
    net = Net((3, 50))
    y = net.node("Gemm", net.sign("x"), net.signs(50, 6), net.floats(6))
    found, graph, _ = groups(net.model(net.node("Mul", y, net.floats(6))))
    assert list(found.values()) == [["Cast", "Add", "Mul"]]
    assert node_of(graph, "BinaryGemm").attrs["k"] == 50


def test_scales_of_samples_pixels_and_positions():
    """XNOR-Net's mean of each sample, its map K of each pixel, XNOR-Net++'s product of three factors."""
    net = Net((2, 8, 6, 5))
    y = net.conv(net.sign("x"), 8, 7, name="conv", pads=[1] * 4)
    for axes in ([1, 2, 3], [1]):
        mean = net.node("ReduceMean", net.node("Abs", "x"), np.array(axes, np.int64), keepdims=1)
        y = net.node("Mul", y, mean)
    y = net.node("Add", net.node("Mul", y, net.floats(1, 7, 6, 5)), net.floats(1, 1, 6, 5), name="last")
    found, _, ctx = groups(net.model(y))
    assert found == {"conv/BinaryConv": ["Transpose", "Cast", "Mul", "Mul", "Mul", "Add"]}
    assert ctx.records["last"].reason == "in the epilogue of 'conv'"


def test_an_operand_along_one_of_the_spatial_axes_stays_outside():
    net = Net((2, 8, 6, 5))
    y = net.node("Mul", net.conv(net.sign("x"), 8, 7, pads=[1] * 4), net.floats(1, 1, 6, 1))
    found, _, _ = groups(net.model(y))
    assert list(found.values()) == [["Transpose", "Cast"]]


def test_batch_norm_of_a_conv1d_behind_the_reshape():
    net = Net((2, 11, 31))
    y = net.conv(net.sign("x"), 11, 11, (5,), pads=[2, 2], name="conv")
    y = net.node("Add", net.bn(y, 11, trailing=1), "x", name="residual")
    found, _, ctx = groups(net.model(y))
    assert found == {"conv/BinaryConv": ["Transpose", "Cast", "Reshape", "Mul", "Add", "Add"]}
    assert ctx.records["residual"].status is Status.FUSED


def test_scale_of_each_row():
    net = Net((3, 4, 24))
    mean = net.node("ReduceMean", net.node("Abs", "x"), np.array([-1], np.int64), keepdims=1)
    y = net.node("Mul", net.node("MatMul", net.sign("x"), net.signs(24, 9), name="fc"), mean)
    found, _, _ = groups(net.model(net.node("Add", y, net.floats(4, 9))))
    assert list(found.values()) == [["Cast", "Mul"]]  # the Add varies along one of two axes of rows
