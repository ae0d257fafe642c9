"""``graph``: a model survives the trip through graphsurgeon whole, and the same graph gives the same bytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from xnorc.errors import ModelError, PassError
from xnorc.model import prepare
from xnorc.opset import DOMAIN
from xnorc.passes.base import Origin, add_node
from xnorc.passes.graph import all_typed, bypass, export_graph, import_graph, infer_types, toposort

from .util import assert_same, parse, structure

TEXT = """g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> {
    [first] a = Mul (x, w)
    [second] s = ai.xnorc.Binarize <zero = 1> (a)
    [third] y = Clip (s, , w0)
}"""


def model() -> onnx.ModelProto:
    built = prepare(parse(TEXT, {"w0": np.float32(0.5)}))
    built.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'features', 'features.0', 'mul']"
    )
    built.metadata_props.add(key="author", value="someone")
    built.producer_name = "pytorch"
    return built


def test_a_round_trip_keeps_structure_metadata_and_opset():
    before = model()
    after = export_graph(*import_graph(before))
    assert structure(after) == structure(before)
    assert {p.key: p.value for p in after.metadata_props}["author"] == "someone"
    props = {p.key: p.value for p in after.graph.node[0].metadata_props}
    assert props == {
        "pkg.torch.onnx.name_scopes": "['', 'features', 'features.0', 'mul']",
        "xnorc.source": "features.0",
    }
    assert after.producer_name == "pytorch"
    assert {item.domain: item.version for item in after.opset_import} == {"": 18, DOMAIN: 1}
    assert [function.name for function in after.functions] == ["Binarize"]
    onnx.checker.check_model(after, full_check=True)


def test_inner_tensors_keep_their_types():
    after = export_graph(*import_graph(model()))
    info = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in after.graph.value_info}
    assert info == {"a": [2, 3], "s": [2, 3]}


def test_the_same_model_gives_the_same_bytes():
    texts = {export_graph(*import_graph(model())).SerializeToString(deterministic=True) for _ in range(3)}
    assert len(texts) == 1


def test_exporting_twice_gives_the_same_bytes():
    graph, ctx = import_graph(model())
    first = export_graph(graph, ctx).SerializeToString(deterministic=True)
    assert export_graph(graph, ctx).SerializeToString(deterministic=True) == first


def test_context_survives_in_the_metadata():
    graph, ctx = import_graph(model())
    ctx.origins["s"] = Origin("a", [0, 1], 3)
    ctx.groups["third"] = "second"
    ctx.renamed["second"] = "first"
    _, again = import_graph(export_graph(graph, ctx))
    assert again.origins == ctx.origins
    assert again.groups == {"third": "second"}
    assert again.renamed == {"second": "first"}
    assert again.source == {"first": "features.0"}


def test_context_lists_the_original_nodes_and_the_names_taken():
    _, ctx = import_graph(model())
    assert list(ctx.original.items()) == [("first", "Mul"), ("second", "Binarize"), ("third", "Clip")]
    assert ctx.fresh("a") == "a_1"
    assert ctx.fresh("first") == "first_1"
    assert ctx.opset == 18


def test_functions_follow_the_opset_of_the_model():
    newer = prepare(parse("g (float[2] x) => (float[2] y) { y = ai.xnorc.Binarize <zero = 0> (x) }", opset=21))
    after = export_graph(*import_graph(newer))
    assert after.functions[0].opset_import[0].version == 21


def test_nodes_keep_their_order_and_new_ones_come_just_before_their_reader():
    graph, ctx = import_graph(
        prepare(parse("g (float[2] x) => (float[2] y, float[2] z) { y = Sin (x)\n z = Cos (x) }"))
    )
    sin = graph.nodes[0]
    sin.inputs = [add_node(graph, ctx, "Neg", [sin.inputs[0]], stands_for=sin, shape=[2], dtype=np.float32)]
    after = export_graph(graph, ctx)
    assert [node.op_type for node in after.graph.node] == ["Neg", "Sin", "Cos"]
    props = {p.key: p.value for p in after.graph.node[0].metadata_props}
    assert props["xnorc.for"] == "Sin_0"


def test_a_cycle_is_an_error_that_names_a_node():
    graph, _ = import_graph(prepare(parse("g (float[2] x) => (float[2] y) { a = Sin (x)\n y = Cos (a) }")))
    graph.nodes[0].inputs = [graph.nodes[1].outputs[0]]
    with pytest.raises(PassError, match=r"cycle through node '(Sin_0|Cos_1)'"):
        toposort(graph)


def test_two_tensors_of_one_name_are_an_error():
    graph, ctx = import_graph(prepare(parse("g (float[2] x) => (float[2] y) { a = Sin (x)\n y = Cos (a) }")))
    graph.nodes[1].inputs = [gs.Constant("x", np.zeros(2, np.float32))]
    graph.nodes[1].outputs = list(graph.nodes[1].outputs)
    graph.nodes.append(gs.Node("Neg", "n", inputs=[graph.inputs[0]], outputs=[gs.Variable("b", np.float32, [2])]))
    with pytest.raises(PassError, match="two tensors are named 'x'"):
        export_graph(graph, ctx)


def test_functions_that_were_not_inlined_are_refused():
    proto = model()
    function = proto.functions.add()
    function.name, function.domain = "F", "other"
    with pytest.raises(ModelError, match=r"'other\.F' was not inlined"):
        import_graph(proto)


def test_bypass_refuses_to_join_input_and_output():
    graph, _ = import_graph(prepare(parse("g (float[2] x) => (float[2] y) { y = Identity (x) }")))
    assert not bypass(graph, graph.nodes[0], graph.inputs[0])
    assert len(graph.nodes) == 1


def test_subgraphs_survive():
    text = """g (bool c, float[2] x) => (float[2] y) {
        b = Neg (x)
        y = If (c) <
            then_branch = t () => (float[2] p) { p = Add (x, b) },
            else_branch = e () => (float[2] q) { q = Sub (x, b) }
        >
    }"""
    before = prepare(parse(text))
    after = export_graph(*import_graph(before))
    assert [node.op_type for node in after.graph.node] == ["Neg", "If"]
    onnx.checker.check_model(after, full_check=True)


def test_shapes_are_inferred_after_an_edit():
    graph, ctx = import_graph(prepare(parse("g (float[2,3] x) => (float[3,2] y) { a = Sin (x)\n y = Transpose (a) }")))
    graph.nodes[0].outputs[0].shape = None
    assert not all_typed(graph)
    infer_types(graph, ctx)
    assert graph.nodes[0].outputs[0].shape == [2, 3]


def test_optional_inputs_stay_where_they_are():
    before = model()
    assert_same(before, export_graph(*import_graph(before)))
