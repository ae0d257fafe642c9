"""``fixed_point``: float emulations of fixed-point networks become integer arithmetic with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

import xnorc
from xnorc.model import prepare
from xnorc.passes.base import Status
from xnorc.passes.manager import Optimized, optimize

from .mini import RealNet, compiled, count, reason


class FixedNet(RealNet):
    """Quantizers as trainings emulate them."""

    def quantizer(
        self, x: str, fraction: int, low: int, high: int, style: str = "round", divide: bool = False, late: bool = False
    ) -> str:
        scale = np.float32(2.0**fraction)
        v = self.node("Mul", x, scale)
        if style == "half":
            v = self.node("Floor", self.node("Add", v, np.float32(0.5)))
        else:
            v = self.node({"round": "Round", "floor": "Floor"}[style], v)
        if late:
            v = self.node("Mul", v, 1 / scale)
            return self.node("Clip", v, np.float32(low / scale), np.float32(high / scale))
        v = self.node("Clip", v, np.float32(low), np.float32(high))
        return self.node("Div", v, scale) if divide else self.node("Mul", v, 1 / scale)

    def weight(self, *shape: int, bits: int = 6, fraction: int = 5) -> str:
        reach = 1 << (bits - 1)
        return self.const((self.rng.integers(-reach, reach, shape) * 2.0**-fraction).astype(np.float32))

    def fixed(self, *shape: int, fraction: int = 4) -> np.ndarray:
        return (np.round(self.rng.standard_normal(shape) * 2**fraction) / 2**fraction).astype(np.float32)


def network(style: str = "half", late: bool = False) -> tuple[FixedNet, str]:
    """Two convolutions with batch norms in fixed point, a shortcut that is used twice, a Gemm."""
    net = FixedNet(shape=(1, 3, 8, 8))
    x = net.quantizer("x", 5, -128, 127, "round", divide=True, late=late)
    y = net.node("Conv", x, net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="conv1")
    y = net.node("Add", net.node("Mul", y, net.fixed(1, 8, 1, 1)), net.fixed(1, 8, 1, 1, fraction=6))
    short = net.quantizer(y, 4, 0, 255, style, late=late)
    y = net.node("Conv", short, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="conv2")
    y = net.quantizer(y, 3, -128, 127, style, late=late)
    y = net.node("Mul", y, net.fixed(8, 1, 1))
    y = net.node("Relu", net.node("Add", y, short))
    y = net.quantizer(y, 3, 0, 127, style, divide=True, late=late)
    y = net.node("Flatten", y, axis=1)
    y = net.node("Gemm", y, net.weight(10, 8 * 64), net.fixed(10), transB=1, name="fc")
    return net, y


@pytest.mark.parametrize("style", ["half", "round", "floor"])
@pytest.mark.parametrize("late", [False, True])
def test_network_is_integer_and_equal(style: str, late: bool) -> None:
    net, y = network(style, late)
    optimized = compiled(net, y)
    found = count(optimized)
    assert found["IntegerConv"] == 2 and found["IntegerGemm"] == 1 and found["FixedRescale"] == 3
    assert found["FixedQuantize"] == 1
    assert not {"Conv", "Gemm", "Round", "Floor", "Clip", "Relu"} & set(found)
    assert [r.status for r in optimized.records if r.op in ("Conv", "Gemm")] == [Status.PACKED] * 3


def one_layer(*, bits: int = 8, weight_fraction: int = 5, channels: int = 3, bias: np.ndarray | None = None):
    net = FixedNet(shape=(1, channels, 6, 6))
    x = net.quantizer("x", 4, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, "round")
    extra = [] if bias is None else [bias]
    weight = net.weight(5, channels, 3, 3, fraction=weight_fraction)
    y = net.node("Conv", x, weight, *extra, kernel_shape=[3, 3], name="conv")
    return net, y


def test_bias_off_the_grid_is_added_in_float() -> None:
    net, y = one_layer(bias=np.full(5, 0.1, np.float32))
    y = net.quantizer(y, 3, 0, 15, "half")
    optimized = compiled(net, y)
    assert count(optimized)["IntegerConv"] == 1 and "FixedRescale" not in count(optimized)


def test_gemm_with_bias_off_the_grid_goes_to_bit_planes() -> None:
    net = FixedNet(shape=(1, 40))
    x = net.quantizer("x", 4, -128, 127)
    y = net.node("Gemm", x, net.weight(7, 40), np.full(7, 0.1, np.float32), transB=1, name="fc")
    optimized = compiled_loosely(net, y)
    assert "IntegerGemm" not in count(optimized)
    assert reason(optimized, "fc").startswith("BitSerialGemm 40→7")


def test_sums_past_2_24_go_to_bit_planes() -> None:
    net = FixedNet(shape=(1, 2000, 3, 3))
    x = net.quantizer("x", 4, -128, 127, "round")
    weight = (net.rng.integers(-127, 128, (2, 2000, 3, 3)) / 32).astype(np.float32)
    y = net.node("Conv", x, weight, kernel_shape=[3, 3], name="conv")
    optimized = compiled_loosely(net, y)
    assert "IntegerConv" not in count(optimized)
    assert reason(optimized, "conv").startswith("BitSerialConv 3x3 2000→2")

    net = FixedNet(shape=(1, 900, 3, 3))
    x = net.quantizer("x", 4, -128, 127, "round")
    levels = np.full((2, 900, 3, 3), 127 / 32, np.float32)
    levels[:, 0] = np.arange(9, dtype=np.float32).reshape(3, 3) / 32
    y = net.node("Conv", x, levels, kernel_shape=[3, 3], name="conv")
    optimized = compiled_loosely(net, y)
    assert "IntegerConv" not in count(optimized)
    assert reason(optimized, "conv").startswith("BitSerialConv 3x3 900→2")


def compiled_loosely(net: FixedNet, y: str) -> Optimized:
    """Without comparing: a float sum that rounds is not the same from run to run."""
    return optimize(prepare(net.model(y)))


def test_float_batch_norm_reads_the_exact_sum() -> None:
    net, y = one_layer()
    optimized = compiled(net, net.bn(y, 5))
    assert count(optimized)["IntegerConv"] == 1 and "FixedRescale" not in count(optimized)


def test_a_half_that_float32_cannot_add_is_left() -> None:
    """acc · 127 · 2^-1 + 0.5 needs more than 24 bits at the end of the range."""
    net, y = one_layer(channels=3)
    y = net.node("Mul", y, np.array([3840.0], np.float32).reshape(1, 1, 1))
    y = net.quantizer(y, 10, -(1 << 20), (1 << 20) - 1, "half")
    optimized = compiled(net, y)
    assert count(optimized)["IntegerConv"] == 1 and "FixedRescale" not in count(optimized)
    assert "not exact in float32" in " ".join(record.reason for record in optimized.records) or "reach" in " ".join(
        record.reason for record in optimized.records
    )


def test_few_levels_are_left_to_bit_planes() -> None:
    net, y = one_layer(bits=2)
    assert "IntegerConv" in count(compiled(net, y))  # the weights have 64 levels
    net = FixedNet(shape=(1, 3, 6, 6))
    x = net.quantizer("x", 1, -2, 1, "round")
    y = net.node("Conv", x, net.weight(5, 3, 3, 3, bits=3, fraction=1), kernel_shape=[3, 3], name="conv")
    assert "IntegerConv" not in count(compiled(net, y))


def test_pooling_keeps_the_grid() -> None:
    net, y = one_layer()
    y = net.quantizer(y, 3, 0, 63, "half")
    y = net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.node("Conv", y, net.weight(4, 5, 2, 2), kernel_shape=[2, 2], name="conv2")
    optimized = compiled(net, y)
    assert count(optimized)["IntegerConv"] == 2


@pytest.mark.parametrize("pads", [0, 1])
def test_pools_between_layers_are_of_integers(pads) -> None:
    net, y = one_layer()
    y = net.quantizer(y, 3, -64, 63, "half")
    y = net.node("MaxPool", y, kernel_shape=[3, 2], strides=[1, 1], pads=[pads] * 4, name="pool")
    y = net.node("Conv", y, net.weight(4, 5, 2, 2), kernel_shape=[2, 2], name="conv2")
    optimized = compiled(net, y)
    types = {info.name: info.type.tensor_type.elem_type for info in optimized.model.graph.value_info}
    (pool,) = (node for node in optimized.model.graph.node if node.op_type == "MaxPool")
    assert types[pool.input[0]] == 3 and "pools 8-bit integers" in reason(optimized, "pool")
    package = xnorc.compile(net.model(y), "host", name="pooled")
    result = package.validate("host")
    assert result.ok and all(layer.differing == 0 for layer in result.layers)


def test_device_gives_the_same_integers() -> None:
    net, y = network()
    model = net.model(y)
    package = xnorc.compile(model, "host", name="fixed")
    rng = np.random.default_rng(1)
    data = (rng.standard_normal((4, 1, 3, 8, 8)) * 3).astype(np.float32)
    result = package.validate("host", {"x": data})
    assert result.ok, result.first_difference
    assert all(layer.differing == 0 for layer in result.layers)
