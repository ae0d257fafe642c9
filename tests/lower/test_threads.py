"""Work that is split over threads gives the same bits as work that is not."""

from __future__ import annotations

import numpy as np
import pytest

import xnorc
from tests.passes.mini import RealNet, inputs


@pytest.fixture(scope="module")
def net():
    net = RealNet((1, 64, 28, 28), 7)
    y = net.conv(net.sign("x", 1), 64, 128, pads=[1] * 4)
    y = net.node("PRelu", net.bn(y, 128), np.full((128, 1, 1), 0.25, np.float32))
    y = net.conv(net.sign(y, 1), 128, 96, pads=[1] * 4)
    return net.model(net.node("Relu", y)), inputs(net.shape, 3)


@pytest.mark.parametrize(("target", "device"), [("host", "host"), ("rpi4", "qemu")])
def test_threads_do_not_change_the_result(net, target, device):
    model, x = net
    package = xnorc.compile(model, target, name="threads")
    one = package.run({"x": x}, device=device, threads=1)
    for threads in (2, 3, 4):
        many = package.run({"x": x}, device=device, threads=threads)
        for name, value in one.items():
            np.testing.assert_array_equal(many[name], value)
