"""Binary attention from the model to the machine: every form of mask and choice, exactly as ONNX Runtime has it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lower.harness import run_emulated, run_on_host
from tests.passes.attention import Attention
from tests.passes.mini import inputs
from xnorc.golden import run
from xnorc.model import prepare
from xnorc.passes import optimize


def models():
    """Masks that are added at run time, and the keys near the largest probability."""
    for form in ("mask", "softmax", "floats"):
        net = Attention(tokens=11, heads=3, size=16)
        q, k, v = net.operands(0 if form == "mask" else 1)
        scores = net.scores(q, k)
        if form == "mask":
            keys = net.node("ReduceSum", "x", np.array([2]), keepdims=0)
            hidden = net.node("Mul", net.node("Cast", net.node("Greater", keys, np.float32(1)), to=1), np.float32(-1e4))
            scores = net.node("Add", scores, net.node("Unsqueeze", hidden, np.array([1, 2])))
            chosen = net.node("Greater", scores, np.float32(0))
        else:
            p = net.node("Softmax", scores, axis=-1)
            largest = net.node("ReduceMax", p, np.array([-1]))
            chosen = net.node("GreaterOrEqual", p, net.node("Mul", largest, np.float32(0.25)))
        bits = net.node("Cast", chosen, to=1)
        if form == "floats":  # integers, so that the order of a sum makes no difference
            v = net.node("Round", net.node("Mul", net.split("x"), np.float32(8)))
        yield form, net, net.model(net.linear(net.join(net.node("MatMul", bits, v))))


@pytest.mark.parametrize("target", ["host", "rpi4"])
def test_attention_on_a_machine(target):
    for form, net, model in models():
        packed = optimize(prepare(model)).model
        own = {node.op_type for node in packed.graph.node if node.domain}
        assert ("SignMatMul" if form == "floats" else "BinaryAttention") in own
        feeds = {"x": inputs(net.shape, 5)}
        (expected,) = run(model, feeds).values()
        (got,) = (run_on_host(packed, feeds) if target == "host" else run_emulated(packed, feeds, target)).values()
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)
