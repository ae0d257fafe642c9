import numpy as np

from tests.passes.mini import Net, rewrite
from xnorc.passes.fuse.fuse_epilogue import FuseEpilogue
from xnorc.passes.fuse.fuse_threshold import FuseThreshold
from xnorc.passes.fuse.split_concat import SplitConcat
from xnorc.passes.pack.pack import PackLayers
from xnorc.passes.signs.split_bias import SplitBias

PASSES = (SplitBias(), PackLayers(), FuseThreshold(), SplitConcat(), FuseEpilogue())


def doubled(net: Net, *others: str) -> str:
    """Two layers on the same bits, and ``others``, side by side."""
    bits = net.sign("x")
    return net.node(
        "Concat",
        net.bn(net.conv(bits, 8, 8, pads=[1] * 4), 8),
        net.bn(net.conv(bits, 8, 16, pads=[1] * 4), 16),
        *others,
        axis=1,
    )


def outside(graph, ctx) -> list[str]:
    """Operators that are no part of an anchor's kernel, from the concatenation on."""
    found = [node.op for node in graph.nodes if node.name not in ctx.groups and not node.domain]
    return found[found.index("Concat") :] if "Concat" in found else found


def test_steps_join_the_epilogues():
    net = Net((2, 8, 5, 6))
    y = net.node("PRelu", net.node("Sub", doubled(net), net.floats(24, 1, 1)), net.floats(24, 1, 1))
    y = net.node("Clip", net.node("Sub", np.float32(3), y), np.float32(-1), np.float32(1))
    graph, ctx = rewrite(net.model(net.node("Mul", net.floats(1, 24, 1, 1), y)), *PASSES)
    assert outside(graph, ctx) == ["Concat"]


def test_what_is_not_channel_by_channel_stays():
    for last in ("Exp", "Add"):
        net = Net((1, 8, 5, 6))
        y = net.node("Relu", doubled(net))
        y = net.node(last, y, *([net.floats(24, 5, 6)] if last == "Add" else []))
        graph, ctx = rewrite(net.model(y), *PASSES)
        assert outside(graph, ctx) == ["Concat", last]


def test_only_what_ends_an_epilogue_is_worth_it():
    net = Net((1, 8, 5, 6))
    graph, ctx = rewrite(net.model(net.node("Relu", doubled(net, "x"))), *PASSES)
    assert outside(graph, ctx) == ["Concat", "Relu"]
    net = Net((1, 8, 5, 6))
    y = doubled(net)
    y = net.node("Add", net.node("Relu", y), y)  # the concatenation has another reader
    graph, ctx = rewrite(net.model(y), *PASSES)
    assert outside(graph, ctx) == ["Concat", "Relu", "Add"]
