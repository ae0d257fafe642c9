"""Validation of models whose packed form is another formula: scales in weights, chosen zeros; and of other interfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import xnorc
from tests.passes.mini import RealNet, inputs
from xnorc.errors import InputError
from xnorc.runtimes.device import Mode
from xnorc.runtimes.judge import Golden, Verdict, judge_passes
from xnorc.runtimes.reference import References
from xnorc.runtimes.validate import validate

from . import small
from .small import SmallPackage
from .test_validate_compare import check, step_of, tensor_of


@pytest.fixture(scope="module")
def package() -> SmallPackage:
    return SmallPackage.of(small.build())


# ---- scales in the weights, chosen zeros, other shapes of models ----


def scaled(jitter: int = 0, between: str = "Add") -> onnx.ModelProto:
    """The small network with the scales of its binary layers folded into the weights, up to ``jitter`` ulp apart.

    ``between`` the first of them and its sign: an Add, which leaves no exact ties and becomes a threshold; an Add and a Sin,
    which stay in float; or nothing, so that a sum that should be zero has any sign in the original.
    """
    rng = np.random.default_rng(4)

    def fold(shape: tuple[int, ...]) -> np.ndarray:
        scale = rng.uniform(0.02, 0.3, (shape[0], 1, 1, 1)).astype(np.float32)
        weight = np.where(rng.integers(0, 2, shape) > 0, scale, -scale)
        return weight + (rng.integers(0, jitter + 1, shape) * np.spacing(weight)).astype(np.float32)

    model = small.build(w2=fold((16, 8, 3, 3)), w3=fold((5, 16, 3, 3)), s2=np.ones((16, 1, 1), np.float32))
    graph = model.graph
    scale2 = next(node for node in graph.node if node.name == "scale2_node")
    if between:
        graph.initializer.append(numpy_helper.from_array(np.float32(0.37), "odd"))
        scale2.CopyFrom(helper.make_node("Add", ["conv2", "odd"], ["scaled2"], "scale2_node"))
    if between == "Sin":
        graph.node.insert(
            list(graph.node).index(scale2) + 1, helper.make_node("Sin", ["scaled2"], ["sine"], "sine_node")
        )
        next(node for node in graph.node if node.name == "sign2_greater").input[0] = "sine"
    return model


@pytest.mark.parametrize("jitter", [0, 3])
@pytest.mark.parametrize("between", ["Add", "Sin"])
def test_scales_in_the_weights_have_the_errors_of_both_models(jitter: int, between: str) -> None:
    """Σ(±s) rounds at every term and s·Σ once: the bound is that of both, and no more."""
    original = scaled(jitter, between)
    package = SmallPackage.of(original)
    assert sum(node.op_type == "BinaryConv" for node in package.packed_model.graph.node) >= 2
    result = check(package, layer_samples=12)
    assert result.ok, result.first_difference
    assert all(item.ok for item in result.passes)

    references = References(package)  # type: ignore[arg-type]
    judged = Golden.of(references, {"x": small.data()[0]})
    apart = np.abs(judged.original["conv3"] - judged.packed["conv3"])
    assert apart.max() > 0 and (apart <= judged.between("conv3")).all()
    assert np.max(judged.between("conv3")) < 1e-3 * np.abs(judged.packed["conv3"]).max()
    if jitter:
        assert references._find_weight_errors(judged.original).keys() == {"w2", "w3"}


def test_ties_of_scaled_sums_are_open() -> None:
    """Σ(±s) = ±ε in the original where s·Σ = 0: such a sign flips, with a margin within the bound."""
    result = check(SmallPackage.of(scaled(between="")))
    assert result.ok, result.first_difference
    flipped = next(item for item in result.passes if item.original == "sign2")
    assert flipped.differing > 0 and flipped.max_margin < 1e-5 and flipped.ok


def tied() -> tuple[RealNet, str]:
    """A network, and a ternary convolution in it whose sums are often zero, or would be if they did not round."""
    net = RealNet((1, 8, 9, 7))
    ternary = (net.rng.integers(-1, 2, (8, 8, 3, 3)) * np.float32(0.0875)).astype(np.float32)
    y = net.node("Conv", net.sign("x"), ternary, name="conv", pads=[1] * 4)
    return net, y


def flattened(net: RealNet, y: str, zero: int) -> tuple[str, str, int]:
    """``y`` ``[1, 8, 9, 7]``, its signs behind a move, and the rows to multiply: moved signs, rows of signs, their length."""
    signs = net.sign(net.node("Flatten", y), zero)
    return signs, signs, 504


def padded(net: RealNet, y: str, zero: int) -> tuple[str, str, int]:
    """A padding, with zeros, in front of the sign of a convolution."""
    signs = net.sign(net.node("Pad", y, net.const(np.int64([0, 0, 1, 0, 0, 0, 2, 1]))), zero)
    return signs, net.sign(net.node("Flatten", net.conv(signs, 8, 8, name="behind"))), 8 * 10 * 6


def joined(net: RealNet, y: str, zero: int) -> tuple[str, str, int]:
    """Heads of an attention, joined in front of the sign."""
    rows = net.node("Reshape", y, net.const(np.int64([1, 8, 63, 1])))
    ones = net.node("Cast", net.node("GreaterOrEqual", rows, np.float32(0.1)), to=onnx.TensorProto.FLOAT)
    product = net.node("MatMul", net.node("Transpose", ones, perm=[0, 1, 3, 2]), rows)
    heads = net.node("Transpose", net.node("MatMul", rows, product), perm=[0, 2, 1, 3])
    signs = net.sign(net.node("Reshape", heads, net.const(np.int64([1, 63, 8]))), zero)
    return signs, net.sign(net.node("Flatten", net.node("MatMul", signs, net.signs(8, 8)))), 504


@pytest.mark.parametrize("weights", [(-1, 1), (-1, 0, 1, 2)])
@pytest.mark.parametrize("sign_zero", [None, 1])
@pytest.mark.parametrize("zero", [1, 0])
@pytest.mark.parametrize("moved", [flattened, padded, joined])
def test_ties_in_front_of_moves_are_open(
    moved: Callable[[RealNet, str, int], tuple[str, str, int]], zero: int, sign_zero: int | None, weights: tuple[int, ...]
) -> None:  # fmt: skip
    """The passes take signs before their tensor is flattened, padded or joined; they are held against those behind it."""
    net, y = tied()
    signs, rows, count = moved(net, y, zero)
    product = net.node("Gemm", rows, net.rng.choice(np.float32(weights), (30, count)), transB=1)
    y = net.node("Gemm", net.sign(product), net.signs(5, 30), transB=1)
    result = xnorc.compile(net.model(y), "host", sign_zero=sign_zero).validate("host", {"x": inputs((6, 8, 9, 7), 3)})
    assert result.ok, result.first_difference
    found = [item for item in result.passes if item.original == signs]
    assert found and all(item.ok for item in found)
    assert sum(item.differing for item in found) > 0 and max(item.max_margin for item in found) < 1e-5


def test_ties_of_joined_heads_are_open_where_signs_stay_in_float() -> None:
    """The sign is taken before the heads are joined, but a layer of float weights reads it."""
    net, y = tied()
    signs, _, _ = joined(net, y, 1)
    model = net.model(net.node("MatMul", signs, net.floats(8, 5)))
    package = xnorc.compile(model, "host")
    result = package.validate("host", {"x": inputs((6, 8, 9, 7), 3)})
    assert result.ok, result.first_difference
    assert signs in References(package).signs


def test_ties_of_zero_and_one_are_open_where_they_stay_in_float() -> None:
    """The sign of a ReLU, which a layer of float weights reads."""
    net, y = tied()
    signs = net.node("Sign", net.node("Relu", y))
    model = net.model(net.node("Conv", signs, net.floats(5, 8, 3, 3)))
    package = xnorc.compile(model, "host")
    references, x = References(package), inputs((6, 8, 9, 7), 3)
    result = package.validate("host", {"x": x})
    assert result.ok, result.first_difference
    assert references.signs[signs] == (y,)
    judged = Golden.of(references, {"x": x[:1]})
    assert (judged.original[signs] != judged.packed[signs]).any()
    judged.packed[signs][judged.original[y] > 0.05] = 0  # no tie
    assert not judge_passes(references, judged).ok


def test_a_choice_of_sign_zero_is_none_for_zero_and_one() -> None:
    """Attention by comparison has zeros that are no signs."""
    net = RealNet((1, 4, 6, 16))
    flags = net.node("Cast", net.node("GreaterOrEqual", "x", np.float32(0.5)), to=onnx.TensorProto.FLOAT)
    y = net.node("MatMul", flags, net.node("Transpose", net.sign("x", 0), perm=[0, 1, 3, 2]))
    result = xnorc.compile(net.model(y), "host", sign_zero=1).validate("host", {"x": inputs((6, 4, 6, 16), 3)})
    assert result.ok, result.first_difference
    assert flags in {item.original for item in result.passes}


def test_a_wrong_scale_is_found() -> None:
    packed = onnx.ModelProto()
    packed.CopyFrom(SmallPackage.of(scaled()).packed_model)
    mul = next(node for node in packed.graph.node if node.op_type == "Mul" and "conv3" in node.output)
    tensor = next(t for t in packed.graph.initializer if t.name in mul.input)
    wrong = numpy_helper.to_array(tensor) * np.float32(1.0001)
    tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    result = check(SmallPackage.of(scaled(), packed))
    assert not result.ok and all(layer.ok for layer in result.layers)
    assert "'conv3' of the packed model is off" in result.first_difference


def test_integers_in_the_original_are_demanded_equal(package: SmallPackage) -> None:
    judged = Golden.of(References(package), {"x": small.data()[0]})  # type: ignore[arg-type]
    assert not np.any(judged.original_errors["conv2"]) and not np.any(judged.original_errors["scaled2"])
    assert np.any(judged.original_errors["conv1"]) and np.any(judged.original_errors["logits"])


def test_signs_that_stay_floats_are_compared_as_signs() -> None:
    """A sign that is an output of the model: it flips where it is open, and nowhere else."""
    original = small.build()
    original.graph.output.append(helper.make_tensor_value_info("sign1", onnx.TensorProto.FLOAT, [1, 8, 6, 6]))
    references = References(SmallPackage.of(original))  # type: ignore[arg-type]
    assert references.signs == {"sign1": ("conv1", "zero")}
    judged = Golden.of(references, {"x": small.data()[0]})
    assert judge_passes(references, judged) == Verdict(True)
    sign = judged.packed["sign1"].copy()
    sign[0, 3, 2, 2] *= -1
    flipped = replace(judged, packed=judged.packed | {"sign1": sign})
    verdict = judge_passes(references, flipped)
    assert not verdict.ok and verdict.tensor == "sign1" and "1 sign of 'sign1' differ" in verdict.problem
    conv1 = judged.original["conv1"].copy()
    conv1[0, 3, 2, 2] = 1e-9
    near = replace(flipped, original=judged.original | {"conv1": conv1}, packed=flipped.packed | {"conv1": conv1})
    verdict = judge_passes(references, near)
    assert verdict.ok and verdict.flip is not None and "1 sign of 'sign1'" in verdict.flip


def zeros_at_signs() -> onnx.ModelProto:
    """The small network with `Sign` behind an even number of ±1, whose sum is zero now and then."""
    model = small.build()
    nodes = [node for node in model.graph.node if node.name not in ("sign2_greater", "sign2_where")]
    position = next(index for index, node in enumerate(nodes) if node.name == "scale2_node")
    nodes.insert(position + 1, helper.make_node("Sign", ["scaled2"], ["sign2"], "sign2_node"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("choice", [1, -1])
def test_a_chosen_zero_is_no_failure(choice: int) -> None:
    original = zeros_at_signs()
    package = SmallPackage.of(original, xnorc.optimize(original, sign_zero=choice).model)
    zeros = [int((small.everything(original, {"x": one})["sign2"] == 0).sum()) for one in small.data()]
    result = check(package, layer_samples=12)
    assert result.ok and sum(zeros) > 100, result.first_difference
    note = next(note for note in result.notes if "by choice" in note)
    assert note == f"sign(0) = {choice:+d} by choice: {sum(zeros)} zeros (12 samples looked at)"
    ties = {item.original: item.ties for item in result.passes}
    assert result.end_to_end.max_error > 0.01, "the given model is another function"
    assert (
        [flips.ties for flips in result.end_to_end.flips if flips.original == "sign2"]
        == [sum(zeros)]
        == [ties["sign2"]]
    )
    for item in result.end_to_end.disagreements:
        assert item.explained and "by choice" in item.why
    assert (result.end_to_end.agreement == 1) is (not result.end_to_end.disagreements)

    # The other choice than the recorded one, and a choice that is not recorded, are failures.
    wrong = onnx.ModelProto()
    wrong.CopyFrom(package.packed_model)
    entry = next(entry for entry in wrong.metadata_props if entry.key == "xnorc.sign_zero")
    for recorded in (f"{-choice:+d}", "model"):
        entry.value = recorded
        result = check(SmallPackage.of(original, wrong))
        assert not result.ok and "sign2" in result.first_difference, recorded


def test_a_chosen_zero_does_not_hide_a_wrong_device() -> None:
    original = zeros_at_signs()
    package = SmallPackage.of(original, xnorc.optimize(original, sign_zero=1).model)
    bad = tensor_of(package, "Pack", 1)

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == bad:
            value.reshape(-1)[3] ^= 4
        return value

    result = check(package, fault)
    assert not result.ok and step_of(package, bad) in result.first_difference


def test_chosen_zeros_of_weights() -> None:
    """`Sign` of a weight that is 0: the packed weight has the chosen value, and the note says how many."""
    original = small.build()
    weight = next(t for t in original.graph.initializer if t.name == "w3")
    latent = numpy_helper.to_array(weight).copy()
    latent[:, :2, 0, 0] = 0
    weight.CopyFrom(numpy_helper.from_array(latent, "latent"))
    original.graph.node.insert(0, helper.make_node("Sign", ["latent"], ["w3"], "sign_w3"))
    package = SmallPackage.of(original, xnorc.optimize(original, sign_zero=1).model)
    result = check(package)
    assert result.ok, result.first_difference
    assert any("by choice: 0 zeros, and 10 of weights" in note for note in result.notes)


def test_three_values_are_kept_without_a_choice() -> None:
    original = zeros_at_signs()
    package = SmallPackage.of(original)
    result = check(package)
    assert result.ok and result.end_to_end.agreement == 1, result.first_difference
    assert not any("by choice" in note for note in result.notes)
    pair = [item for item in result.passes if item.original == "sign2"]
    assert len(pair) == 2 and all(item.ties for item in pair)


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs, one of them integers, and two outputs: a map of scores and one number; a real package."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((11, 16)).astype(np.float32),
        "w": np.where(rng.integers(0, 2, (16, 8)) > 0, 1, -1).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "one": np.ones((), np.float32),
        "minus": -np.ones((), np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "gather"),
        helper.make_node("Add", ["rows", "shift"], ["moved"], "add"),
        helper.make_node("Greater", ["moved", "zero"], ["above"], "above"),
        helper.make_node("Where", ["above", "one", "minus"], ["sign"], "sign"),
        helper.make_node("MatMul", ["sign", "w"], ["scores"], "scores"),
        helper.make_node("ReduceMax", ["scores"], ["best"], "best", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sentence",
        [
            helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1, 5]),
            helper.make_tensor_value_info("shift", onnx.TensorProto.FLOAT, [1, 1, 16]),
        ],
        [
            helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 5, 8]),
            helper.make_tensor_value_info("best", onnx.TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("sentence") / "sentence.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_several_inputs_integers_and_outputs_that_are_not_rows(sentence: Path) -> None:
    package = xnorc.compile(sentence, "host")
    rng = np.random.default_rng(1)
    data = {"ids": rng.integers(0, 11, (6, 1, 5)), "shift": rng.standard_normal((6, 1, 1, 16)).astype(np.float32)}
    result = validate(package, "host", data)
    assert result.ok and result.end_to_end.samples == 6, result.first_difference
    assert result.end_to_end.agreement is None and result.end_to_end.max_error == 0
    assert result.end_to_end.device_accuracy is None
    batch = {"ids": data["ids"][:, 0], "shift": data["shift"][:, 0]}
    assert validate(package, "host", {**batch, "labels": np.arange(6)}).end_to_end.reference_accuracy is None
    assert validate(package, "host").ok, "the golden inputs of the package"
    with pytest.raises(InputError, match="different numbers of samples: 'ids' 6, 'shift' 5"):
        validate(package, "host", {"ids": data["ids"], "shift": data["shift"][:5]})
    with pytest.raises(InputError, match="'ids' is int32, the model wants int64"):
        validate(package, "host", {**data, "ids": data["ids"].astype(np.int32)})
