"""Random networks of everything at once, from plain ONNX to machine code, validate; threads change no bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xnorc

from .kernel_calls import HOSTS, target_of
from .mixed_nets import Maps, Mixed, Rows


def check(kind: type[Mixed], seed: int, target: str) -> None:
    """Compile one network, some with the user's choices, and validate it."""
    network = kind(seed).grow()
    shape = network.net.shape if network.batch > 1 else network.net.shape[1:]
    options: dict[str, Any] = {}
    if network.chance(0.2):
        options |= {"float_layers": "int8", "calibration": {"x": network.net.floats(8, *shape)}}
    if network.chance(0.15):
        options["shortcuts"] = "float16"
    if network.chance(0.2):
        options["sign_zero"] = 1 if network.chance(0.5) else -1
    chosen, device = target_of(target), "host" if target in HOSTS else "qemu"
    if device == "host":
        chosen = replace(chosen, name="host")  # packages know no other name
    package = xnorc.compile(network.net.model(network.y), chosen, name=f"mixed{seed}", **options)
    x = {"x": network.net.floats(3, *shape)}
    x["x"][network.rng.random(x["x"].shape) < 0.1] = 0
    result = package.validate(device, x)
    assert result.ok, result.first_difference
    if device == "host":
        one, two = (package.run(x, threads=threads) for threads in (1, 2))
        for name, value in one.items():
            np.testing.assert_array_equal(two[name], value)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [Maps, Rows])
@pytest.mark.parametrize("target", HOSTS)
def test_on_host(kind: type[Mixed], seed: int, target: str) -> None:
    check(kind, seed, target)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("kind", [Maps, Rows])
def test_more_on_host(kind: type[Mixed], seed: int) -> None:
    check(kind, seed, "host")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 206))
@pytest.mark.parametrize("kind", [Maps, Rows])
@pytest.mark.parametrize("target", ["rpi4", "rpi5", "rpi2"])
def test_on_emulated_pi(kind: type[Mixed], seed: int, target: str) -> None:
    check(kind, seed, target)
