"""Our float32 convolutions and matrix products, on shapes that no block size divides, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.mini import Net
from xnorc import golden, targets
from xnorc.lower.build import lower
from xnorc.model import prepare
from xnorc.passes import optimize

from .float_cases import Case, merged
from .harness import run_emulated, run_on_host

SEEDS = range(3)


def conv_case(rng: np.random.Generator, axes: int = 2) -> Case:
    kernel = [int(rng.choice([1, 1, 2, 3, 5])) for _ in range(axes)]
    dilations = [int(rng.integers(1, 4)) if size < 5 else 1 for size in kernel]
    strides = [int(rng.integers(1, 4)) for _ in range(axes)]
    pads = [int(rng.integers(0, 4)) if rng.random() < 0.6 else 0 for _ in range(2 * axes)]
    least = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    most = 24 if axes == 2 else 60
    image = [int(rng.integers(size, max(size + 1, most))) for size in least]
    channels = int(rng.choice([1, 3, 5, 17, 64]))
    kind = rng.random()
    group = channels if kind < 0.3 else int(rng.choice([g for g in (1, 2, 3, 4) if channels % g == 0]))
    out = group * int(rng.choice([1, 2, 3] if group > 1 else [1, 3, 5, 6, 8, 13, 17, 64]))
    data = rng.standard_normal((int(rng.integers(1, 3)), channels, *image), np.float32)
    constants = [rng.standard_normal((out, channels // group, *kernel), np.float32)]
    if rng.random() < 0.6:
        constants.append(rng.standard_normal(out, np.float32))
    attrs = {"strides": strides, "dilations": dilations, "group": group, "kernel_shape": kernel}
    if rng.random() < 0.2:
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        attrs["dilations"] = [1] * axes  # ONNX Runtime takes no dilation with these
    else:
        attrs["pads"] = pads
    return Case("Conv", [data], constants, attrs)


def product_case(rng: np.random.Generator) -> Case:
    m, k, n = (int(rng.choice([1, 2, 3, 5, 7, 10, 16, 17, 31, 64, 70])) for _ in range(3))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    kind = int(rng.integers(0, 6))
    if kind == 0:
        trans = {"transA": int(rng.integers(0, 2)), "transB": int(rng.integers(0, 2))}
        left, right = normal(m, k), normal(k, n)
        bias = [[], [normal(n)], [normal(1, n)], [normal(m, 1)], [normal(1)], [normal(m, n)]][int(rng.integers(0, 6))]
        attrs = {**trans, **({"alpha": 0.5, "beta": 1.5} if rng.random() < 0.2 else {})}
        given = [np.ascontiguousarray(a.T) if t else a for a, t in zip((left, right), trans.values(), strict=True)]
        if rng.random() < 0.3:
            return Case("Gemm", given, bias, attrs)
        return Case("Gemm", given[:1], [given[1], *bias], attrs)
    if kind == 1:
        return Case("MatMul", [normal(2, m, k)], [normal(k, n)])
    if kind == 2:
        return Case("MatMul", [normal(3, 2, m, k), normal(3, 2, k, n)])
    if kind == 3:
        return Case("MatMul", [normal(3, m, k), normal(k, n)])
    if kind == 4:
        return Case("MatMul", [normal(m, k), normal(3, k, n)])
    return Case("MatMul", [normal(m, k)], [normal(3, k, n)])


def cases_of(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [
        *(conv_case(rng) for _ in range(12)),
        *(conv_case(rng, axes=1) for _ in range(4)),
        *(product_case(rng) for _ in range(10)),
    ]


def pool_case(rng: np.random.Generator, axes: int = 2) -> Case:
    kernel = [int(rng.choice([1, 2, 3, 5, 9, 11])) for _ in range(axes)]
    attrs = {"kernel_shape": kernel, "strides": [int(rng.integers(1, 4)) for _ in range(axes)]}
    if rng.random() < 0.3:
        attrs["dilations"] = [int(rng.integers(1, 4)) for _ in range(axes)]
    else:
        attrs["pads"] = [int(rng.integers(0, size)) for size in (*kernel, *kernel)]
    least = [(k - 1) * d + 1 for k, d in zip(kernel, attrs.get("dilations", [1] * axes), strict=True)]
    shape = [int(rng.integers(1, 3)), int(rng.choice([1, 3, 17])), *(int(rng.integers(n, n + 24)) for n in least)]
    return Case("MaxPool", [rng.standard_normal(shape, np.float32)], attrs=attrs)


def transpose_case(rng: np.random.Generator) -> Case:
    rank = int(rng.integers(2, 5))
    shape = [int(rng.choice([1, 2, 3, 4, 5, 7, 8, 9, 16, 23])) for _ in range(rank)]
    perm = [int(axis) for axis in rng.permutation(rank)]
    return Case("Transpose", [rng.standard_normal(shape, np.float32)], attrs={"perm": perm})


def moved_cases(seed: int) -> list[Case]:
    """Operators that compute nothing new."""
    rng = np.random.default_rng(seed)
    return [
        *(pool_case(rng) for _ in range(12)),
        *(pool_case(rng, axes=1) for _ in range(4)),
        *(transpose_case(rng) for _ in range(24)),
        Case("Transpose", [rng.standard_normal((2, 70, 33), np.float32)], attrs={"perm": [0, 2, 1]}),
    ]


LARGE = [
    # Enough work to be spread over threads, in tasks that do not all have the same size.
    Case("Conv", [np.random.default_rng(1).standard_normal((1, 3, 61, 59), np.float32)],
         [np.random.default_rng(2).standard_normal((50, 3, 7, 7), np.float32)], {"strides": [2, 2], "pads": [3] * 4}),
    Case("Conv", [np.random.default_rng(3).standard_normal((1, 70, 7, 7), np.float32)],
         [np.random.default_rng(4).standard_normal((130, 70, 3, 3), np.float32)], {"pads": [1] * 4}),
    Case("Conv", [np.random.default_rng(5).standard_normal((2, 30, 40, 41), np.float32)],
         [np.random.default_rng(6).standard_normal((30, 1, 5, 5), np.float32)], {"group": 30, "pads": [2] * 4}),
    Case("MatMul", [np.random.default_rng(7).standard_normal((70, 150), np.float32)],
         [np.random.default_rng(8).standard_normal((150, 203), np.float32)]),
    Case("Gemm", [np.random.default_rng(9).standard_normal((1, 600), np.float32)],
         [np.random.default_rng(10).standard_normal((3001, 600), np.float32)], {"transB": 1}),
]  # fmt: skip


def magnitude(case: Case) -> np.ndarray:
    """What the node gives when all numbers are positive: the scale of its rounding errors."""
    positive = Case(case.op, [np.abs(x) for x in case.inputs], [np.abs(x) for x in case.constants], case.attrs)
    return golden.run(*merged([positive]))["y0_0"]


def check(cases: list[Case], run) -> None:
    model, feeds = merged(cases)
    expected, got = golden.run(model, feeds), run(model, feeds)
    for i, case in enumerate(cases):
        name = f"y{i}_0"
        assert got[name].shape == expected[name].shape, (i, case.op)
        bound = 2e-6 * magnitude(case) + 1e-30
        wrong = np.abs(got[name] - expected[name]) > bound
        assert not wrong.any(), (i, case.op, case.attrs, [x.shape for x in (*case.inputs, *case.constants)])


@pytest.mark.parametrize("seed", SEEDS)
def test_random_shapes(seed: int) -> None:
    check(cases_of(seed), run_on_host)


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_random_shapes_emulated(target: str) -> None:
    check(cases_of(len(SEEDS)), lambda model, feeds: run_emulated(model, feeds, target))


@pytest.mark.parametrize("target", ["host", "rpi4", "rpi2"])
def test_pools_and_transposes_are_equal(target: str) -> None:
    model, feeds = merged(cases := moved_cases(5))
    got = run_on_host(model, feeds) if target == "host" else run_emulated(model, feeds, target)
    for i, (name, value) in enumerate(golden.run(model, feeds).items()):
        np.testing.assert_array_equal(got[name], value, str((cases[i].op, cases[i].inputs[0].shape, cases[i].attrs)))


def test_work_for_threads() -> None:
    check(LARGE, run_on_host)


def test_constant_operands_are_left_to_folding() -> None:
    """A convolution of a constant is none of our kernels' business: TVM evaluates it at compile time."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((1, 2, 5, 5), np.float32)
    weights = rng.standard_normal((3, 2, 3, 3), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["d", "w"], ["c"], name="conv"),
            helper.make_node("Add", ["x", "c"], ["y"], name="a"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 3, 3])],
        [numpy_helper.from_array(data, "d"), numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feeds = {"x": np.ones((1, 3, 3, 3), np.float32)}
    model = onnx.shape_inference.infer_shapes(model)
    np.testing.assert_allclose(run_on_host(model, feeds)["y"], golden.run(model, feeds)["y"], rtol=0, atol=1e-5)


def test_batch_norm_and_activation_are_part_of_the_layer(tmp_path) -> None:
    """One kernel a layer, near ONNX Runtime on shapes that no tile divides, in both layouts."""
    net = Net((1, 3, 30, 26))

    def layer(x: str, channels: int, out: int, size: int, **attrs) -> str:
        group = attrs.pop("group", 1)
        weight = net.const(
            net.floats(out, channels // group, size, size) / np.float32(size * np.sqrt(channels / group))
        )
        x = net.conv(x, channels, out, (size, size), weight=weight, group=group, bias=True, **attrs)
        return net.affine(x, net.floats(out), net.floats(out))

    x = net.node("Relu", layer("x", 3, 21, 7, pads=[3] * 4, strides=[2, 2]))
    x = net.node("PRelu", layer(x, 21, 21, 3, pads=[1] * 4, group=21), net.floats(21, 1, 1))
    x = net.node("Clip", layer(x, 21, 33, 1), np.float32(-3), np.float32(3))
    signs = net.node("Where", net.node("Greater", x, np.float32(0)), np.float32(1), np.float32(-1))
    y = net.bn(net.conv(signs, 33, 33, pads=[1] * 4), 33)
    y = net.node("LeakyRelu", layer(net.node("Add", x, y), 33, 10, 1))
    model = net.model(x, y)
    packed = optimize(prepare(model)).model
    program = lower(packed, targets.get("host"), "m")
    fused = [step for step in program.steps if step.op.startswith("Conv+Mul+Add")]
    assert len(fused) == 4 and all(len(step.calls) <= 3 for step in fused)
    feeds = golden.random_inputs(model)
    expected = golden.run(packed, feeds)
    for found in (run_on_host(packed, feeds), run_emulated(packed, feeds, "rpi4"), run_emulated(packed, feeds, "rpi2")):
        np.testing.assert_allclose(found[x], expected[x], rtol=0, atol=2e-5 * np.abs(expected[x]).max())
