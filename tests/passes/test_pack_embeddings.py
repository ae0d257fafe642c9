"""Binary embedding tables as bits, and constants that repeat kept once."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from xnorc.golden import run
from xnorc.model import prepare
from xnorc.passes import optimize

from .mini import RealNet, compiled, count, reason


def table(rows: int, width: int, *, one_scale: bool = False, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.full((rows, 1), 0.3) if one_scale else rng.uniform(0.1, 2, (rows, 1))
    return (scale * np.where(rng.random((rows, width)) < 0.5, -1, 1)).astype(np.float32)


def words(net: RealNet, value: np.ndarray, shape: tuple[int, ...] = (3, 5)):
    """A model of one Gather with an integer input."""
    out = net.node("Gather", net.const(value), "ids", name="embedding")
    graph = helper.make_graph(
        net.nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, (*shape, value.shape[1]))], net.constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("width", [64, 13])
def test_rows_of_two_opposite_levels_are_bits(one_scale, width):
    value = table(40, width, one_scale=one_scale)
    value[7] = 0  # an empty row: its scale is 0
    if one_scale:
        value[7] = 0.3
    model = words(RealNet((1,)), value)
    optimized = optimize(prepare(model), check=True)
    found = count(optimized)
    assert found == {"Gather": 1 if one_scale else 2, "Unpack": 1, "Mul": 1}
    assert reason(optimized, "embedding").endswith("one scale" if one_scale else "a scale a row")
    ids = np.random.default_rng(0).integers(-40, 40, (3, 5))
    ids[0, 0] = 7
    (expected,), (got,) = run(model, {"ids": ids}).values(), run(optimized.model, {"ids": ids}).values()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("value", "why"), [
    (np.arange(80, dtype=np.float32).reshape(8, 10), "a row has 10 levels"),
    (np.where(table(8, 16) > 0, np.float32(1), np.float32(0.5)), "not opposite"),
])  # fmt: skip
def test_other_tables_stay(value, why):
    optimized = optimize(prepare(words(RealNet((1,)), value)), check=True)
    assert count(optimized) == {"Gather": 1} and why in reason(optimized, "embedding")


def test_a_constant_that_repeats_is_kept_once():
    net = RealNet((1, 20, 8))
    row = net.floats(8)
    y = net.node("Add", "x", np.broadcast_to(row, (20, 8)).copy())
    y = net.node("Mul", y, net.floats(20, 8))
    optimized = compiled(net, y)
    sizes = sorted(int(np.prod(t.dims)) for t in optimized.model.graph.initializer)
    assert sizes == [8, 160]
