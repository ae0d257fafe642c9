"""Networks exported by Brevitas: read unmodified, they give what the qonnx executor gave, and devices agree.

``make_models.py`` says what the networks are, and makes them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import xnorc
from xnorc import golden
from xnorc.files import read_arrays
from xnorc.model import read_model

DATA = Path(__file__).parent / "data"
NETWORKS = [f"{shape}_{bits}" for shape in ("tfc", "cnv") for bits in ("1w1a", "1w2a", "2w2a")]
ALL = [*NETWORKS, "mixed_4w4a", "handwritten_finn"]


def arrays(name: str, kind: str) -> dict[str, np.ndarray]:
    """What is stored beside a model: ``input``, ``output`` (samples first), or ``tensor`` (of the first sample)."""
    stored = read_arrays(DATA / f"{name}.npz")
    assert isinstance(stored, dict)
    return {key.removeprefix(f"{kind}/"): value for key, value in stored.items() if key.startswith(f"{kind}/")}


def run(model: onnx.ModelProto, name: str) -> dict[str, np.ndarray]:
    """The model's outputs for the stored inputs, stacked."""
    session, feeds = golden.session(model), arrays(name, "input")
    count = len(next(iter(feeds.values())))
    runs = [golden.run(session, {key: value[i] for key, value in feeds.items()}) for i in range(count)]
    return {key: np.stack([one[key] for one in runs]) for key in runs[0]}


def test_every_model_is_there_and_small():
    assert sorted(path.stem for path in DATA.glob("*.onnx")) == sorted(ALL)
    assert all(path.stat().st_size < 300_000 for path in DATA.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_gives_what_the_qonnx_executor_gives(name):
    """Outputs and every quantizer on the way, bit for bit, under the names of the exported model."""
    model = read_model(DATA / f"{name}.onnx")
    assert {item.domain for item in model.opset_import} == {""}
    outputs, tensors = arrays(name, "output"), arrays(name, "tensor")
    found = run(model, name)
    assert list(found) == list(outputs)
    for key, value in outputs.items():
        np.testing.assert_array_equal(found[key], value)
    assert tensors
    first = golden.run(model, {key: value[0] for key, value in arrays(name, "input").items()}, list(tensors))
    for key, value in tensors.items():
        np.testing.assert_array_equal(first[key], value)


@pytest.mark.parametrize("name", ALL)
def test_packed_model_gives_the_same(name):
    """Passes are exact here: every sum is of integers. ``mixed_4w4a`` has scaled weights, whose sums round."""
    found = run(xnorc.optimize(DATA / f"{name}.onnx", check=True).model, name)
    for key, value in arrays(name, "output").items():
        if name == "mixed_4w4a":
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[key], value)


_PRODUCTS = ("Conv", "Gemm", "MatMul", "BinaryConv", "BinaryGemm", "BitSerialConv", "BitSerialGemm", "LowBitConv",
             "HammingTopK")  # fmt: skip
_BITS = ("Pack", "PackLevels", "BinaryMaxPool")


def layers(name: str) -> list[str]:
    """Operators of the packed model that multiply, and those that give the next layer its bits, in graph order."""
    packed = xnorc.optimize(DATA / f"{name}.onnx").model
    return [node.op_type for node in packed.graph.node if node.op_type in _PRODUCTS + _BITS]


class TestPacked:
    """What becomes of the layers. None is left in float."""

    def test_one_bit_fully_connected(self):
        assert layers("tfc_1w1a") == ["Pack", "BinaryGemm"] * 4

    def test_one_bit_convolutional(self):
        """The first layer multiplies 8-bit pixels; max-pools are on bits; the last layer and its TopK are one search."""
        conv, pooled = ["BinaryConv", "Pack"], ["BinaryConv", "Pack", "BinaryMaxPool"]
        expected = ["PackLevels", "BitSerialConv", "Pack", *pooled, *conv, *pooled, *conv, *conv]
        assert layers("cnv_1w1a") == [*expected, *["BinaryGemm", "Pack"] * 2, "HammingTopK"]

    @pytest.mark.parametrize("bits", ["1w2a", "2w2a"])
    def test_two_bits(self, bits):
        assert layers(f"tfc_{bits}") == ["PackLevels", "BitSerialGemm"] * 4
        assert layers(f"cnv_{bits}") == ["PackLevels", "BitSerialConv"] * 6 + ["PackLevels", "BitSerialGemm"] * 3

    def test_four_bits_with_scales_biases_and_padding(self):
        assert layers("mixed_4w4a") == ["PackLevels", "BitSerialConv"] * 2 + ["PackLevels", "BitSerialGemm"]

    def test_thresholds_and_popcounts_of_finn(self):
        """``MultiThreshold`` gives 2-bit activations, XnorPopcountMatMul over bits 0 and 1 is a binary product."""
        found = layers("handwritten_finn")
        assert found[1:] == ["PackLevels", "BitSerialConv", "Pack", "BinaryGemm", "Pack", "BinaryGemm"]
        assert found[0] == "LowBitConv"  # signs times numbers that nothing says are of 8 bits


def compiled(name: str, target: str) -> xnorc.Package:
    """Compile with the stored inputs as golden samples, validate on host or emulated, compare with the executor."""
    path = DATA / f"{name}.onnx"
    package = xnorc.compile(path, target, golden_inputs=arrays(name, "input"))
    device = "host" if target == "host" else "qemu"
    outputs = arrays(name, "output")
    kept = package.golden()
    for key, value in outputs.items():
        np.testing.assert_array_equal(kept[f"output/{key}"], value)
    result = package.validate(device)
    assert result.ok, result.first_difference
    found = package.run(arrays(name, "input"), device=device)
    for key, value in outputs.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * float(np.abs(value).max()))
    assert package.member("model.onnx") == path.read_bytes()
    assert package.manifest["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return package


@pytest.mark.parametrize(("name", "target"), [("tfc_2w2a", "rpi4"), ("cnv_1w1a", "host")])
def test_devices(name, target):
    compiled(name, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "rpi4", "rpi2"])
@pytest.mark.parametrize("name", ALL)
def test_devices_all(name, target):
    compiled(name, target)
