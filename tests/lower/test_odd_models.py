"""Small models of unusual shape: no layer, outputs that are views, several outputs, scalars, other element types."""

from __future__ import annotations

import pytest
from onnx import parser

import xnorc
from xnorc.errors import XnorcError

HEAD = '<ir_version: 10, opset_import: ["" : 18]> g '

GOOD = {
    "no layer at all": "(float[1,4] x) => (float[1,4] y) { y = Identity(x) }",
    "output twice": "(float[1,4] x) => (float[1,4] y, float[1,4] z) { y = Relu(x) z = Identity(y) }",
    "constant output": "(float[1,4] x) => (float[1,4] y, float[2] c) { y = Relu(x) c = Constant<value = float[2] {1,2}>() }",
    "view of the input": "(float[1,4] x) => (float[2,2] y) { s = Constant<value_ints = [2,2]>() y = Reshape(x, s) }",
    "view of an output": """(float[1,4] x) => (float[1,4] y, float[4] f, float[1,4] z)
        { y = Relu(x) s = Constant<value_ints = [4]>() f = Reshape(y, s) z = Exp(y) }""",
    "signs out": "(float[1,4] x) => (float[1,4] y) { y = Sign(x) }",
    "integers": "(int64[1,4] x) => (int64[1,4] y) { y = Add(x, x) }",
    "scalar": "(float[4] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }",
    "two inputs, a bool out": "(float[2,3] a, float[2,3] b) => (float[2,3] y, bool[2,3] z) { y = Mul(a, b) z = Greater(a, b) }",
    "unused input": "(float[1,4] x, float[3] u) => (float[1,4] y) { y = Relu(x) }",
    "batch": "(float[3,4] x) => (float[3,4] y) { y = Softmax(x) }",
}


@pytest.mark.parametrize("name", GOOD)
def test_compiles_and_validates(name):
    package = xnorc.compile(parser.parse_model(HEAD + GOOD[name]), "host", name="m")
    result = package.validate("host")
    assert result.ok, result.first_difference


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_element_types_are_refused_in_one_line(kind):
    model = parser.parse_model(HEAD + f"({kind}[1,4] x) => ({kind}[1,4] y) {{ y = Relu(x) }}")
    with pytest.raises(XnorcError, match=r"input 'x' is float.*export the model in float32"):
        xnorc.compile(model, "host", name="m")
