"""The a-priori error bounds: they hold for ONNX Runtime against float64, and they are small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from xnorc import golden
from xnorc.runtimes.bound_rules import contracted
from xnorc.runtimes.bounds import Analysis, weight_errors

from ..lower.float_cases import Case, float_cases, merged
from . import small

RNG = np.random.default_rng(3)


def array(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


CHAIN: list[tuple[str, list[onnx.NodeProto], dict[str, np.ndarray], tuple[int, ...]]] = [
    ("conv", [helper.make_node("Conv", ["x", "a", "b"], ["y"], pads=[1, 1, 1, 1])],
     {"a": array(6, 4, 3, 3), "b": array(6)}, (1, 4, 9, 9)),
    ("two convs", [helper.make_node("Conv", ["x", "a"], ["t"]), helper.make_node("Relu", ["t"], ["r"]),
                   helper.make_node("Conv", ["r", "b"], ["y"], group=2)],
     {"a": array(6, 4, 3, 3), "b": array(8, 3, 2, 2)}, (1, 4, 9, 9)),
    ("gemm", [helper.make_node("Gemm", ["x", "a", "b"], ["y"], alpha=-0.5, beta=2.0)],
     {"a": array(300, 7), "b": array(7)}, (3, 300)),
    ("matmul of two", [helper.make_node("MatMul", ["x", "a"], ["t"]), helper.make_node("Transpose", ["t"], ["u"], perm=[1, 0]),
                       helper.make_node("MatMul", ["t", "u"], ["y"])], {"a": array(50, 40)}, (5, 50)),
    ("einsum", [helper.make_node("Einsum", ["x", "a"], ["t"], equation="qms,mks->qmk"),
                helper.make_node("Einsum", ["t", "b"], ["y"], equation="...k,k")],
     {"a": array(4, 9, 60), "b": array(9)}, (3, 4, 60)),
    ("affine", [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["u"]),
                helper.make_node("Div", ["u", "a"], ["v"]), helper.make_node("Sub", ["v", "x"], ["y"])],
     {"a": array(4, 1, 1), "b": array(4, 1, 1)}, (1, 4, 5, 5)),
    ("pools", [helper.make_node("Mul", ["x", "a"], ["t"]),
               helper.make_node("AveragePool", ["t"], ["u"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
               helper.make_node("MaxPool", ["u"], ["v"], kernel_shape=[2, 2]),
               helper.make_node("GlobalAveragePool", ["v"], ["y"])], {"a": array(4, 1, 1)}, (1, 4, 12, 12)),
    ("prelu", [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("PRelu", ["t", "b"], ["u"]),
               helper.make_node("LeakyRelu", ["u"], ["y"], alpha=0.3)],
     {"a": array(4, 1, 1), "b": array(4, 1, 1)}, (1, 4, 5, 5)),
    ("functions", [helper.make_node("Sigmoid", ["x"], ["t"]), helper.make_node("Exp", ["t"], ["u"]),
                   helper.make_node("Log", ["u"], ["v"]), helper.make_node("Sqrt", ["v"], ["w"]),
                   helper.make_node("Tanh", ["w"], ["y"])], {}, (4, 50)),
    ("erf", [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Erf", ["t"], ["y"])], {"a": array(50)}, (4, 50)),
    ("softmax", [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Softmax", ["t"], ["y"])],
     {"a": array(50, scale=4)}, (4, 50)),
    ("batch norm", [helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"])],
     {"a": array(4), "b": array(4), "c": array(4), "d": np.abs(array(4)) + 0.1}, (1, 4, 5, 5)),
    ("layer norm", [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("LayerNormalization", ["t", "a", "b"], ["y"])],
     {"a": array(64), "b": array(64)}, (5, 64)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("equation", "shapes", "terms"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], 3), ("ij,jk", [(2, 3), (3, 5)], 3), ("...ij,...jk->...ik", [(7, 2, 3), (7, 3, 5)], 3),
        ("bij->b", [(4, 5, 6)], 30), ("i...j,j...->i...", [(2, 9, 9, 3), (3, 9, 9)], 3), ("ii", [(4, 4)], 4),
    ],
)  # fmt: skip
def test_products_that_an_einsum_adds_up(equation: str, shapes: list[tuple[int, ...]], terms: int) -> None:
    assert contracted(equation, shapes) == terms


@pytest.mark.parametrize(("nodes", "constants", "shape"), [case[1:] for case in CHAIN], ids=[case[0] for case in CHAIN])
def test_bounds_hold_and_are_not_idle(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...]
) -> None:
    """ONNX Runtime's float32 lies within the bound of a float64 evaluation, and the bound is small."""
    x = array(*shape)
    model = golden.small_model(nodes, {"x": x}, ["y"], initializers=constants)
    values = small.everything(model, {"x": x})
    bound = Analysis(model).run(values)[0]["y"]
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    exact = ReferenceEvaluator(wide).run(["y"], {"x": x.astype(np.float64)})[0]
    assert exact.dtype == np.float64
    error = np.abs(values["y"] - exact)
    assert (error <= bound).all(), float((error / bound).max())
    assert np.all(bound < 1e-3 * max(1.0, float(np.abs(exact).max()))) and np.isfinite(bound).all()


