"""What goes to the device, and what it needs there: a network of the size of Bi-Real Net 18 for a Raspberry Pi 4."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xnorc

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    pytest.importorskip("torch")
    from models import NETWORKS, make

    network = NETWORKS["bireal18"]
    return xnorc.export(make(network), network.inputs(), check=False).model


def compiled(model: onnx.ModelProto, **options: Any) -> tuple[int, int, dict[str, int]]:
    """Bytes of the library, of the packed model's constants, and the manifest's account of memory."""
    package = xnorc.compile(model, "rpi4", name="bireal18", sign_zero=1, **options)
    packed = onnx.load_from_string(package.member("packed.onnx"))
    constants = sum(onnx.numpy_helper.to_array(value).nbytes for value in packed.graph.initializer)
    return len(package.member("lib/libbireal18.so")), constants, package.manifest["memory"]


def test_with_a_float_head_the_library_has_4_3_MB(model: onnx.ModelProto) -> None:
    library, constants, memory = compiled(model)
    assert library <= 4_300_000
    assert library - constants <= 105_000  # code, the runtime, and corrections of borders
    assert memory["arena_bytes"] <= 1.10 * memory["lower_bound_bytes"]


def test_float_layers_in_int8_halve_it(model: onnx.ModelProto) -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    library, constants, memory = compiled(model, float_layers="int8", calibration={model.graph.input[0].name: image})
    assert constants <= 2_150_000  # 1,373,184 of bits, 693,440 of int8 weights, the rest scales and biases in float32
    assert library - constants <= 90_000
    assert memory["arena_bytes"] <= 1.10 * memory["lower_bound_bytes"]
