"""Layers of one shape share their machine code."""

from __future__ import annotations

import numpy as np

from tests.lower.harness import run_on_host
from tests.passes.mini import Net
from xnorc import golden, targets
from xnorc.lower.build import lower
from xnorc.model import prepare
from xnorc.passes import optimize


def test_equal_layers_share_a_kernel_and_keep_their_weights():
    net = Net((1, 16, 6, 6))

    def signs(x: str) -> str:
        return net.node("Where", net.node("Greater", x, np.float32(0)), np.float32(1), np.float32(-1))

    x = signs("x")
    for _ in range(3):
        x = signs(net.conv(x, 16, 16, pads=[1, 1, 1, 1]))
    model = net.model(net.conv(x, 16, 24, pads=[1, 1, 1, 1]))
    packed = optimize(prepare(model)).model
    program = lower(packed, targets.get("host"), "m")
    symbols = [call.symbol for step in program.steps for call in step.calls if step.op.startswith("BinaryConv")]
    assert len(symbols) == 4 and len(set(symbols)) == 2 and symbols[0] == symbols[2] != symbols[3]
    used = {call.symbol for step in program.steps for call in step.calls}
    assert {variable.name_hint for variable in program.kernels.functions} == used
    weights = [call.inputs[1] for step in program.steps for call in step.calls if step.op.startswith("BinaryConv")]
    assert len(set(weights)) == 4
    feeds = golden.random_inputs(model)
    expected = golden.run(model, feeds)
    found = run_on_host(packed, feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
