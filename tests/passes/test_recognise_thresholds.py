"""``recognise_thresholds``: counts of thresholds are ``Quantize``, with the same floats."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xnorc
from xnorc import golden
from xnorc.passes.levels.recognise_thresholds import RecogniseThresholds
from xnorc.passes.tidy.fold_constants import FoldConstants

from .util import apply, ops, parse

COUNT = """
    wide = Unsqueeze (x, last)
    reached = GreaterOrEqual (wide, t)
    number = Cast <to = 1> (reached)
    count = ReduceSum <keepdims = 0> (number, last)
"""
AFTER = "scaled = Mul (count, f)\n y = Add (scaled, b)"


def counting(
    table: np.ndarray, shape: str = "1,3,2,2", after: str = AFTER, more: str = "", body: str = COUNT
) -> onnx.ModelProto:
    """x → how many of ``table``'s last axis it reaches → y."""
    rank = shape.count(",") + 1
    values = {"t": table.astype(np.float32), "f": np.float32(0.1), "b": np.float32(-0.7), "last": np.int64([rank])}
    sizes = ",".join(chr(ord("p") + i) for i in range(rank))
    text = f"g (float[{shape}] x) => (float[{sizes}] y{more}) {{ {body} {after} }}"
    used = {
        name: value
        for name, value in values.items()
        if f"{name})" in text or f"({name}," in text or f", {name}" in text
    }
    return parse(text, used)


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The same floats on whole and half numbers, which hit thresholds."""
    (info,) = before.graph.input
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    for seed in range(3):
        x = (np.random.default_rng(seed).integers(-12, 13, shape) / 2).astype(np.float32)
        expected, found = golden.run(before, {"x": x}), golden.run(after, {"x": x})
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from([1, 2, 3, 15, 255]),
    width=st.sampled_from([1, 3]),
    axis=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_per_channel_and_for_all(count, width, axis, seed):
    """Unsorted, repeated and exactly hit thresholds; channels first and last."""
    table = np.random.default_rng(seed).integers(-5, 6, (width, count))
    sizes = [1] * axis + [width] + [1] * (3 - axis) + [count]
    before = counting(table.reshape(sizes), "1,3,2,2" if axis == 1 else "1,2,2,3")
    after, ctx = apply(before, FoldConstants(), RecogniseThresholds())
    assert ops(after) == ["Quantize"]
    assert after.graph.node[0].output[0] == "y"
    same(before, after)
    assert len(ctx.records) == 6


def test_the_values_take_in_only_what_nothing_else_reads():
    before = counting(np.arange(3), "2,3", after="scaled = Mul (count, f)\n y = Add (scaled, b)\n z = Neg (scaled)",
                      more=", float[p,q] z")  # fmt: skip
    after, _ = apply(before, FoldConstants(), RecogniseThresholds())
    assert ops(after) == ["Quantize", "Add", "Neg"]
    same(before, after)


@pytest.mark.parametrize("table", [np.zeros((1, 3, 2, 4)), np.zeros((1, 1, 1, 256))], ids=["two axes", "256"])
def test_left_alone(table):
    after, _ = apply(counting(table, "1,3,2"), FoldConstants(), RecogniseThresholds())
    assert "Quantize" not in ops(after)


def test_comparisons_that_something_else_reads_are_left_alone():
    before = counting(np.arange(3), "2,3", after="y = Neg (count)\n z = ReduceMax <keepdims = 0> (number, last)",
                      more=", float[p,q] z")  # fmt: skip
    after, _ = apply(before, FoldConstants(), RecogniseThresholds())
    assert "Quantize" not in ops(after)
    same(before, after)


def test_another_axis_is_no_count():
    body = COUNT.replace("ReduceSum <keepdims = 0> (number, last)", "ReduceSum <keepdims = 0> (number, other)")
    before = counting(np.arange(3), "2,3", after="y = Neg (count)", body=body)
    before.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([1]), "other"))
    after, _ = apply(before, FoldConstants(), RecogniseThresholds())
    assert "Quantize" not in ops(after)


def test_layers_behind_it_are_packed():
    """Thresholds per channel on integers, as FINN's streamlined networks have them: the layer behind has 2-bit inputs."""
    rng = np.random.default_rng(0)
    table = np.sort(rng.integers(-9, 10, (1, 8, 1, 1, 3)), axis=-1)
    body = "c = Conv <pads = [1, 1, 1, 1]> (x, w)" + COUNT.replace("(x, last)", "(c, last)")
    before = counting(table, "1,3,5,5", after="a = Add (count, b)\n y = Conv (a, v)", body=body)
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (4, 8, 3, 3))):
        signs = rng.choice(np.float32([-1, 1]), shape)
        before.graph.initializer.append(onnx.numpy_helper.from_array(signs, name))
    bias = next(tensor for tensor in before.graph.initializer if tensor.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1), "b"))
    packed = xnorc.optimize(before, check=True).model
    assert ops(packed).count("BitSerialConv") == 1
    assert "ReduceSum" not in ops(packed)
    same(before, packed)
