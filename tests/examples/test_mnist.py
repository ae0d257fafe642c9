"""The MNIST example: the shipped network is as good as it says, and the scripts around it work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import xnorc

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "mnist"


@pytest.fixture(scope="module")
def test_set():
    sys.path.insert(0, str(EXAMPLE))
    try:
        from data import load
    finally:
        sys.path.remove(str(EXAMPLE))
    return load("test")


def run(script: str, *arguments: str, timeout: int = 600) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_shipped_network_is_accurate_and_exact_on_this_machine(test_set):
    images, labels = test_set
    package = xnorc.compile(EXAMPLE / "model.onnx", "host", name="mnist")
    result = package.validate("host", {"image": images, "labels": labels})
    assert result.ok, result.first_difference
    assert result.end_to_end.device_accuracy >= 0.985
    assert result.end_to_end.agreement >= 0.999
    assert all(layer.differing == 0 for layer in result.layers if layer.kind == "integer")


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5", "rpi-zero2w", "aarch64", "rpi2"])
def test_shipped_network_is_exact_on_every_emulated_target(target, test_set):
    images, labels = test_set
    package = xnorc.compile(EXAMPLE / "model.onnx", target, name="mnist")
    result = package.validate("qemu", {"image": images[:100], "labels": labels[:100]})
    assert result.ok, result.first_difference
    assert all(layer.differing == 0 for layer in result.layers if layer.kind == "integer")


def test_all_binary_layers_of_the_shipped_network_are_packed():
    records = xnorc.explain(EXAMPLE / "model.onnx").records
    layers = [record for record in records if record.op in ("Conv", "Gemm")]
    assert [record.status.value for record in layers] == ["float", "packed", "packed", "packed", "packed", "float"]


def test_training_script_works(tmp_path):
    pytest.importorskip("torch")
    printed = run("train.py", "--epochs", "1", "--limit", "512", "--threads", "1", "--out", str(tmp_path))
    assert "epoch 1/1" in printed and "ONNX Runtime agrees with torch" in printed
    packed = [r for r in xnorc.explain(tmp_path / "model.onnx").records if r.op in ("Conv", "Gemm")]
    assert [record.status.value for record in packed].count("packed") == 4


def test_saved_weights_are_those_of_the_shipped_network():
    safetensors = pytest.importorskip("safetensors.numpy")
    weights = safetensors.load_file(EXAMPLE / "weights.safetensors")
    model = onnx.load(EXAMPLE / "model.onnx")
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    signs = np.where(weights["dense.weight"] >= 0, np.float32(1), np.float32(-1))
    assert any(c.shape == signs.shape and (c == signs).all() for c in constants)


def test_demo_works():
    printed = run("demo.py", "--images", "300", "--device-images", "40")
    assert "all checks passed" in printed