CASES = [(f"{case.op} {number}", case) for number, case in enumerate(float_cases())]
MORE = [
    ("Sum", Case("Sum", [array(3, 5), array(5), array(3, 1)])),
    ("Mean", Case("Mean", [array(3, 5), array(5), array(3, 1)])),
    ("CumSum", Case("CumSum", [array(3, 40)], [np.int64(1)])),
    ("ReduceL1", Case("ReduceL1", [array(3, 40)], [np.array([1])])),
    ("ReduceL2", Case("ReduceL2", [array(3, 40)], [np.array([1])])),
    ("ReduceSumSquare", Case("ReduceSumSquare", [array(3, 40)], [np.array([1])])),
    ("Resize cubic", Case("Resize", [array(1, 2, 6, 7)], [None, None, np.array([1, 2, 13, 10])], {"mode": "cubic"})),
    ("Celu", Case("Celu", [array(3, 40)])),
]  # fmt: skip


def evaluate_case(case: Case, x: list[np.ndarray], wide: bool) -> list[np.ndarray]:
    """A case in ONNX Runtime in float32, or in the reference evaluator in float64."""
    model, _ = merged([replace(case, inputs=x)])
    names = [output.name for output in model.graph.output]
    feeds = {f"x0_{k}": value for k, value in enumerate(x)}
    if not wide:
        return list(golden.run(model, feeds, names).values())
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        # Scales of a Resize stay: both must take the same numbers.
        if value.dtype == np.float32 and case.op != "Resize":
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float64), tensor.name))
    wider = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in feeds.items()}
    return ReferenceEvaluator(model).run(names, wider)


@pytest.mark.parametrize("case", [case for _, case in CASES + MORE], ids=[name for name, _ in CASES + MORE])
@pytest.mark.parametrize("carried", [0.0, 1e-5], ids=["exact", "carried"])
def test_every_operator_has_a_bound(case: Case, carried: float) -> None:
    """ONNX Runtime's float32 is within the bound of float64, also where its arguments carry an error; bounds are small."""
    model, feeds = merged([case])
    node, y = model.graph.node[0], model.graph.output[0].name
    values = small.everything(model, feeds)
    if values[y].dtype != np.float32:
        return
    analysis = Analysis(model)
    given = {name: carried for name, value in feeds.items() if value.dtype == np.float32}
    bounds = analysis.run(values, given=given if carried else None)[0]
    x = [
        v + np.float32(carried) * RNG.choice(np.array([-0.9, 0, 0.9], np.float32), v.shape)
        if v.dtype == np.float32
        else v
        for v in feeds.values()
    ]
    exact = evaluate_case(case, x, wide=True)
    assert "no bound is known" not in analysis.reason([node], values)
    for output, expected in zip(model.graph.output, exact, strict=True):
        if case.op == "TopK" and expected.dtype == np.int64:
            continue  # places, which another order of near values changes
        assert expected.dtype == np.float64 or case.op == "Cast"
        bound = np.broadcast_to(bounds.get(output.name, 0.0), expected.shape)
        error = np.abs(values[output.name] - expected)
        assert (error <= bound).all(), float((error / np.maximum(bound, 1e-30)).max())
        if node.op_type not in ("Sign", "Floor", "Ceil", "Round", "ThresholdedRelu"):
            silly = 1e-3 if not carried else 2e-2
            assert bound.max(initial=0) <= silly * max(1.0, float(np.abs(expected).max(initial=0)))
            assert carried or np.isfinite(bound).all()


