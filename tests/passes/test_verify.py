"""``verify``: every way in which a packed graph can be wrong is found and named."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from xnorc.errors import ModelError
from xnorc.passes.verify import check_packed, verify

from .util import parse

TEXT = """g (float[1,10,5,5] x) => (float[1,3,3,3] y) {
    [pack] p = ai.xnorc.Pack <perm = [0, 2, 3, 1], strict = 0> (x, t, f)
    [conv] a = ai.xnorc.BinaryConv <channels = 10, group = 1, strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0],
        pad_value = 0> (p, w)
    [back] b = Transpose <perm = [0, 3, 1, 2]> (a)
    [cast] y = Cast <to = 1> (b)
}"""


def model() -> onnx.ModelProto:
    weight = np.random.default_rng(0).integers(0, 256, (3, 3, 3, 2)).astype(np.uint8)
    weight[..., 1] &= 3
    constants = {"t": np.zeros(10, np.float32), "f": np.zeros(10, np.uint8), "w": weight}
    built = parse(TEXT, constants)
    for name, dtype, shape in (("p", 2, [1, 5, 5, 2]), ("a", 6, [1, 3, 3, 3]), ("b", 6, [1, 3, 3, 3])):
        built.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))
    return built


def replace(built: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    for tensor in built.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))


def constant(built: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t).copy() for t in built.graph.initializer if t.name == name)


def test_a_good_model_has_no_problems():
    assert verify(model()) == []
    check_packed(model())


def flip_of_two(built):
    replace(built, "f", np.full(10, 2, np.uint8))


def nan_threshold(built):
    replace(built, "t", np.full(10, np.nan, np.float32))


def short_threshold(built):
    replace(built, "t", np.zeros(9, np.float32))


def tail_bit(built):
    weight = constant(built, "w")
    weight[0, 0, 0, 1] |= 4
    replace(built, "w", weight)


def missing_attribute(built):
    del built.graph.node[0].attribute[:1]


def extra_attribute(built):
    built.graph.node[0].attribute.append(helper.make_attribute("axis", 1))


def wrong_kind_of_attribute(built):
    for attr in built.graph.node[1].attribute:
        if attr.name == "group":
            attr.CopyFrom(helper.make_attribute("group", [1]))


def wrong_declared_shape(built):
    built.graph.value_info[1].type.tensor_type.shape.dim[1].dim_value = 4


def wrong_declared_dtype(built):
    built.graph.value_info[0].type.tensor_type.elem_type = onnx.TensorProto.INT8


def no_declared_shape(built):
    del built.graph.value_info[1]


def unknown_operator(built):
    built.graph.node[0].op_type = "Zip"


def too_many_inputs(built):
    built.graph.node[1].input.append("t")


def dangling_input(built):
    built.graph.node[2].input[0] = "nothing"


def defined_twice(built):
    built.graph.node[2].output[0] = "a"


def not_sorted(built):
    nodes = list(built.graph.node)[::-1]
    del built.graph.node[:]
    built.graph.node.extend(nodes)


def same_node_name(built):
    built.graph.node[2].name = "conv"


def output_not_computed(built):
    built.graph.output[0].name = "z"


def variable_weight(built):
    built.graph.input.append(helper.make_tensor_value_info("v", onnx.TensorProto.UINT8, [3, 3, 3, 2]))
    built.graph.node[1].input[1] = "v"


def foreign_body(built):
    built.functions[0].node[0].op_type = "Neg"


def missing_body(built):
    del built.functions[0]


def group_of_nobody(built):
    built.graph.node[3].metadata_props.add(key="xnorc.group", value="nobody")


def origin_of_nothing(built):
    built.metadata_props.add(key="xnorc.origins", value='{"q": {"tensor": "x", "perm": [0], "channels": 1}}')


def damaged_origins(built):
    built.metadata_props.add(key="xnorc.origins", value='{"q": ')


PROBLEMS = [
    (flip_of_two, "'pack'.*flip is neither 0 nor 1"),
    (nan_threshold, "'pack'.*NaN"),
    (short_threshold, "'pack'.*threshold"),
    (tail_bit, "'conv'.*past the 10 channels"),
    (missing_attribute, "'pack'.*expected"),
    (extra_attribute, "'pack'.*axis"),
    (wrong_kind_of_attribute, "'conv'.*'group' must be int"),
    (wrong_declared_shape, "'conv'.*'a' is declared"),
    (wrong_declared_dtype, "'pack'.*'p' is declared"),
    (no_declared_shape, "'conv'.*'a'"),
    (unknown_operator, "'pack'.*no operator"),
    (too_many_inputs, "'conv'.*has 3 inputs"),
    (dangling_input, "'back' reads 'nothing'"),
    (defined_twice, "'a' is defined twice"),
    (not_sorted, "reads 'b'"),
    (same_node_name, "two nodes are named 'conv'"),
    (output_not_computed, "output 'z' is not computed"),
    (variable_weight, "'conv'.*'w' is not constant"),
    (foreign_body, "body of ai.xnorc.BinaryConv"),
    (missing_body, "body of ai.xnorc.BinaryConv"),
    (group_of_nobody, "group of 'nobody'"),
    (origin_of_nothing, "unknown tensor 'q'"),
    (damaged_origins, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), PROBLEMS, ids=[damage.__name__ for damage, _ in PROBLEMS])
def test_problem_is_found_and_named(damage, message):
    built = model()
    damage(built)
    problems = verify(built)
    assert any(re.search(message, problem) for problem in problems), problems
    with pytest.raises(ModelError) as caught:
        check_packed(built)
    assert "\n" not in str(caught.value)


def test_gemm_weights_with_more_bits_than_count():
    text = "g (uint8[1,2] p) => (int32[1,1] y) { [g] y = ai.xnorc.BinaryGemm <k = 9> (p, w) }"
    built = parse(text, {"w": np.full((1, 2), 255, np.uint8)})
    assert any("16 bit columns" in problem for problem in verify(built))
