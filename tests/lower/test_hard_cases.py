"""The hard cases of ``tests/passes/test_hard_cases.py`` as machine code: the device gives what ONNX Runtime gives, bit for bit.

Each case is the test of that name there, with one more step at its end: the packed model is compiled and run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.passes import test_hard_cases as hard
from tests.passes.mini import Net, compiled, inputs, same_bits
from xnorc import golden
from xnorc.passes.manager import Optimized

from .harness import run_emulated, run_on_host

CASES: dict[str, Callable[[], Any]] = {
    "gamma below zero": lambda: hard.test_negative_gamma(0),
    "gamma of zero": lambda: hard.test_gamma_of_zero_gives_constant_bits(0),
    "gamma of minus zero": lambda: hard.test_gamma_of_minus_zero(1),
    "zero of the input reaching a sign": lambda: hard.test_zero_reaching_a_sign_that_keeps_it("input"),
    "zero of an accumulator reaching a sign": lambda: hard.test_zero_reaching_a_sign_that_keeps_it("accumulator"),
    "zero of a relu reaching a sign": lambda: hard.test_zero_reaching_a_sign_that_keeps_it("relu"),
    "padding, stride and dilation, 7 by 9": lambda: hard.test_zero_padding_with_stride_and_dilation_at_odd_sizes(
        (7, 9), 0
    ),
    "padding, stride and dilation, 8 by 13": lambda: hard.test_zero_padding_with_stride_and_dilation_at_odd_sizes(
        (8, 13), -1
    ),
    "9 channels": lambda: hard.test_channels_that_fill_no_byte_or_word(9),
    "33 channels": lambda: hard.test_channels_that_fill_no_byte_or_word(33),
    "130 channels": lambda: hard.test_channels_that_fill_no_byte_or_word(130),
    "3 groups": lambda: hard.test_groups(3, 0),
    "depthwise": lambda: hard.test_depthwise_with_zero_padding_where_parity_is_free(0),
    "ties at the threshold": lambda: hard.test_ties_at_the_threshold(0),
    "scale of either sign": lambda: hard.test_scale_of_either_sign("after the sum", 0),
    "scale of either sign in the weights": lambda: hard.test_scale_of_either_sign("in the weights", 1),
    "max-pool before a decreasing chain": lambda: hard.test_max_pool_before_a_decreasing_chain(0),
    "max-pool after a chain of both signs": lambda: hard.test_max_pool_after_a_chain_of_mixed_signs(-1),
    "relu before the threshold": lambda: hard.test_relu_before_the_threshold(0),
    "relu right before the sign": lambda: hard.test_relu_right_before_the_sign(0),
    "residual whose shortcut is used twice": lambda: hard.test_residual_whose_shortcut_is_used_twice(),
    "weights shared by two nodes": lambda: hard.test_weights_shared_by_two_nodes(),
    "one axis, with a pool": lambda: hard.test_conv1d_with_pool(0),
    "flattened with holes in the last byte": lambda: hard.test_gemm_after_flatten_with_holes_in_the_last_byte(10, 0),
    "padding by minus one": lambda: hard.test_explicit_padding(-1.0, "sign", 1),
}

Run = Callable[[onnx.ModelProto, dict[str, np.ndarray]], dict[str, np.ndarray]]


def check(case: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def compiled_and_run(net: Net, *outputs: str, **options: Any) -> Optimized:
        nonlocal compared
        optimized = compiled(net, *outputs, **{**options, "runs": 1})
        feeds = {"x": inputs(net.shape, 7)}
        found = run(optimized.model, feeds)
        for name, value in golden.run(net.model(*outputs), feeds).items():
            assert same_bits(found[name], value), f"'{name}' differs on the device"
            compared += 1
        return optimized

    monkeypatch.setattr(hard, "compiled", compiled_and_run)
    CASES[case]()
    assert compared


@pytest.mark.parametrize("case", CASES)
def test_on_host(case, monkeypatch):
    check(case, run_on_host, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_on_emulated_pi(case, monkeypatch):
    check(case, lambda model, feeds: run_emulated(model, feeds, "rpi4"), monkeypatch)


def test_every_hard_case_runs_on_a_device():
    """A case added there must be added here, unless it says nothing about kernels."""
    named = Path(__file__).read_text()
    about_passes = {
        "test_an_odd_number_of_terms_is_never_zero",
        "test_choosing_the_sign_of_zero_halves_the_work",
        "test_prelu_with_negative_slope_is_not_monotone",
        "test_negative_zero_is_a_zero",
    }
    tests = {name for name in vars(hard) if name.startswith("test_")}
    assert not [name for name in tests - about_passes if f"hard.{name}(" not in named]
