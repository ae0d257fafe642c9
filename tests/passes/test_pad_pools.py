"""``pad_pools``: a Pad joins the MaxPool behind it where what it pads can never be the maximum."""

from __future__ import annotations

import numpy as np
import pytest

from xnorc.passes.tidy.pad_pools import PadPools

from .util import apply, assert_same, ops, parse

AMOUNTS = np.int64([0, 0, 0, 1, 0, 0, 1, 0])


def graph(before: str, value: float, pool: str = "kernel_shape = [2, 2]", size: str = "3,4"):
    text = f"""g (float[1,2,3,4] x) => (float[1,2,{size}] y)
        {{ a = {before} (x) p = Pad (a, amounts, value) y = MaxPool <{pool}> (p) }}"""
    return parse(text, {"amounts": AMOUNTS, "value": np.float32(value)})


@pytest.mark.parametrize(("before", "value"), [("Relu", 0.0), ("Sigmoid", 0.0), ("Neg", -np.inf)])
def test_padding_that_never_wins_is_the_pools_own(before: str, value: float) -> None:
    model = graph(before, value)
    after, _ = apply(model, PadPools())
    assert ops(after) == [before, "MaxPool"]
    assert_same(model, after)


@pytest.mark.parametrize(
    ("before", "value", "pool", "size"),
    [
        ("Neg", 0.0, "kernel_shape = [2, 2]", "3,4"),  # zero may be the maximum
        ("Relu", 1.0, "kernel_shape = [2, 2]", "3,4"),
        ("Relu", 0.0, "kernel_shape = [1, 2]", "4,4"),  # a window of padding alone
        ("Relu", 0.0, "kernel_shape = [2, 2], pads = [1, 0, 0, 0]", "4,4"),
        ("Relu", 0.0, "kernel_shape = [2, 2], dilations = [2, 2]", "2,3"),
    ],
)
def test_other_padding_stays(before: str, value: float, pool: str, size: str) -> None:
    model = graph(before, value, pool, size)
    after, _ = apply(model, PadPools())
    assert ops(after) == [before, "Pad", "MaxPool"]
