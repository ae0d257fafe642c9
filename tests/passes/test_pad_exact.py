import numpy as np
import pytest

from tests.passes.mini import Net, node_of, ops, rewrite
from xnorc.passes.base import Status
from xnorc.passes.pack.pack import PackLayers
from xnorc.passes.signs.pad_exact import PadExact

AMOUNTS = np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)


def padded(value, *, zero=1, mode="constant", own=(0, 0, 0, 0), before=False, pool=False):
    """(Pad → Sign or Sign → (MaxPool →) Pad) → Conv, strided and dilated, at an odd size."""
    net = Net((2, 5, 11, 9))
    pads = [AMOUNTS, np.array(value, np.float32)] if mode == "constant" else [AMOUNTS]
    if before:
        x = net.sign(net.node("Pad", "x", *pads, name="pad", mode=mode), zero)
    else:
        x = net.sign("x", zero)
        if pool:
            x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1])
        x = net.node("Pad", x, *pads, name="pad", mode=mode)
    y = net.conv(x, 5, 7, name="conv", pads=list(own), strides=[2, 1], dilations=[1, 2])
    return net.model(y)


@pytest.mark.parametrize("zero", [-1, 0, 1])
@pytest.mark.parametrize("pool", [False, True])
def test_zero_joins_the_pads_of_the_convolution(zero, pool):
    graph, ctx = rewrite(padded(0.0, zero=zero, own=(1, 0, 2, 1), pool=pool), PadExact())
    assert "Pad" not in ops(graph)
    assert node_of(graph, "Conv").attrs["pads"] == [2, 2, 4, 2]
    assert ctx.records["pad"].status is Status.FUSED


@pytest.mark.parametrize("value", [-1.0, 1.0])
@pytest.mark.parametrize("pool", [False, True])
def test_plus_and_minus_one_become_the_pad_value(value, pool):
    graph, ctx = rewrite(padded(value, pool=pool), PadExact(), PackLayers())
    conv = node_of(graph, "BinaryConv")
    assert (conv.attrs["pad_value"], conv.attrs["pads"]) == (int(value), [1, 2, 2, 1])
    assert "Pad" not in ops(graph)
    assert ctx.records["pad"].reason == "pad_value of 'conv'"


@pytest.mark.parametrize(("value", "zero", "expected"), [(0.0, 1, 1), (0.0, -1, -1), (-0.3, 1, -1), (2.0, 0, 1)])
def test_padding_before_the_sign_is_padding_by_a_sign(value, zero, expected):
    graph, ctx = rewrite(padded(value, zero=zero, before=True), PadExact(), PackLayers())
    convs = [node for node in graph.nodes if node.op == "BinaryConv"]
    assert [conv.attrs["pad_value"] for conv in convs] == [expected] * (1 if zero else 2)
    # The packed tensor is the original sign without its border.
    assert len(ctx.origins) == len(convs)
    assert all(origin.moves == [("crop", [0, 0, 1, 2, 0, 0, 2, 1])] for origin in ctx.origins.values())


def test_padding_by_zero_before_a_sign_of_zero_stays_zero():
    graph, _ = rewrite(padded(0.0, zero=0, before=True), PadExact(), PackLayers())
    assert {node.attrs["pad_value"] for node in graph.nodes if node.op == "BinaryConv"} == {0}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"value": 0.5}, "pads signs with 0.5, which is no sign: only −1, 0 and +1 are packed"),
        ({"value": 0.0, "mode": "reflect"}, "Pad 'pad' has mode reflect: only constant padding of signs is packed"),
        ({"value": 0.0, "mode": "edge"}, "Pad 'pad' has mode edge: only constant padding of signs is packed"),
        ({"value": 1.0, "own": (1, 1, 1, 1)}, "pads with +1 where Conv 'conv' pads with 0: one layer pads one value"),
    ],
)
def test_other_padding_stays_and_says_why(settings, reason):
    graph, ctx = rewrite(padded(**settings), PadExact(), PackLayers())
    assert ops(graph)["Pad"] == ops(graph)["Conv"] == 1
    assert ctx.records["pad"].reason == reason
    assert ctx.records["conv"].status is Status.FLOAT


def test_a_pad_with_two_readers_is_merged_into_the_convolution_and_kept_for_the_other():
    net = Net((1, 4, 6, 6))
    pad = net.node("Pad", net.sign("x"), AMOUNTS, np.array(0, np.float32), name="pad")
    model = net.model(net.conv(pad, 4, 4), net.node("Relu", pad))
    graph, _ = rewrite(model, PadExact())
    assert ops(graph)["Pad"] == 1
    assert node_of(graph, "Conv").attrs["pads"] == [1, 2, 2, 1]


def test_auto_pad_is_resolved_at_the_padded_size():
    net = Net((1, 4, 7, 7))
    pad = net.node("Pad", net.sign("x"), AMOUNTS, np.array(0, np.float32))
    model = net.model(net.conv(pad, 4, 4, auto_pad="SAME_LOWER", strides=[2, 2]))
    graph, _ = rewrite(model, PadExact())
    assert "Pad" not in ops(graph)
