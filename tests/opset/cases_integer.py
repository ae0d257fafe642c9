"""Cases of the integer products: shapes that take every path of the kernels, extreme values, every bit width."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def integer_conv_case(
    rng: np.random.Generator, *, n=1, h=6, w=7, channels=16, out=8, kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
    pads=(1, 1, 1, 1), group=1, dtype="int8", shift=None, extreme=False, least=-128,
) -> Case:  # fmt: skip
    kind = np.iinfo(dtype)
    attrs = {"group": group, "strides": list(strides), "dilations": list(dilations), "pads": list(pads)}
    x = rng.integers(kind.min, kind.max + 1, (n, h, w, channels)).astype(dtype)
    weight = rng.integers(least, 128, (out, *kernel, channels // group)).astype(np.int8)
    if extreme:
        x[:], weight[:] = kind.min or kind.max, least
    extra = [] if shift is None else [np.array([shift], np.int32)]
    return ("IntegerConv" if shift is None else "SwitchedConv"), attrs, [x, weight, *extra]


def integer_gemm_case(
    rng: np.random.Generator, *, rows=(3,), k=40, out=17, dtype="int8", shift=None, extreme=False
) -> Case:
    kind = np.iinfo(dtype)
    x = rng.integers(kind.min, kind.max + 1, (*rows, k)).astype(dtype)
    weight = rng.integers(-128, 128, (out, k)).astype(np.int8)
    if extreme:
        x[:], weight[:] = kind.min or kind.max, -128
    extra = [] if shift is None else [np.array([shift], np.int32)]
    return ("IntegerGemm" if shift is None else "SwitchedGemm"), {}, [x, weight, *extra]


def cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield integer_conv_case(rng)
    yield integer_conv_case(rng, channels=64, out=40, h=14, w=14)
    yield integer_conv_case(rng, channels=13, out=5, dtype="uint8", strides=(2, 1), pads=(0, 2, 1, 0), n=2)
    yield integer_conv_case(rng, channels=12, out=24, group=3, dilations=(2, 1), pads=(2, 1, 2, 1))
    yield integer_conv_case(rng, channels=10, out=10, group=10)
    for channels, least in ((32, -127), (21, -128)):  # depthwise
        sizes = {"channels": channels, "out": channels, "group": channels, "least": least}
        yield integer_conv_case(rng, **sizes, h=14, w=11, n=2, strides=(2, 2))
        yield integer_conv_case(rng, **sizes, kernel=(5, 2), pads=(2, 0, 3, 1), dilations=(1, 2), dtype="uint8")
        yield integer_conv_case(rng, **sizes, extreme=True)
    yield integer_conv_case(rng, channels=3, out=9, kernel=(1, 1), pads=(0, 0, 0, 0))
    yield integer_conv_case(rng, channels=512, out=8, h=2, w=2, extreme=True)
    yield integer_conv_case(rng, channels=512, out=8, h=2, w=2, dtype="uint8", extreme=True)
    yield integer_gemm_case(rng)
    yield integer_gemm_case(rng, rows=(1,), k=1000, out=10, dtype="uint8")
    yield integer_gemm_case(rng, rows=(2, 35), k=64, out=64)
    yield integer_gemm_case(rng, rows=(), k=3, out=1)
    yield integer_gemm_case(rng, rows=(2,), k=65536, out=3, extreme=True)
    for shift in range(8):
        yield integer_gemm_case(rng, rows=(5,), k=256, out=16, shift=shift)
    yield integer_gemm_case(rng, rows=(2,), k=30, out=9, dtype="uint8", shift=-3)
    yield integer_gemm_case(rng, rows=(2,), k=30, out=9, shift=100)
    yield integer_conv_case(rng, channels=24, out=20, shift=4)
    yield integer_conv_case(rng, channels=16, out=16, group=2, shift=6, dtype="uint8", strides=(2, 2))
