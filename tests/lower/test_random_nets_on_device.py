"""Random binary networks from plain ONNX to machine code: the device gives exactly what ONNX Runtime gives.

The networks of ``tests/passes/test_random_nets.py`` have no float convolution, so no rounding may differ anywhere.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.mini import compiled, inputs
from tests.passes.test_random_nets import Walk
from xnorc import golden

from .harness import run_emulated, run_on_host


def random_net(seed: int):
    walk = Walk(seed)
    for _ in range(int(walk.rng.integers(2, 6))):
        (walk.residual if walk.chance(0.3) else walk.plain)()
    if walk.chance(0.5):
        walk.classify()
    return compiled(walk.net, walk.y, runs=1).model, inputs(walk.net.shape, seed + 1)


def check(model, feed, run):
    feeds = {model.graph.input[0].name: feed}
    expected, got = golden.run(model, feeds), run(model, feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("seed", range(16))
def test_on_host(seed):
    check(*random_net(seed), run_on_host)


@pytest.mark.parametrize("target", ["rpi4", "rpi2", "rpi3"])
@pytest.mark.parametrize("seed", range(100, 104))
def test_on_emulated_pi(seed, target):
    check(*random_net(seed), lambda model, feeds: run_emulated(model, feeds, target))
