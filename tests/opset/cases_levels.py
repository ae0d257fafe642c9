"""Random cases of the operators on few-bit levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xnorc.opset import pack_bits

Case = tuple[str, dict[str, Any], list[np.ndarray]]


def twos(planes: int) -> list[int]:
    """Coefficients of two's complement."""
    return [1 << i for i in range(planes - 1)] + [-(1 << (planes - 1))]


def unsigned(planes: int) -> list[int]:
    return [1 << i for i in range(planes)]


def steps(rng: np.random.Generator, count: int, width: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds that rise, or fall where flipped; some are equal."""
    flip = rng.integers(0, 2, width).astype(np.uint8)
    rising = np.sort(rng.integers(-count, count + 1, (count, width)), axis=0)
    return np.where(flip, rising[::-1], rising).astype(dtype), flip


def levels_case(rng: np.random.Generator, *, shape=(2, 11, 4, 5), perm=(0, 2, 3, 1), count=3, planes=2, codes=None,
                per_channel=True, dtype="float32") -> Case:  # fmt: skip
    width = shape[perm[-1]] if per_channel else 1
    threshold, flip = steps(rng, count, width, dtype)
    x = rng.integers(-count - 1, count + 2, shape).astype(dtype)
    attrs = {"perm": list(perm), "codes": list(range(count + 1)) if codes is None else codes, "planes": planes}
    return "PackLevels", attrs, [x, threshold, flip]


def quantize_case(rng: np.random.Generator, *, shape=(2, 5, 3, 4), axis=1, count=3, per_channel=True) -> Case:
    threshold, flip = steps(rng, count, shape[axis] if per_channel else 1, "float32")
    x = rng.integers(-count - 1, count + 2, shape).astype(np.float32)
    return "Quantize", {"axis": axis}, [x, threshold, flip, rng.standard_normal(count + 1).astype(np.float32)]


def level_pool_case(rng: np.random.Generator, *, h=6, w=7, channels=20, planes=2, kernel=(2, 2), strides=(2, 2),
                    dilations=(1, 1), pads=(0, 0, 0, 0)) -> Case:  # fmt: skip
    attrs = {
        "kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilations), "pads": list(pads),
    }  # fmt: skip
    x = pack_bits(rng.integers(0, 2, (planes, 2, h, w, channels)))
    return "LevelMaxPool", attrs, [x, pack_bits(rng.integers(0, 2, channels))]


def serial_conv_case(
    rng: np.random.Generator, *, n=1, h=6, w=7, channels=16, out=8, kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
    pads=(1, 1, 1, 1), group=1, x_coeffs=(1, 2), x_offset=0, w_coeffs=(1, -2), bipolar=0,
) -> Case:  # fmt: skip
    attrs = {
        "channels": channels, "group": group, "strides": list(strides), "dilations": list(dilations), "pads": list(pads),
        "x_coeffs": list(x_coeffs), "x_offset": x_offset, "w_coeffs": list(w_coeffs), "bipolar": bipolar,
    }  # fmt: skip
    x = pack_bits(rng.integers(0, 2, (len(x_coeffs), n, h, w, channels)))
    return "BitSerialConv", attrs, [x, pack_bits(rng.integers(0, 2, (len(w_coeffs), out, *kernel, channels // group)))]


def serial_gemm_case(rng: np.random.Generator, *, rows=(3,), k=100, out=17, holes=0, x_coeffs=(1, 2), x_offset=0,
                     w_coeffs=(1, -2), bipolar=0) -> Case:  # fmt: skip
    x = rng.integers(0, 2, (len(x_coeffs), *rows, k + holes))
    w = rng.integers(0, 2, (len(w_coeffs), out, k + holes))
    x[..., k // 2 : k // 2 + holes] = 0
    w[..., k // 2 : k // 2 + holes] = 0
    attrs = {
        "k": k, "x_coeffs": list(x_coeffs), "x_offset": x_offset, "w_coeffs": list(w_coeffs), "bipolar": bipolar,
    }  # fmt: skip
    return "BitSerialGemm", attrs, [pack_bits(x), pack_bits(w)]


def cases(seed: int) -> Iterator[Case]:
    """A spread: signed and unsigned, offsets at borders, bases, groups, odd channels, up to 8 by 8 bits."""
    rng = np.random.default_rng(seed + 100)
    yield quantize_case(rng)
    yield quantize_case(rng, count=1, per_channel=False)
    yield quantize_case(rng, shape=(3, 50), count=15, axis=-1)
    yield quantize_case(rng, shape=(3, 130), count=255, per_channel=False)
    edges = np.array([0.0, -0.0, 1e-40, -1e-40, 2e-40, np.inf, -np.inf, 3.4e38], np.float32)
    limits = np.array([[-1e-40], [0.0], [1e-40], [3.4e38]], np.float32)
    value = np.arange(5, dtype=np.float32)
    yield "Quantize", {"axis": 0}, [edges, limits, np.zeros(1, np.uint8), value]
    yield "Quantize", {"axis": 0}, [edges, limits[::-1].copy(), np.ones(1, np.uint8), value]
    yield levels_case(rng)
    yield levels_case(rng, count=1, planes=1)
    yield levels_case(rng, shape=(3, 40), perm=(0, 1), count=6, planes=3, codes=[5, 6, 7, 0, 1, 2, 3])
    yield levels_case(rng, shape=(1, 6, 6, 20), perm=(0, 1, 2, 3), count=15, planes=4, dtype="int32")
    yield levels_case(rng, shape=(2, 9, 40), perm=(0, 2, 1), count=255, planes=8, per_channel=False)
    yield levels_case(rng, shape=(1, 24, 3, 17), count=4, planes=8, codes=[0, 1, 4, 16, 128], per_channel=False)
    yield "PackLevels", {"perm": [0], "codes": [0, 1, 2, 3, 4], "planes": 3}, [edges, limits, np.zeros(1, np.uint8)]
    yield serial_conv_case(rng)
    yield serial_conv_case(rng, channels=64, out=16, w_coeffs=(1,), bipolar=1, x_coeffs=unsigned(4))
    yield serial_conv_case(rng, channels=13, out=5, x_coeffs=twos(3), w_coeffs=twos(3))
    yield serial_conv_case(rng, channels=20, out=9, x_coeffs=(2, 4), x_offset=-3, w_coeffs=(1, 2), bipolar=1, n=2)
    yield serial_conv_case(rng, channels=24, out=6, x_coeffs=(2,), x_offset=-1, strides=(2, 1), pads=(0, 2, 1, 0))
    yield serial_conv_case(rng, channels=12, out=8, group=4, w_coeffs=(1, 2), bipolar=1, x_coeffs=(2, 4), x_offset=-3)
    yield serial_conv_case(rng, channels=32, out=16, group=2, w_coeffs=twos(4), dilations=(2, 2), pads=(2, 2, 2, 2))
    yield serial_conv_case(rng, channels=10, out=10, group=10, x_coeffs=unsigned(3), w_coeffs=twos(2))
    yield serial_conv_case(rng, channels=128, out=24, kernel=(1, 1), pads=(0, 0, 0, 0), x_coeffs=unsigned(2))
    yield serial_conv_case(rng, channels=9, out=3, h=4, w=4, x_coeffs=twos(8), w_coeffs=twos(8))
    yield serial_gemm_case(rng)
    yield serial_gemm_case(rng, rows=(2, 3), k=64, out=24, x_coeffs=twos(4), w_coeffs=twos(4))
    yield serial_gemm_case(rng, rows=(5,), k=128, out=9, w_coeffs=(1,), bipolar=1, x_coeffs=(2, 4), x_offset=-3)
    yield serial_gemm_case(
        rng, rows=(2,), k=120, out=8, holes=13, w_coeffs=(1, 2), bipolar=1, x_coeffs=(1,), x_offset=5
    )
    yield serial_gemm_case(rng, rows=(1,), k=50, out=3, holes=6, x_coeffs=twos(8), w_coeffs=twos(8), x_offset=-7)
    yield level_pool_case(rng)
    yield level_pool_case(rng, planes=4, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), channels=130)
    yield level_pool_case(rng, planes=3, kernel=(3, 2), strides=(1, 2), dilations=(1, 2), pads=(0, 1, 2, 0), channels=8)
    yield level_pool_case(rng, planes=8, kernel=(5, 5), strides=(1, 1), pads=(2, 2, 2, 2), channels=5)
