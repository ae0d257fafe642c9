"""Max-pools between a few-bit layer and a quantizer: done on the codes, behind integer thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.mini import RealNet, compiled, count, reason

f32 = np.float32


def quantizer(net: RealNet, x: str, low: float, high: float, name: str | None = None) -> str:
    return net.node("Round", net.node("Clip", net.node("Mul", x, f32(0.6)), f32(low), f32(high)), name=name)


def layer(net: RealNet, x: str, inputs: int, outputs: int, *kernel: int) -> str:
    return net.node("Conv", x, net.const(net.rng.integers(-3, 4, (outputs, inputs, *kernel)).astype(f32)))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("kernel", "pads"), [((2, 2), (0, 0, 0, 0)), ((3, 2), (1, 1, 1, 0))])
def test_pools_on_either_side_of_a_batch_norm(before: bool, kernel: tuple[int, int], pads: tuple[int, ...]) -> None:
    net = RealNet((1, 6, 9, 8))
    pool = {"kernel_shape": list(kernel), "strides": [2, 2], "pads": list(pads), "name": "pool"}
    y = layer(net, quantizer(net, "x", -4, 3), 6, 11, 3, 3)
    y = net.bn(net.node("MaxPool", y, **pool), 11) if before else net.node("MaxPool", net.bn(y, 11), **pool)
    optimized = compiled(net, layer(net, quantizer(net, net.node("Relu", y), 0, 7, "second"), 11, 4, 2, 2))
    assert count(optimized) == {"PackLevels": 2, "LevelMaxPool": 1, "BitSerialConv": 2, "Transpose": 1, "Cast": 1}
    assert "largest codes" in reason(optimized, "pool") and "7 integer thresholds" in reason(optimized, "second")
    (node,) = (node for node in optimized.model.graph.node if node.op_type == "LevelMaxPool")
    (flip,) = (tensor for tensor in optimized.model.graph.initializer if tensor.name == node.input[1])
    assert any(flip.raw_data) == before, "scales below zero turn the order round, if they come behind the pool"


def test_two_pools_and_one_spatial_axis() -> None:
    net = RealNet((1, 5, 30))
    y = net.node("MaxPool", layer(net, quantizer(net, "x", -4, 3), 5, 9, 3), kernel_shape=[2], strides=[2])
    y = net.node("MaxPool", net.affine(y, net.floats(9), net.floats(9), 1), kernel_shape=[3], strides=[1], pads=[1, 1])
    optimized = compiled(net, layer(net, quantizer(net, y, 0, 3), 9, 4, 3))
    assert count(optimized)["LevelMaxPool"] == 2 and "MaxPool" not in count(optimized)


def test_codes_in_twos_complement_are_pooled_in_float() -> None:
    net = RealNet((1, 6, 8, 8))
    y = net.bn(layer(net, quantizer(net, "x", -4, 3), 6, 8, 3, 3), 8)
    y = net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    optimized = compiled(net, layer(net, quantizer(net, y, -4, 3, "second"), 8, 4, 3, 3))
    assert "LevelMaxPool" not in count(optimized)
    assert "its codes do not rise with the levels" in reason(optimized, "second")


def test_a_chain_that_is_not_monotone_behind_the_pool_is_left() -> None:
    net = RealNet((1, 6, 8, 8))
    y = net.node("MaxPool", layer(net, quantizer(net, "x", -4, 3), 6, 8, 3, 3), kernel_shape=[2, 2], strides=[2, 2])
    y = net.node("Abs", net.bn(y, 8))
    optimized = compiled(net, layer(net, quantizer(net, y, 0, 3, "second"), 8, 4, 3, 3))
    assert "LevelMaxPool" not in count(optimized)
    assert "nor falls with the accumulator" in reason(optimized, "second")
