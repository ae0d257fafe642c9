"""Signs that can be zero: the second pass over a layer is skipped where no sign is zero, and every result stays exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from xnorc import golden, targets
from xnorc.lower.build import compile_model
from xnorc.model import prepare
from xnorc.passes import optimize

from .harness import run_emulated, run_on_host

Run = Callable[[onnx.ModelProto, dict[str, np.ndarray]], dict[str, np.ndarray]]


def network(
    shape: tuple[int, ...], out: int, kernel: int, stride: int, pad: int, group: int, seed: int
) -> onnx.ModelProto:
    """``y = conv(sign(x)) · s`` (or a product of rows, for two axes), with weights of ±1."""
    rng = np.random.default_rng(seed)
    dims = ",".join(map(str, shape))
    scale = rng.uniform(0.1, 2.0, (out, 1, 1) if len(shape) == 4 else (out,)).astype(np.float32)
    if len(shape) == 4:
        w = rng.choice([-1.0, 1.0], (out, shape[1] // group, kernel, kernel)).astype(np.float32)
        layer = f"Conv <strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}], group={group}> (b, w)"
    else:
        w, layer = rng.choice([-1.0, 1.0], (shape[-1], out)).astype(np.float32), "MatMul (b, w)"
    body = f"b = Sign (x)\n c = {layer}\n y = Mul (c, s)"
    result = "N,C,H,W" if len(shape) == 4 else "N,C"
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{dims}] x) => (float[{result}] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(scale, "s")])
    return prepare(model)


def values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Images (or quarters of the rows) with no zero, one zero, some negative zeros, nothing but zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    _, one, some, every = np.array_split(x, 4)
    one.flat[rng.integers(one.size)] = 0
    some[rng.random(some.shape) < 0.1] = -0.0
    every[:] = 0
    assert np.count_nonzero(x) < x.size
    return x


CASES = {
    "3x3": ((4, 64, 13, 12), 40, 3, 1, 1, 1),
    "many tasks": ((4, 32, 24, 24), 64, 3, 1, 1, 1),
    "stride and odd channels": ((4, 20, 11, 9), 9, 3, 2, 1, 1),
    "1x1": ((4, 48, 9, 8), 24, 1, 1, 0, 1),
    "groups": ((4, 32, 8, 8), 16, 3, 1, 1, 4),
    "rows": ((40, 100), 33, 1, 1, 0, 1),
    "few rows": ((4, 256), 64, 1, 1, 0, 1),
}


def check(run: Run, case: str, seed: int) -> None:
    model = network(*CASES[case], seed)
    feeds = {"x": values(CASES[case][0], seed + 1)}
    assert np.array_equal(run(optimize(model).model, feeds)["y"], golden.run(model, feeds)["y"])


def test_the_second_step_reads_the_first_plane() -> None:
    built = compile_model(optimize(network(*CASES["3x3"], 0)).model, targets.get("host"), "model")
    first, second = (step for step in built.manifest["steps"] if step["op"].startswith("Binary"))
    assert first["reads"][0] in second["reads"] and first["writes"][0] in second["reads"]
    assert first["macs"] and not second["macs"]


@pytest.mark.parametrize("case", CASES)
def test_on_host(case: str) -> None:
    check(run_on_host, case, 3)


@pytest.mark.parametrize("case", ["3x3", "groups", "rows"])
@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_on_emulated_pis(target: str, case: str) -> None:
    check(lambda model, feeds: run_emulated(model, feeds, target), case, 5)
