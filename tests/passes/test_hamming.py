"""``hamming``: before and after, ties as ONNX Runtime breaks them, and every case that must stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xnorc import golden
from xnorc.model import prepare
from xnorc.passes import Options, Status, optimize

RNG = np.random.default_rng(4)


def search(chain=(), *, zero=1, k=5, documents=30, bits=12, largest=1, extra=False, axis=-1) -> onnx.ModelProto:
    """sign(x) @ codes.T → chain of (op, constant) → TopK. Few bits and many documents: nearly all is ties."""
    codes = np.where(RNG.integers(0, 2, (bits, documents)), 1, -1).astype(np.float32)
    constants = {"codes": codes, "k": np.array([k], np.int64), "zero": np.float32(0), "one": np.float32(1)}
    constants["minus"] = np.float32(-1)
    compare = {1: "GreaterOrEqual", -1: "Greater"}
    nodes = [helper.make_node("Sign", ["x"], ["s"], "sign")] if zero == 0 else [
        helper.make_node(compare[zero], ["x", "zero"], ["c"], "compare"),
        helper.make_node("Where", ["c", "one", "minus"], ["s"], "sign"),
    ]  # fmt: skip
    nodes.append(helper.make_node("MatMul", ["s", "codes"], ["p"], "scores"))
    last = "p"
    for i, (op, value) in enumerate(chain):
        constants[f"v{i}"] = np.asarray(value, np.float32)
        nodes.append(helper.make_node(op, [last, f"v{i}"], [f"t{i}"], f"chain{i}"))
        last = f"t{i}"
    nodes.append(helper.make_node("TopK", [last, "k"], ["values", "indices"], "topk", largest=largest, axis=axis))
    shape = [4, k] if axis == -1 else [k, documents]
    outputs = [("values", TensorProto.FLOAT, shape), ("indices", TensorProto.INT64, shape)]
    if extra:
        outputs.append(("p", TensorProto.FLOAT, [4, documents]))
    graph = helper.make_graph(
        nodes, "search", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, bits])],
        [helper.make_tensor_value_info(*out) for out in outputs],
        initializer=[numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def compile_both(model: onnx.ModelProto, **options: int) -> tuple[list[str], dict[str, object]]:
    given = prepare(model)
    result = optimize(given, Options(**options), check=not options)
    feeds = {"x": RNG.integers(-3, 4, (4, 12)).astype(np.float32)}
    if options:
        feeds["x"][feeds["x"] == 0] = 1
    expected, found = golden.run(given, feeds), golden.run(result.model, feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    records = {record.node: record for record in result.records}
    return [node.op_type for node in result.model.graph.node], records


@pytest.mark.parametrize("zero", [1, -1])
@pytest.mark.parametrize(
    "chain", [(), (("Mul", 0.25),), (("Div", 3.0), ("Add", 0.1)), (("Sub", -2.0), ("Mul", [[7.0]]))], ids=len
)
def test_becomes_a_search(zero: int, chain) -> None:
    ops, records = compile_both(search(chain, zero=zero))
    assert ops[:2] == ["Pack", "HammingTopK"] and not {"BinaryGemm", "TopK"} & set(ops)
    assert records["topk"].status is records["scores"].status is Status.PACKED
    assert records["scores"].reason == "a search by Hamming distance: 30 codes of 12 bits"


def test_all_documents_in_order() -> None:
    assert "HammingTopK" in compile_both(search(k=30))[0]


def test_three_valued_signs_stay_unless_zero_is_given_a_sign() -> None:
    model = search(zero=0)
    ops, records = compile_both(model)
    assert "TopK" in ops and "--sign-zero" in records["topk"].reason
    assert "HammingTopK" in compile_both(model, sign_zero=1)[0]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (search(largest=0), "a search takes the largest"),
        (search(axis=0, k=3), "along another axis"),
        (search(extra=True), "something else reads"),
        (search((("Mul", -1.0),)), "do not rise strictly"),
        (search((("Mul", 0.0),)), "do not rise strictly"),
        (search((("Add", 1e9),)), "do not rise strictly"),
        (search((("Mul", np.linspace(1, 2, 30)),)), "treats documents differently"),
    ],
    ids=["smallest", "axis", "read twice", "falling", "flat", "absorbed", "weighted"],
)
def test_stays(model: onnx.ModelProto, reason: str) -> None:
    ops, records = compile_both(model)
    assert "TopK" in ops and "HammingTopK" not in ops
    assert reason in records["topk"].reason
