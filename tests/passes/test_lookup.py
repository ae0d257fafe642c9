"""``lookup``: before and after in both forms, and every case that must stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import xnorc
from xnorc.passes import Status

RNG = np.random.default_rng(7)
QUERIES, GROUPS, ENTRIES, DOCUMENTS = 3, 5, 9, 40


def places() -> np.ndarray:
    """Which entry of each table [D, M]."""
    return RNG.integers(0, ENTRIES, (DOCUMENTS, GROUPS))


def model(
    *, flat: bool = False, where: np.ndarray | None = None, axes: int | None = None, extra: bool = False, keepdims: int = 0
) -> onnx.ModelProto:  # fmt: skip
    """Tables → the entries that ``where`` names → their sums. One small number is added first: tables are computed."""
    codes = places() if where is None else where
    constants = {"one": np.float32(1), "axes": np.array([axes if axes is not None else 2 if flat else 1], np.int64)}
    nodes = [helper.make_node("Add", ["x", "one"], ["tables"], "tables")]
    if flat:
        constants["shape"] = np.array([QUERIES, -1], np.int64)
        constants["where"] = codes + np.arange(GROUPS) * ENTRIES if where is None else where
        nodes.append(helper.make_node("Reshape", ["tables", "shape"], ["flat"], "flat"))
        nodes.append(helper.make_node("Gather", ["flat", "where"], ["chosen"], "choose", axis=1))
    else:
        constants["where"] = np.broadcast_to(codes.T, (QUERIES, GROUPS, DOCUMENTS)).copy() if codes.ndim == 2 else codes
        nodes.append(helper.make_node("GatherElements", ["tables", "where"], ["chosen"], "choose", axis=2))
    nodes.append(helper.make_node("ReduceSum", ["chosen", "axes"], ["y"], "sum", keepdims=keepdims))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if extra:
        outputs.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes, "lookup", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [QUERIES, GROUPS, ENTRIES])], outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def ops(found: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in found.graph.node]


@pytest.mark.parametrize("flat", [False, True])
def test_both_forms(flat):
    before = model(flat=flat)
    result = xnorc.optimize(before, check=True)
    assert ops(result.model) == ["Add", "LookupSum"]
    (codes,) = [t for t in result.model.graph.initializer if t.name.endswith("/codes")]
    assert codes.data_type == TensorProto.UINT8 and list(codes.dims) == [DOCUMENTS, GROUPS]
    records = {record.node: record for record in result.records}
    assert records["choose"].status is Status.PACKED and "40 codes of 5 bytes" in records["choose"].reason
    assert records["sum"].status is Status.FUSED
    x = RNG.integers(-99, 99, (QUERIES, GROUPS, ENTRIES)).astype(np.float32)  # integers: every order has one sum
    first, second = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (before, result.model)
    )
    assert (first == second).all()
    validated = xnorc.compile(before, "host").validate("host")
    assert validated.ok, validated.first_difference


def test_places_counted_from_the_end():
    where = np.broadcast_to(places().T, (QUERIES, GROUPS, DOCUMENTS)) - ENTRIES
    result = xnorc.optimize(model(where=where.copy()), check=True)
    assert ops(result.model) == ["Add", "LookupSum"]


STAYS = {
    "places change with the query": {"where": RNG.integers(0, ENTRIES, (QUERIES, GROUPS, DOCUMENTS))},
    "places leave their table": {"flat": True, "where": RNG.integers(0, GROUPS * ENTRIES, (DOCUMENTS, GROUPS))},
    "another axis is summed": {"axes": 2},
    "something else reads the entries": {"extra": True},
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(case):
    assert "LookupSum" not in ops(xnorc.optimize(model(**STAYS[case])).model)
