"""Random cases for every operator of the registry: (name, attributes, inputs). Used by every operator test."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xnorc.opset import pack_bits

Case = tuple[str, dict[str, Any], list[np.ndarray]]


def random_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return pack_bits(rng.integers(0, 2, shape))


def conv_case(
    rng: np.random.Generator, *, n=1, h=7, w=9, channels=16, out=8, kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
    pads=(1, 1, 1, 1), group=1, pad_value=0,
) -> Case:  # fmt: skip
    attrs = {
        "channels": channels, "group": group, "strides": list(strides), "dilations": list(dilations),
        "pads": list(pads), "pad_value": pad_value,
    }  # fmt: skip
    x = random_bits(rng, n, h, w, channels)
    return "BinaryConv", attrs, [x, random_bits(rng, out, *kernel, channels // group)]


def gemm_case(rng: np.random.Generator, *, rows=(3,), k=100, out=17, holes=0) -> Case:
    """``holes``: bits in the middle that are zero in both operands, as where a feature map was flattened."""
    x, w = rng.integers(0, 2, (*rows, k + holes)), rng.integers(0, 2, (out, k + holes))
    x[..., k // 2 : k // 2 + holes] = 0
    w[..., k // 2 : k // 2 + holes] = 0
    return "BinaryGemm", {"k": k}, [pack_bits(x), pack_bits(w)]


def pool_case(rng: np.random.Generator, *, h=7, w=8, channels=24, kernel=(2, 2), strides=(2, 2), dilations=(1, 1),
              pads=(0, 0, 0, 0)) -> Case:  # fmt: skip
    attrs = {
        "kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilations), "pads": list(pads),
    }  # fmt: skip
    return "BinaryMaxPool", attrs, [random_bits(rng, 2, h, w, channels), random_bits(rng, channels)]


def pack_case(rng: np.random.Generator, *, shape=(2, 19, 4, 5), perm=(0, 2, 3, 1), strict=0, dtype="float32") -> Case:
    channels = shape[perm[-1]]
    x = rng.integers(-4, 5, shape).astype(dtype)
    threshold = rng.integers(-3, 4, channels).astype(dtype)
    return "Pack", {"perm": list(perm), "strict": strict}, [x, threshold, rng.integers(0, 2, channels).astype(np.uint8)]


def cases(seed: int = 0) -> Iterator[Case]:
    """A spread of every operator, the hard cases included: these and those of the files ``cases_*.py`` beside this one."""
    yield from _bit_cases(seed)
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        yield from importlib.import_module(f".{path.stem}", __package__).cases(seed)


def _bit_cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield conv_case(rng)
    yield conv_case(rng, channels=64, out=64, h=14, w=14)
    yield conv_case(rng, channels=128, out=32, h=8, w=8)
    yield conv_case(rng, channels=256, out=40, h=5, w=5)
    yield conv_case(rng, channels=13, out=5)
    yield conv_case(rng, channels=32, out=9, n=2, h=11, w=5, strides=(2, 1), pads=(0, 2, 1, 0))
    yield conv_case(rng, channels=40, out=16, dilations=(2, 3), pads=(2, 3, 2, 3))
    yield conv_case(rng, channels=24, out=6, kernel=(1, 1), pads=(0, 0, 0, 0), strides=(2, 2))
    yield conv_case(rng, channels=16, out=32, kernel=(5, 4), pads=(2, 1, 2, 2), pad_value=1)
    yield conv_case(rng, channels=16, out=32, pad_value=-1)
    yield conv_case(rng, channels=32, out=16, group=4)
    yield conv_case(rng, channels=12, out=8, group=4)
    yield conv_case(rng, channels=20, out=20, group=20)
    yield conv_case(rng, channels=16, out=4, kernel=(9, 7), pads=(8, 6, 8, 6))
    yield gemm_case(rng)
    yield gemm_case(rng, rows=(1,), k=1024, out=10)
    yield gemm_case(rng, rows=(2, 5), k=64, out=64)
    yield gemm_case(rng, rows=(7,), k=120, out=33, holes=11)
    yield gemm_case(rng, rows=(1,), k=3, out=1)
    yield pool_case(rng)
    yield pool_case(rng, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), channels=128)
    yield pool_case(rng, kernel=(2, 3), strides=(1, 1), dilations=(2, 1), pads=(0, 1, 2, 1), channels=9)
    yield pack_case(rng)
    yield pack_case(rng, strict=1)
    yield pack_case(rng, dtype="int32", perm=(0, 1, 2, 3), shape=(1, 6, 6, 64))
    yield pack_case(rng, shape=(3, 100), perm=(0, 1))
    yield pack_case(rng, shape=(2, 7, 33), perm=(0, 1, 2), dtype="int32", strict=1)
    yield "Unpack", {"channels": 19, "perm": [0, 3, 1, 2]}, [random_bits(rng, 2, 3, 4, 19)]
    yield "Unpack", {"channels": 64, "perm": [0, 1]}, [random_bits(rng, 5, 64)]
    for zero in (-1, 0, 1):
        yield "Binarize", {"zero": zero}, [np.array([[-2.5, -0.0, 0.0], [1e-40, -1e-40, 3]], np.float32)]