@pytest.mark.parametrize(("opset", "scales"), [(18, 2), (21, 6)])
@pytest.mark.parametrize("carried", [0.0, 1e-5])
def test_group_normalization(opset: int, scales: int, carried: float) -> None:
    """One scale a group before opset 21, one a channel since (ONNX Runtime has no kernel for the former)."""
    x, a, b = array(2, 6, 4, 5), array(scales), array(scales)
    node = helper.make_node("GroupNormalization", ["x", "a", "b"], ["y"], num_groups=2)
    model = golden.small_model([node], {"x": x}, ["y"], opset=opset, initializers={"a": a, "b": b})

    def normalize(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(2, 2, -1)
        rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
        scale, bias = (np.repeat(v, 6 // scales).reshape(6, 1, 1) for v in (a, b))
        return rows.reshape(x.shape) * scale + bias

    y = normalize(x) if opset == 18 else golden.run(model, {"x": x})["y"]
    bound = Analysis(model).run({"x": x, "y": y}, given={"x": carried} if carried else None)[0]["y"]
    exact = normalize(x.astype(np.float64) + carried * RNG.choice([-1, 0, 1], x.shape))
    assert (np.abs(y - exact) <= bound).all() and np.max(bound) < 1e-3


STEPS = [("Sign", [0]), ("Floor", [-1, 0, 1]), ("Ceil", [-1, 0, 1]), ("Round", [-0.5, 0.5]), ("ThresholdedRelu", [1])]


@pytest.mark.parametrize(("op", "steps"), STEPS)
def test_a_jump_is_open_next_to_it_only(op: str, steps: list[float]) -> None:
    e = 1e-4
    x = np.concatenate([np.array(steps, np.float32) + np.float32(d) for d in (0, 5e-5, -5e-5, 0.1, -0.1)])
    model = golden.small_model([helper.make_node(op, ["x"], ["y"])], {"x": x}, ["y"])
    analysis = Analysis(model)
    values = small.everything(model, {"x": x})
    bound = np.broadcast_to(analysis.run(values, given={"x": e})[0]["y"], x.shape)
    near = 3 * len(steps)
    assert (bound[:near] >= 1).all() and (bound[near:] <= e).all()
    assert not np.any(analysis.run(values)[0]["y"]), "an exact argument leaves nothing open"
    for shift in (-e, e):
        moved = golden.run(model, {"x": (x + np.float32(shift)).astype(np.float32)})["y"]
        assert (np.abs(moved - values["y"]) <= bound + 1e-6).all()
    if op == "Sign":
        assert not np.any(Analysis(model, original=True).run(values, given={"x": e})[0]["y"])


def test_integers_are_exact() -> None:
    """Sums of integers below 2^24 do not round; a fraction, an error or a large sum does."""

    def bound(x: np.ndarray, w: np.ndarray, error: float = 0.0) -> np.ndarray:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "t"], ["y"])]
        model = golden.small_model(nodes, {"x": x}, ["y"], initializers={"w": w})
        values = small.everything(model, {"x": x})
        analysis = Analysis(model)
        errors = analysis.run(values, given={"x": error} if error else None)[0]
        if not error:
            exact = not np.any(errors["y"])
            assert ("equality is required" in analysis.reason(nodes, values)) is exact
        return np.asarray(errors["y"])

    x, w = np.rint(array(3, 64, scale=9)), np.sign(array(64, 5))
    assert not bound(x, w).any()
    assert bound(x, w, 1e-6).all()
    assert bound(x + np.float32(0.25), w).all()
    assert bound(x, w * np.float32(0.3)).all()
    assert bound(x * np.float32(2**18), w).any()


def test_errors_of_weights() -> None:
    w = np.where(array(4, 3, 3, 3) > 0, 1, -1).astype(np.float32) * np.array([0.5, 0.3, 0.7, 1], np.float32).reshape(
        4, 1, 1, 1
    )
    assert weight_errors(w, 0) is None, "two levels: nothing is replaced by anything else"
    w[1, 0, 0, 0] = np.nextafter(np.abs(w[1, 0, 0, 0]), np.float32(1))
    error = weight_errors(w, 0)
    assert error is not None and error.shape == w.shape
    assert error[1].min() > 0 and error[1].max() <= 2 * np.spacing(np.float32(0.3)) and not error[[0, 2, 3]].any()
    turned = weight_errors(np.ascontiguousarray(w.transpose(1, 0, 2, 3)), 1)
    np.testing.assert_array_equal(turned, error.transpose(1, 0, 2, 3))
    assert weight_errors(array(4, 3), 0) is None, "not binary: the pass leaves it"


def test_an_operator_without_a_rule_must_be_equal() -> None:
    node = helper.make_node("Hardmax", ["x"], ["y"], "strange")
    x = array(3, 3)
    model = golden.small_model([node], {"x": x}, ["y"])
    analysis = Analysis(model)
    assert not np.any(analysis.run(small.everything(model, {"x": x}))[0]["y"])
    assert "no bound is known for Hardmax" in analysis.reason([node], {"x": x})
