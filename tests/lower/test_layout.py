"""Feature maps that lie channels last on a device have the model's names, shapes and values for everyone else."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import xnorc
from tests.passes.mini import RealNet, compiled, inputs
from xnorc import golden
from xnorc.package import Package

from .harness import run_emulated, run_on_host


def network() -> onnx.ModelProto:
    """A float stem and pool, two residual binary blocks of odd size, a pooled pointwise shortcut, and a classifier."""
    rng = np.random.default_rng(3)
    constants: dict[str, np.ndarray] = {
        "zero": np.zeros((), np.float32), "one": np.ones((), np.float32), "minus": -np.ones((), np.float32),
        "stem": rng.standard_normal((13, 3, 3, 3)).astype(np.float32),
        "short": rng.standard_normal((24, 13, 1, 1)).astype(np.float32),
        "short_b": rng.standard_normal(24).astype(np.float32),
        "fc": rng.standard_normal((24, 5)).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    nodes = []

    def add(op: str, inputs: list[str], output: str, **attrs: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], f"{output}_node", **attrs))
        return output

    def block(x: str, name: str, channels: int, out: int, stride: int, shortcut: str) -> str:
        constants[f"{name}_w"] = rng.choice([-1, 1], (out, channels, 3, 3)).astype(np.float32)
        for what in ("a", "b"):
            constants[f"{name}_{what}"] = rng.standard_normal((1, out, 1, 1)).astype(np.float32)
        above = add("GreaterOrEqual", [x, "zero"], f"{name}_above")
        sign = add("Where", [above, "one", "minus"], f"{name}_sign")
        y = add("Conv", [sign, f"{name}_w"], f"{name}_conv", pads=[1, 1, 1, 1], strides=[stride, stride])
        y = add("Mul", [y, f"{name}_a"], f"{name}_scaled")
        y = add("Add", [y, f"{name}_b"], f"{name}_shifted")
        y = add("Add", [y, shortcut], f"{name}_sum")
        return add("LeakyRelu", [y], f"{name}_out", alpha=0.25)

    x = add("Conv", ["x", "stem"], "stem_out", pads=[1, 1, 1, 1])
    x = add("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = block(x, "b1", 13, 13, 1, x)
    short = add("AveragePool", [x], "short_pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    short = add("Conv", [short, "short", "short_b"], "short_out")
    x = block(x, "b2", 13, 24, 2, short)
    x = add("HardSigmoid", [x], "gate")
    x = add("ReduceMean", [x, "axes"], "mean", keepdims=0)
    add("MatMul", [x, "fc"], "logits")
    graph = helper.make_graph(
        nodes, "layout", [helper.make_tensor_value_info("x", 1, [1, 3, 19, 17])],
        [helper.make_tensor_value_info("logits", 1, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module", params=["host", "rpi4"])
def package(request: pytest.FixtureRequest) -> Package:
    return xnorc.compile(network(), request.param)


def test_what_binary_layers_share_lies_channels_last(package: Package) -> None:
    layouts = {tensor["name"]: tensor.get("layout") for tensor in package.manifest["tensors"]}
    shapes = {tensor["name"]: tensor["shape"] for tensor in package.manifest["tensors"]}
    for name in ("b1_out", "short_pool", "short_out", "b2_out", "gate"):
        assert layouts[name] == "channels_last", name
    assert shapes["b1_out"] == [1, 13, 10, 9] and shapes["short_out"] == [1, 24, 5, 5]
    for name in ("x", "stem_out", "mean", "logits"):
        assert layouts[name] is None, name


def test_every_layer_and_the_whole_are_right(package: Package) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((4, 3, 19, 17)).astype(np.float32)}
    report = package.validate("host" if package.target.is_host else "qemu", data)
    assert report.ok, report.first_difference


def test_a_trace_has_the_models_axes(package: Package) -> None:
    from xnorc.runtimes.device import parse_device

    feed = np.random.default_rng(1).standard_normal((1, 3, 19, 17)).astype(np.float32)
    with parse_device("host" if package.target.is_host else "qemu").open(package) as session:
        trace = session.trace({"x": feed})
    names = ["b1_out", "short_out", "gate"]
    expected = golden.run(package.packed(), {"x": feed}, names)
    for name in names:
        np.testing.assert_allclose(trace[name][0], expected[name], rtol=1e-4, atol=1e-4)


def test_a_residual_of_one_axis_lies_as_the_model_says() -> None:
    """A 1-D convolution is a 2-D one inside, but its float feature map has three axes."""
    net = RealNet((2, 11, 31))
    y = "x"
    for i in range(2):
        branch = net.conv(net.sign(y), 11, 11, (3,), pads=[1, 1], name=f"conv{i}")
        y = net.node("Add", net.bn(branch, 11, trailing=1), y)
    model, x = compiled(net, y).model, inputs(net.shape, 3)
    np.testing.assert_array_equal(run_on_host(model, {"x": x})[y], golden.run(model, {"x": x})[y])


@pytest.mark.parametrize(
    "target", ["host", pytest.param("rpi4", marks=pytest.mark.slow), pytest.param("rpi2", marks=pytest.mark.slow)]
)
def test_pools_and_depthwise_layers_between_binary_ones_stay_channels_last(target: str) -> None:
    """A padded pool, a depthwise blur with stride and a bias, a layer of our own that gives channels first: as they were."""
    net = RealNet((1, 20, 9, 11))
    y = net.node("Relu", net.bn(net.conv(net.sign("x"), 20, 20, (3, 3), pads=[1] * 4, name="b1"), 20), name="relu")
    y = net.node("Pad", y, net.const(np.int64([0, 0, 0, 0, 0, 0, 1, 1])), name="pad")
    y = net.node("MaxPool", y, name="pool", kernel_shape=[2, 2], strides=[1, 1])
    y = net.node(
        "Conv", y, net.floats(20, 1, 3, 3), net.floats(20), name="deep", group=20, pads=[1, 2, 1, 0], strides=[2, 1]
    )
    few = net.rng.choice(np.float32([-0.5, 0.5]), (20, 20, 3, 3))
    few[:, 0, 0, 0] = 0
    y = net.node("Conv", y, net.const(few), name="few", pads=[1] * 4)
    y = net.node("Conv", y, net.floats(20, 20, 1, 1), name="point")
    branch = net.bn(net.conv(net.sign(y), 20, 20, (3, 3), pads=[1] * 4, name="b2"), 20)
    y = net.node("ReduceMean", net.node("Add", branch, y), net.const(np.int64([2, 3])), name="mean")
    model, x = compiled(net, y).model, inputs(net.shape, 3)
    ops = [node.op_type for node in model.graph.node]
    assert "Pad" not in ops and "LowBitConv" in ops
    run = run_on_host if target == "host" else partial(run_emulated, target=target)
    expected = golden.run(model, {"x": x})[y]
    np.testing.assert_allclose(run(model, {"x": x})[y], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "target", ["host", pytest.param("rpi4", marks=pytest.mark.slow), pytest.param("rpi2", marks=pytest.mark.slow)]
)
def test_feature_maps_side_by_side_stay_channels_last(target: str) -> None:
    """ReActNet's doubling of channels, a stem that comes along, a concatenation of rows; a pool gives channels first back."""
    net = RealNet((1, 3, 9, 11))
    stem = net.node("Conv", "x", net.floats(20, 3, 3, 3), name="stem", pads=[1] * 4)
    sign = net.sign(stem)
    halves = [
        net.node("Add", net.bn(net.conv(sign, 20, 20, (1, 1), name=f"half{i}"), 20), stem, name=f"sum{i}")
        for i in range(2)
    ]
    y = net.node("Concat", *halves, stem, name="channels", axis=1)
    y = net.node("Concat", y, net.node("Relu", y, name="relu"), name="rows", axis=-2)
    wide = net.bn(net.conv(net.sign(y), 60, 60, (3, 3), pads=[1] * 4, name="wide"), 60)
    y = net.node("AveragePool", net.node("Add", wide, y, name="sum"), name="pool", kernel_shape=[2, 3], strides=[2, 2])
    package = xnorc.compile(net.model(y), target)
    layouts = {tensor["name"]: tensor.get("layout") for tensor in package.manifest["tensors"]}
    assert [layouts[f"{name}_y"] for name in ("channels", "rows", "sum")] == ["channels_last"] * 3
    run = run_on_host if target == "host" else partial(run_emulated, target=target)
    model, x = package.packed(), inputs(net.shape, 3)
    expected = golden.run(model, {"x": x})[y]
    np.testing.assert_allclose(run(model, {"x": x})[y], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceMean"])
def test_means_that_binary_layers_read_lie_channels_last(op: str) -> None:
    net = RealNet((2, 20, 5, 7))
    y = net.bn(net.conv(net.sign("x"), 20, 20, (3, 3), pads=[1] * 4), 20)
    mean = net.node(op, y, *([np.int64([2, 3])] if op == "ReduceMean" else []))
    y = net.node("Flatten", net.conv(net.sign(mean), 20, 9, (1, 1)))
    model, x = compiled(net, y).model, inputs(net.shape, 3)
    np.testing.assert_array_equal(run_on_host(model, {"x": x})[y], golden.run(model, {"x": x})[y])


@pytest.mark.parametrize("pads", [[0] * 4, [1, 1, 1, 0]])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_a_convolution_of_one_channel_between_binary_layers(kernel: tuple[int, int], pads: list[int]) -> None:
    """It is depthwise, though it has one group."""
    net = RealNet((1, 1, 9, 11))
    y = net.node("Add", net.bn(net.conv(net.sign("x"), 1, 1, pads=[1] * 4), 1), "x")
    y = net.node("Relu", net.node("Conv", y, net.floats(1, 1, *kernel), net.floats(1), pads=pads, strides=[2, 1]))
    y = net.node("Add", net.bn(net.conv(net.sign(y), 1, 1, pads=[1] * 4), 1), y)
    model, x = compiled(net, y).model, inputs(net.shape, 3)
    expected = golden.run(model, {"x": x})[y]
    np.testing.assert_allclose(run_on_host(model, {"x": x})[y], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
