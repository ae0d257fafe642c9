"""Every operator: its ONNX function body in ONNX Runtime equals its NumPy reference, and shapes are inferred right."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from xnorc.errors import ModelError
from xnorc.opset import DOMAIN, IR_VERSION, REGISTRY, TensorType, functions

from .cases import cases

CASES = list(cases())


def run_function(name: str, attrs: dict, inputs: list[np.ndarray], opset: int = 18) -> np.ndarray:
    op = REGISTRY[name]
    names = [f"in{i}" for i in range(len(inputs))]
    node = helper.make_node(name, names, ["out"], domain=DOMAIN, **attrs)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    out = op.infer([TensorType.of(a) for a in inputs], attrs)
    output = helper.make_tensor_value_info("out", helper.np_dtype_to_tensor_dtype(out.dtype), out.shape)
    model = helper.make_model(
        helper.make_graph([node], name, values, [output]),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=functions([name], opset),
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize(("name", "attrs", "inputs"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_function_body_equals_reference(name, attrs, inputs):
    expected = REGISTRY[name].reference(inputs, attrs)
    inferred = REGISTRY[name].infer([TensorType.of(a) for a in inputs], attrs)
    assert (expected.shape, expected.dtype) == (inferred.shape, inferred.dtype)
    np.testing.assert_array_equal(run_function(name, attrs, inputs), expected)


@pytest.mark.parametrize("opset", [19, 21, 23])
def test_function_bodies_mean_the_same_in_newer_opsets(opset):
    for name, attrs, inputs in [CASES[0], CASES[14], CASES[19], CASES[22], CASES[27], CASES[-1]]:
        np.testing.assert_array_equal(run_function(name, attrs, inputs, opset), REGISTRY[name].reference(inputs, attrs))


def test_every_operator_has_cases():
    assert {name for name, _, _ in CASES} == set(REGISTRY)


def test_attributes_are_checked():
    with pytest.raises(ModelError, match="expected"):
        REGISTRY["Binarize"].check_attributes({}, "n")
    with pytest.raises(ModelError, match="must be list"):
        REGISTRY["Pack"].check_attributes({"perm": 3, "strict": 0}, "n")
