"""``fold_affine``: the same bits as ONNX Runtime's BatchNormalization."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.tidy.fold_affine import FoldAffine
from xnorc.passes.tidy.fold_constants import FoldConstants

from .util import apply, assert_same, ops, parse


def parameters(channels: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = {"s": rng.normal(size=channels), "b": rng.normal(size=channels), "m": 3 * rng.normal(size=channels)}
    return {k: v.astype(np.float32) for k, v in names.items()} | {
        "v": rng.uniform(1e-6, 30, channels).astype(np.float32)
    }


@pytest.mark.parametrize("shape", ["4,7,5,3", "16,7", "2,7,9", "1,7,1,1", "2,7,2,3,2"])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
@pytest.mark.parametrize("opset", [9, 18])
def test_same_bits_as_onnx_runtime(shape, epsilon, opset):
    text = (
        f"g (float[{shape}] x) => (float[{shape}] y) {{ y = BatchNormalization <epsilon = {epsilon}> (x, s, b, m, v) }}"
    )
    for seed in range(5):
        before = parse(text, parameters(7, seed), opset=opset)
        after, ctx = apply(before, FoldConstants(), FoldAffine())
        assert ops(after) == ["Mul", "Add"]
        assert_same(before, after)
        assert after.graph.node[-1].output[0] == "y"
        assert set(ctx.records) == {"BatchNormalization_0"}


def test_a_scale_of_zero_and_a_negative_one():
    values = parameters(3) | {"s": np.float32([0, -2, -0.0])}
    before = parse("g (float[2,3,4,4] x) => (float[2,3,4,4] y) { y = BatchNormalization (x, s, b, m, v) }", values)
    assert_same(before, apply(before, FoldAffine())[0])


def test_training_mode_stays_with_a_reason():
    before = parse(
        "g (float[2,3,4,4] x) => (float[2,3,4,4] y) { y, a, c = BatchNormalization <training_mode = 1> (x, s, b, m, v) }",
        parameters(3),
    )
    after, ctx = apply(before, FoldAffine())
    assert ops(after) == ["BatchNormalization"]
    assert "eval" in ctx.records["BatchNormalization_0"].reason


def test_parameters_computed_at_run_time_stay():
    text = "g (float[2,3] x, float[3] s) => (float[2,3] y) { y = BatchNormalization (x, s, b, m, v) }"
    before = parse(text, {k: v for k, v in parameters(3).items() if k != "s"})
    assert ops(apply(before, FoldAffine())[0]) == ["BatchNormalization"]
