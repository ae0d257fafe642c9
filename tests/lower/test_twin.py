"""Signs that can be zero: the second pass over a layer is skipped where no sign is zero, and every result stays exact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnorc import golden, targets
from xnorc.lower.build import compile_model
from xnorc.model import prepare
from xnorc.passes import optimize

from .harness import run_emulated, run_on_host

ZEROS = ("none", "one", "some", "all")


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


def values(shape: tuple[int, ...], zeros: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    if zeros == "one":
        x.flat[rng.integers(x.size)] = 0
    elif zeros == "some":
        x[rng.random(shape) < 0.1] = -0.0
    elif zeros == "all":
        x[:] = 0
    return x


CASES = {
    "3x3": ((1, 64, 13, 12), 40, 3, 1, 1, 1),
    "many tasks": ((1, 32, 40, 40), 64, 3, 1, 1, 1),
    "stride and odd channels": ((2, 20, 11, 9), 9, 3, 2, 1, 1),
    "1x1": ((1, 48, 9, 8), 24, 1, 1, 0, 1),
    "groups": ((1, 32, 8, 8), 16, 3, 1, 1, 4),
    "rows": ((40, 100), 33, 1, 1, 0, 1),
    "one row": ((1, 256), 64, 1, 1, 0, 1),
}


def check(run, case: str, zeros: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    model = network(*CASES[case], seed)
    feeds = {"x": values(CASES[case][0], zeros, seed + 1)}
    found = run(optimize(model).model, feeds)["y"]
    assert np.array_equal(found, golden.run(model, feeds)["y"])


@pytest.mark.parametrize("case", CASES)
def test_the_second_step_reads_the_first_plane(case: str) -> None:
    built = compile_model(optimize(network(*CASES[case], 0)).model, targets.get("host"), "model")
    first, second = (step for step in built.manifest["steps"] if step["op"].startswith("Binary"))
    assert first["reads"][0] in second["reads"] and first["writes"][0] in second["reads"]
    assert first["macs"] and not second["macs"]


@pytest.mark.parametrize("zeros", ZEROS)
@settings(max_examples=3, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), seed=st.integers(0, 2**16))
def test_on_host(zeros: str, case: str, seed: int) -> None:
    check(run_on_host, case, zeros, seed)


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
@pytest.mark.parametrize(
    ("case", "zeros"), [("3x3", "none"), ("many tasks", "one"), ("rows", "some"), ("groups", "none")]
)
def test_on_emulated_pis(target: str, case: str, zeros: str) -> None:
    check(lambda model, feeds: run_emulated(model, feeds, target), case, zeros, 5)
