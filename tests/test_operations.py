"""Operation counts: products of floats, products of bits, and what a layer takes twice."""

from __future__ import annotations

import numpy as np
import pytest

import xnorc
from tests.passes.mini import RealNet
from xnorc.model import prepare
from xnorc.operations import Operations, of_float_model, of_packed_model
from xnorc.opset import REGISTRY, Operator


def net(zero: int) -> tuple[RealNet, str]:
    """A float 3x3 convolution 3→8 on 6x6, a binary one 8→16 of it, and a product with floats."""
    made = RealNet((1, 3, 6, 6))
    y = made.node("Conv", "x", made.floats(8, 3, 3, 3), pads=[1] * 4, kernel_shape=[3, 3], name="stem")
    y = made.conv(made.sign(y, zero), 8, 16, pads=[1] * 4, name="conv")
    y = made.node("Flatten", y)
    return made, made.node("Gemm", y, made.floats(10, 16 * 36), transB=1, name="head")


STEM, BINARY, HEAD = 36 * 8 * 27, 36 * 16 * 72, 10 * 16 * 36


def test_products_of_floats_and_of_bits():
    made, y = net(1)
    found = xnorc.explain(made.model(y))
    assert found.operations == Operations(STEM + BINARY + HEAD, 0)
    assert found.packed_operations == Operations(STEM + HEAD, BINARY)
    assert found.packed_operations.total == found.packed_operations.total_once == STEM + HEAD + BINARY / 64
    assert found.to_dict()["summary"]["packed_operations"]["bits"] == BINARY


def test_a_sign_that_keeps_zero_costs_twice_and_says_so():
    made, y = net(0)
    found = xnorc.explain(made.model(y)).packed_operations
    assert found == Operations(STEM + HEAD, 2 * BINARY, BINARY)
    assert found.total_once == STEM + HEAD + BINARY / 64
    assert xnorc.explain(made.model(y), sign_zero=1).packed_operations == Operations(STEM + HEAD, BINARY)


def test_shapes_known_only_after_folding():
    """A Reshape whose target is computed from constants leaves shapes open until those are folded."""
    made = RealNet((2, 12))
    target = made.node("Concat", np.array([2, 3], np.int64), made.node("Neg", np.array([-4], np.int64)), axis=0)
    y = made.node("MatMul", made.node("Reshape", "x", target), made.floats(4, 5))
    model = prepare(made.model(y))
    del model.graph.value_info[:]
    assert of_float_model(model) == Operations(2 * 3 * 4 * 5, 0)


def test_shapes_that_depend_on_data_are_not_guessed():
    made = RealNet((4, 6))
    picked = made.node(
        "Compress", "x", made.node("Cast", made.node("ReduceMax", "x", np.array([1]), keepdims=0), to=9), axis=0
    )
    model = made.model(made.node("ReduceSum", made.node("MatMul", picked, made.floats(6, 5)), keepdims=1))
    assert of_float_model(model) is None and of_packed_model(model) is None


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_an_operator_that_multiplies_says_how_wide_its_factors_are(name):
    """One bit by one bit is the default; an operator that is not called binary says what it multiplies."""
    operator = REGISTRY[name]
    multiplies = operator.macs.__func__ is not Operator.macs.__func__
    said = operator.factor_bits.__func__ is not Operator.factor_bits.__func__ or "factors" in vars(operator)
    assert said or not multiplies or name.startswith("Binary"), (
        f"{name} needs `factors`: the bits of what it multiplies"
    )
