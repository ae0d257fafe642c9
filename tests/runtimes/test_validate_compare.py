"""Validation on a device whose faults are known, and the comparisons below it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from xnorc import golden
from xnorc.errors import InputError, PackageError
from xnorc.opset import pack_bits
from xnorc.runtimes import bench, compare
from xnorc.runtimes.bounds import Analysis
from xnorc.runtimes.device import Mode
from xnorc.runtimes.reference import Reference
from xnorc.runtimes.show import show
from xnorc.runtimes.validate import validate

from . import small
from .small import SmallDevice, SmallPackage


@pytest.fixture(scope="module")
def package() -> SmallPackage:
    return SmallPackage.of(small.build())


def check(package: SmallPackage, fault: small.Fault | None = None, data: dict | None = None, **options):
    device = SmallDevice(fault) if fault else SmallDevice()
    return validate(package, device, data or {"x": small.data()}, **options)  # type: ignore[arg-type]


def tensor_of(package: SmallPackage, op: str, number: int = 0) -> str:
    nodes = [node for node in package.packed_model.graph.node if node.op_type == op]
    return nodes[number].output[0]


def step_of(package: SmallPackage, tensor: str) -> str:
    return next(node.name for node in package.packed_model.graph.node if node.output[0] == tensor)


def printed(result) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show(result, console)
    return console.export_text()


def test_a_right_device(package: SmallPackage) -> None:
    stages: list[tuple[str, int, int]] = []
    result = check(package, progress=lambda *stage: stages.append(stage))
    assert result.ok and result.first_difference is None
    assert all(layer.differing == 0 for layer in result.layers)
    assert [origin.differing for origin in result.passes] == [0] * len(result.passes) and result.passes
    end = result.end_to_end
    assert end.agreement == 1 and end.max_error == 0 and end.disagreements == [] and end.samples == 12
    assert end.flips and all(flips.flips == 0 for flips in end.flips)
    assert end.device_accuracy is None
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["ok"] is True
    assert ("layers", 8, 8) in stages and ("ONNX Runtime", 12, 12) in stages
    assert "small on small: good" in printed(result)


def test_accuracy_and_limit(package: SmallPackage) -> None:
    x = small.data()
    expected = np.array([golden.run(package.original, {"x": one})["logits"].argmax() for one in x])
    labels = np.where(np.arange(12) < 9, expected, (expected + 1) % 3)
    result = check(package, data={"x": x[:, 0], "labels": labels})
    assert result.end_to_end.device_accuracy == result.end_to_end.reference_accuracy == 0.75
    result = check(package, data={"x": x, "labels": labels}, limit=4, layer_samples=2)
    assert result.end_to_end.device_accuracy == 1 and result.end_to_end.samples == 4 and result.layer_samples == 2
    assert "accuracy               device 100.00%" in printed(result)


@pytest.mark.parametrize("number", [0, 1])
def test_a_wrong_accumulator_is_named(package: SmallPackage, number: int) -> None:
    bad = tensor_of(package, "BinaryConv", number)

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == bad:
            value.reshape(-1)[7] += 1
        return value

    result = check(package, fault)
    assert not result.ok
    assert step_of(package, bad) in result.first_difference and "8 of" in result.first_difference
    assert [layer.name for layer in result.layers if not layer.ok] == [step_of(package, bad)]
    assert "DIFFERENT" in printed(result) and result.end_to_end.disagreements


def test_a_wrong_bit_is_named(package: SmallPackage) -> None:
    bad = tensor_of(package, "Pack")

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == bad:
            value.reshape(-1)[3] ^= 4
        return value

    result = check(package, fault)
    assert not result.ok and step_of(package, bad) in result.first_difference
    layer = next(layer for layer in result.layers if layer.tensor == bad)
    assert layer.dtype == "bits" and layer.differing == 8 and layer.compared == 8 * 36 * 8 and not layer.ok
    assert any(not item.explained and bad in item.why for item in result.end_to_end.disagreements)


@pytest.mark.parametrize(("factor", "ok"), [(0.9, True), (1.1, False)])
def test_float_layers_have_a_bound_that_is_not_stretched(package: SmallPackage, factor: float, ok: bool) -> None:
    values = small.everything(package.packed_model, {"x": small.data()[0]})
    errors, _ = Analysis(package.packed_model).run(
        values, [n for n in package.packed_model.graph.node if n.op_type == "Conv"]
    )
    bound = 2 * np.asarray(errors["conv1"])

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == "conv1" and mode is Mode.LAYERS:
            value += (factor * bound).astype(np.float32)
        return value

    result = check(package, fault, {"x": small.data(1)})
    layer = next(layer for layer in result.layers if layer.tensor == "conv1")
    assert layer.ok is ok and layer.differing > 0 and layer.used == pytest.approx(factor, abs=0.3)
    assert "Conv sums 19 terms" in layer.reason
    assert (layer.max_error > layer.bound) is not ok
    assert result.ok is ok and (ok or "conv1_node" in result.first_difference)


def near_zero() -> tuple[SmallPackage, np.ndarray, tuple[int, int, int, int]]:
    """A network of two classes in which one sign of sample 0, taken of a value next to zero, decides the class."""
    x, place = small.data(4), (0, 3, 2, 2)
    first = small.build()
    value = small.everything(first, {"x": x[0]})["conv1"][place]
    constants = {t.name: numpy_helper.to_array(t).copy() for t in first.graph.initializer}
    b1 = constants["b1"]
    b1[place[1]] -= value
    shifted = small.build(b1=b1)
    for _ in range(20):  # until the value is tiny but not zero
        value = small.everything(shifted, {"x": x[0]})["conv1"][place]
        if value != 0:
            break
        b1[place[1]] = np.nextafter(b1[place[1]], np.float32(9))
        shifted = small.build(b1=b1)
    features = []
    later = {name: array for name, array in constants.items() if name not in ("w1", "b1")}
    start = {"conv1": np.zeros((1, 8, 6, 6), np.float32)}
    part = golden.small_model(shifted.graph.node[1:], start, ["flat"], initializers=later)
    for sign in (value, -value):
        conv1 = small.everything(shifted, {"x": x[0]})["conv1"]
        conv1[place] = sign
        features.append(golden.run(part, {"conv1": conv1})["flat"][0])
    way = features[1] - features[0]
    assert np.any(way)
    w4 = np.stack([np.zeros_like(way), way, np.zeros_like(way)])
    b4 = np.array([0, -way @ (features[0] + features[1]) / 2, -1e6], np.float32)
    return SmallPackage.of(small.build(b1=b1, w4=w4, b4=b4)), x, place


def test_a_flip_next_to_zero_explains_another_class() -> None:
    package, x, place = near_zero()
    conv1 = small.everything(package.packed_model, {"x": x[0]})["conv1"]

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == "conv1" and np.array_equal(value, conv1):
            value[place] = -value[place]
        return value

    result = check(package, fault, {"x": x})
    assert [(item.sample, item.expected, item.got) for item in result.end_to_end.disagreements] == [(0, 0, 1)]
    item = result.end_to_end.disagreements[0]
    assert item.explained and "1 sign of" in item.why and result.ok
    first = result.end_to_end.flips[0]
    assert first.flips == 1 and 0 < first.max_margin < 1e-5
    assert result.end_to_end.agreement == 0.75
    text = printed(result)
    assert "Samples that differ" in text and "within the error bound" in text


def test_a_flip_far_from_zero_explains_nothing() -> None:
    package, x, _ = near_zero()
    packed = tensor_of(package, "Pack")
    sign = small.everything(package.packed_model, {"x": x[0]})[packed]

    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        if name == packed and np.array_equal(value, sign) and mode is not Mode.LAYERS:
            value[0, 5, 5, 0] ^= 1  # another bit, far from its threshold
        return value

    result = check(package, fault, {"x": x})
    assert all(layer.ok for layer in result.layers) and not result.ok
    item = result.end_to_end.disagreements[0]
    assert not item.explained and packed in item.why and "sample 0" in result.first_difference


def test_untraced_disagreements_are_unexplained(package: SmallPackage) -> None:
    def fault(name: str, value: np.ndarray, mode: Mode) -> np.ndarray:
        return value[:, ::-1] if name == "logits" and mode is Mode.RUN else value

    result = check(package, fault, trace_limit=1)
    others = [item for item in result.end_to_end.disagreements if "not traced" in item.why]
    assert not result.ok and others and not any(item.explained for item in result.end_to_end.disagreements)


def test_wrong_passes_are_found() -> None:
    """The device computes the packed model, but that is another one than the original."""
    original = small.build()
    package = SmallPackage.of(original, SmallPackage.of(small.build(seed=5)).packed_model)
    result = check(package)
    assert not result.ok and all(layer.ok for layer in result.layers)
    assert result.first_difference.startswith("passes:") or "sample" in result.first_difference
    assert any(item.differing for item in result.passes)

    # One flipped weight, behind a float layer that is right.
    packed = onnx.ModelProto()
    packed.CopyFrom(SmallPackage.of(original).packed_model)
    conv = next(node for node in packed.graph.node if node.op_type == "BinaryConv")
    weight = next(tensor for tensor in packed.graph.initializer if tensor.name == conv.input[1])
    bits = numpy_helper.to_array(weight).copy()
    bits[0] ^= 255
    weight.CopyFrom(numpy_helper.from_array(bits, weight.name))
    result = check(SmallPackage.of(original, packed))
    assert not result.ok and result.passes[0].ok and not result.passes[1].ok
    assert result.passes[1].tensor in result.first_difference


def test_data_come_from_files_and_packages(package: SmallPackage, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=small.data(3), labels=np.array([0, 1, 2]))
    result = validate(package, SmallDevice(), path)  # type: ignore[arg-type]
    assert result.end_to_end.samples == 3 and result.end_to_end.device_accuracy is not None
    assert validate(package, SmallDevice()).end_to_end.samples == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "no array 'x' (float32 [1, 2, 6, 6])"),
        ({"x": small.data(2), "y": small.data(2)}, "the data hold 'y', the model's inputs are x"),
        ({"x": small.data(2)[..., :5]}, "shape [2, 1, 2, 6, 5]"),
        ({"x": small.data(2).astype(np.float64)}, "float64"),
        ({"x": small.data(0)}, "no sample"),
        ({"x": small.data(2), "labels": np.array([1])}, "one integer for each of 2 samples"),
        ({"x": small.data(2), "labels": np.array([0.5, 1])}, "one integer for each of 2 samples"),
    ],
)
def test_bad_data(package: SmallPackage, data: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(InputError) as error:
        validate(package, SmallDevice(), data)  # type: ignore[arg-type]
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_manifest_that_does_not_fit_is_refused(package: SmallPackage) -> None:
    manifest = json.loads(json.dumps(package.manifest))
    manifest["tensors"][1]["name"] = "elsewhere"
    with pytest.raises(PackageError, match="'elsewhere', which packed"):
        check(SmallPackage(package.original, package.packed_model, manifest))
    manifest = json.loads(json.dumps(package.manifest))
    manifest["tensors"][1]["shape"] = [1, 8, 6, 7]
    with pytest.raises(PackageError, match="in the manifest"):
        check(SmallPackage(package.original, package.packed_model, manifest))


def test_bench(package: SmallPackage) -> None:
    result = bench.bench(package, SmallDevice(), repeats=3, warmup=1)  # type: ignore[arg-type]
    assert len(result.steps) == len(package.manifest["steps"]) and result.steps[0].median_us == 2.0
    assert result.steps[0].gmacs == 500.0 and result.total_us == 2.0 * len(result.steps)
    assert sum(step.share for step in result.steps) == pytest.approx(1)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    bench.show(result, console)
    assert "GMAC/s" in console.export_text() and json.dumps(result.to_json())
    with pytest.raises(InputError, match="at least one"):
        bench.bench(package, SmallDevice(), repeats=0)  # type: ignore[arg-type]


def test_a_result_shows_itself(package: SmallPackage, capsys: pytest.CaptureFixture[str]) -> None:
    result = check(package, layer_samples=1)
    result.show()
    assert "small on small: good" in capsys.readouterr().out
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    result.show(console)
    assert "small on small: good" in console.export_text()


# ---- comparisons ----


def test_compare_floats() -> None:
    a = np.array([1, 2, np.nan, np.inf, -np.inf, 0], np.float32)
    same = compare.compare_floats(a, a.copy(), 0.0)
    assert same.ok and same.differing == 0 and same.max_error == 0 and same.used == 0
    b = np.array([1, 2.5, np.nan, np.inf, -np.inf, 0], np.float32)
    assert compare.compare_floats(a, b, 0.5).ok and compare.compare_floats(a, b, 0.5).used == 1
    assert compare.compare_floats(a, b, np.array([9, 0.4, 9, 9, 9, 9])).outside == 1
    for bad in (np.nan, np.inf, -np.inf):
        b = np.array([bad, 2, np.nan, np.inf, -np.inf, 0], np.float32)
        found = compare.compare_floats(a, b, 1e30)
        assert not found.ok and found.max_error == np.inf
    assert not compare.compare_floats(a, np.array([1, 2, 3, np.inf, -np.inf, 0], np.float32), 1e30).ok
    assert compare.compare_floats(np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0).ok
    total = compare.compare_floats(a[:2], a[:2] + 1, 2.0) + compare.compare_floats(a[:2], a[:2] + 4, 2.0)
    assert (total.compared, total.differing, total.outside, total.max_error, total.bound) == (4, 4, 2, 4.0, 2.0)


def test_compare_bits() -> None:
    expected = pack_bits(np.array([[1, 0, 1, 1, 0, 0, 0, 1, 1, 0]]))
    assert compare.compare_bits(expected, expected, 10).compared == 10
    actual = expected ^ np.array([[5, 0]], np.uint8)
    found = compare.compare_bits(expected, actual, 10)
    assert found.differing == found.outside == 2 and not found.ok
    assert compare.compare_bits(expected, actual, 10, np.array([[7, 0]], np.uint8)).ok
    half = compare.compare_bits(expected, actual, 10, np.array([[4, 0]], np.uint8))
    assert half.differing == 2 and half.outside == 1
    tail = expected ^ np.array([[0, 128]], np.uint8)
    assert not compare.compare_bits(expected, tail, 10).ok, "a bit past the last channel must be zero"


def test_sign_flips_and_classes() -> None:
    original = np.array([[[[1.0, -2.0]], [[0.0, 3.0]], [[-0.5, -4.0]]]])  # [1, 3, 1, 2]
    packed = pack_bits(np.transpose(original, (0, 2, 3, 1)) > 0)
    flips, where = compare.sign_flips(packed, original, np.abs(original), [0, 2, 3, 1], 3)
    assert (flips.bits, flips.flips, flips.ties) == (6, 0, 1) and not where.any()
    wrong = packed.copy()
    wrong[0, 0, 0, 0] ^= 0b111
    flips, where = compare.sign_flips(wrong, original, np.abs(original), [0, 2, 3, 1], 3)
    assert flips.flips == 2 and flips.ties == 1 and flips.max_margin == 1.0 and where[0, 0, 0, 0] == 0b101
    np.testing.assert_array_equal(compare.classes(np.array([[[1, 2, 0]], [[3, 2, 1]]])), [1, 0])
    assert compare.classes(np.zeros((3, 1))) is None and compare.classes(np.zeros((3, 4, 4))) is None


def test_the_tensor_before_a_sign() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sign", ["c"], ["s"]),
        helper.make_node("Sub", ["s", "c"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["ste"]),
        helper.make_node("GreaterOrEqual", ["c", "t"], ["b"]),
        helper.make_node("Cast", ["b"], ["f"], to=1),
        helper.make_node("Mul", ["f", "two"], ["m"]),
        helper.make_node("Conv", ["ste", "w"], ["c2"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    reference = Reference(helper.make_model(graph))
    assert reference.before_sign("s") == reference.before_sign("ste") == ["c"]
    assert reference.before_sign("m") == ["c", "t"]
    assert reference.before_sign("c2") == [], "not through another layer"


def test_integers_have_no_bound(package: SmallPackage) -> None:
    analysis = Analysis(package.packed_model)
    values = small.everything(package.packed_model, {"x": small.data()[0]})
    errors, masks = analysis.run(values)
    assert not any(name in errors for name in values if values[name].dtype.kind in "iu")
    assert tensor_of(package, "Pack") in masks
    assert np.any(errors["conv1"]) and np.any(errors["logits"])
