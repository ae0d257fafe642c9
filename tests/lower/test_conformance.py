"""ONNX's own node tests: nothing that xnorc compiles may be wrong, nothing that it refuses may crash."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.shape_inference import infer_shapes

from xnorc import golden, targets
from xnorc.errors import UnsupportedError
from xnorc.lower.build import lower

from .conformance import ROOT, introduction, measure, table
from .conformance_cases import node_forms
from .harness import run_on_host


@pytest.mark.slow
def test_no_node_case_is_wrong_and_the_table_is_up_to_date():
    outcomes = measure()
    assert [(outcome.case, outcome.wrong) for outcome in outcomes if outcome.wrong] == []
    assert [outcome.case for outcome in outcomes if not outcome.passed and not outcome.reason] == []
    stored = (ROOT / "docs" / "conformance.md").read_text()
    if not stored.startswith(introduction()):
        pytest.skip("the table was made with another version of ONNX or ONNX Runtime")
    assert table(outcomes) == stored


@pytest.mark.slow
@pytest.mark.parametrize("names", ["test_clip", "test_softplus", "test_lstm"])
def test_some_node_cases(names):
    outcomes = measure(names)
    assert outcomes
    assert not any(outcome.wrong for outcome in outcomes)
    assert any(outcome.passed for outcome in outcomes) == (names != "test_lstm")


def test_constants_keep_element_type_and_rank():
    nodes = [helper.make_node("Add", ["x", "c"], ["y"], name="a"), helper.make_node("Identity", ["c"], ["z"], name="i")]
    feeds = {"x": np.array([1, 2], np.int64)}
    constants = {"c": np.array(2**40, np.int64)}
    model = infer_shapes(golden.small_model(nodes[:1], feeds, ["y"], initializers=constants))
    np.testing.assert_array_equal(run_on_host(model, feeds)["y"], [2**40 + 1, 2**40 + 2])
    scalar = infer_shapes(golden.small_model(nodes, feeds, ["y", "z"], initializers=constants))
    assert run_on_host(scalar, feeds)["z"].shape == ()


@pytest.mark.parametrize(
    ("op", "outputs", "attrs", "reason"),
    [
        ("MaxPool", ["y", "places"], {"kernel_shape": [2]}, "its output 'places' is not computed"),
        ("BatchNormalization", ["y", "m", "v"], {"training_mode": 1}, "training_mode is set"),
        ("NonZero", ["y"], {}, "the shape of 'y' depends on data"),
    ],
)
def test_what_is_not_claimed_is_refused(op, outputs, attrs, reason):
    feeds = {"x": np.ones((1, 2, 4), np.float32)}
    parameters = [f"p{i}" for i in range(4)] if op == "BatchNormalization" else []
    node = helper.make_node(op, ["x", *parameters], outputs, name="n", **attrs)
    constants = dict.fromkeys(parameters, np.ones(2, np.float32))
    model = infer_shapes(golden.small_model([node], feeds, outputs, initializers=constants))
    with pytest.raises(UnsupportedError, match=reason):
        lower(model, targets.get("host"), "m")


def test_a_tensor_of_unknown_shape_is_refused():
    form = node_forms("test_group_normalization_example_expanded")[0]
    assert form.model is not None
    with pytest.raises(UnsupportedError, match="is no tensor at run time"):
        lower(form.model, targets.get("host"), "m")
