"""Every standard operator that xnorc claims, compiled for the host, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from xnorc import golden, targets
from xnorc.errors import UnsupportedError
from xnorc.lower.build import lower

from .float_cases import float_cases, merged
from .harness import run_emulated, run_on_host

CASES = float_cases()


IDS = [f"{i}-{c.op}" for i, c in enumerate(CASES)]


@pytest.fixture(scope="module")
def model():
    return merged(CASES)


@pytest.fixture(scope="module")
def expected(model):
    return golden.run(*model)


@pytest.fixture(scope="module")
def on_host(model):
    return run_on_host(*model)


@pytest.fixture(scope="module")
def on_rpi4(model):
    return run_emulated(*model, "rpi4")


@pytest.fixture(scope="module")
def on_rpi2(model):
    return run_emulated(*model, "rpi2")


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_operator(index, on_host, expected):
    compare(index, on_host, expected)


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_operator_on_emulated_rpi4(index, on_rpi4, expected):
    compare(index, on_rpi4, expected)


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_operator_on_emulated_rpi2(index, on_rpi2, expected):
    compare(index, on_rpi2, expected)


def compare(index, results, references):
    case = CASES[index]
    for k in range(case.outputs):
        got, expected = results[f"y{index}_{k}"], references[f"y{index}_{k}"]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        if got.dtype.kind != "f" or case.tolerance == 0:
            np.testing.assert_array_equal(got, expected)
        else:
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(got, expected, rtol=0, atol=case.tolerance * scale)


def test_what_cannot_be_lowered_names_node_operator_and_reason():
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="volume")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedError, match=r"node 'volume' \(Det\) cannot be lowered: xnorc has no lowering"):
        lower(onnx.shape_inference.infer_shapes(model), targets.get("host"), "m")
