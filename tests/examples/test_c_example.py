"""The C example: links the package's static library and classifies a real digit, on this machine and on emulated Pis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xnorc
from xnorc import golden, targets
from xnorc.lower import link
from xnorc.runtimes.qemu import find_qemu

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A seven, drawn by hand: the tests of the example itself need no data set."""
    picture = np.zeros((28, 28), np.float32)
    picture[6:9, 6:22] = 1
    for row in range(9, 24):
        column = 20 - (row - 9) * 8 // 14
        picture[row, column - 1 : column + 2] = 1
    return picture


@pytest.mark.parametrize("target", ["host", "rpi4", "rpi2"])
def test_c_program_links_the_library_and_gives_the_models_answer(target, image, tmp_path):
    package = xnorc.compile(EXAMPLES / "mnist" / "model.onnx", target, name="mnist")
    for member in ("mnist.h", "xnorc.h", "libmnist.a"):
        (tmp_path / member).write_bytes(package.member(f"lib/{member}"))
    chosen = targets.get(target)
    source, program = str(EXAMPLES / "c" / "main.c"), str(tmp_path / "classify")
    build = [
        "cc",
        "-target",
        chosen.static_triple,
        "-static",
        *link.FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{tmp_path}",
    ]
    build += [source, str(tmp_path / "libmnist.a"), "-o", program, "-lm", "-lpthread"]
    subprocess.run([sys.executable, "-m", "ziglang", *build], cwd=tmp_path, check=True)
    image.tofile(tmp_path / "image.bin")
    command = [program, str(tmp_path / "image.bin")]
    if target != "host":
        command = [find_qemu(chosen.arch), "-cpu", "max", *command]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    logits = np.array([float(line.split(":")[1]) for line in lines[:10]])
    expected = golden.run(package.model(), {"image": image[None, None]})["logits"][0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert lines[10] == f"digit {expected.argmax()}" == "digit 7"
