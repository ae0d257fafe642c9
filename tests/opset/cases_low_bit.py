"""Cases of the operators on codes. Small integers and powers of two: their float32 sums are exact in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.opset.cases import Case
from xnorc.opset import pack_bits
from xnorc.opset._codes import store_codes


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float32)


def conv_attrs(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=1) -> dict[str, Any]:
    return {
        "kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilations), "pads": list(pads),
        "group": group,
    }  # fmt: skip


def low_bit_case(
    rng: np.random.Generator, *, rows=(3,), k=96, out=17, bits=2, group=None, zero=True, offset=True, conv=None,
) -> Case:  # fmt: skip
    """``conv``: (shape of x, attributes) of a convolution in place of ``rows``."""
    if conv is not None:
        k = conv[0][1] // conv[1]["group"] * int(np.prod(conv[1]["kernel_shape"]))
    size = k if group is None else group
    groups = (out, -(-k // size))
    scale = np.exp2(rng.integers(-2, 3, groups)).astype(np.float32)
    zeros = (rng.integers(0, 2 * 2**bits, groups) / 2).astype(np.float32) if zero else np.zeros((1, 1), np.float32)
    offsets = whole(rng, *groups) if offset else np.zeros((1, 1), np.float32)
    codes = store_codes(rng.integers(0, 2**bits, (out, k)), bits)
    attrs = {"k": k, "group_size": size}
    if conv is None:
        return "LowBitGemm", attrs, [whole(rng, *rows, k), codes, scale, zeros, offsets]
    return "LowBitConv", {**conv[1], **attrs}, [whole(rng, *conv[0]), codes, scale, zeros, offsets]


def shift_case(rng: np.random.Generator, *, rows=(3,), k=96, out=17, bits=3, conv=None) -> Case:
    if conv is not None:
        k = conv[0][1] // conv[1]["group"] * int(np.prod(conv[1]["kernel_shape"]))
    codes = store_codes(rng.integers(0, 2**bits, (out, k)), bits)
    scale = np.exp2(rng.integers(-2, 3, out)).astype(np.float32)
    if conv is None:
        return "ShiftGemm", {"k": k}, [whole(rng, *rows, k), codes, scale]
    return "ShiftConv", {**conv[1], "k": k}, [whole(rng, *conv[0]), codes, scale]


def sparse_case(rng: np.random.Generator, *, rows=(3,), k=96, out=17, group=None, share=0.1, dtype=np.uint16) -> Case:
    _, attrs, (x, codes, scale, zeros, offsets) = low_bit_case(rng, rows=rows, k=k, out=out, bits=1, group=group)
    listed = rng.random((out, k)) < share
    listed[0, k - 1], listed[out // 2] = True, False
    starts = np.append(0, np.cumsum(listed.sum(1))).astype(np.int32)
    values = rng.integers(-128, 128, starts[-1]).astype(np.int8)
    tables = [np.exp2(rng.integers(-3, 1, out)).astype(np.float32), rng.integers(-3, 4, out).astype(np.float32)]
    return "SparseResidualGemm", attrs, [
        x, codes, scale, zeros, offsets, values, np.nonzero(listed)[1].astype(dtype), starts, *tables
    ]  # fmt: skip


def bit_float_case(rng: np.random.Generator, *, rows=(3,), k=32, out=17, clear=0) -> Case:
    packed = pack_bits(rng.integers(0, 2, (*rows, k)))
    return "BitFloatGemm", {"k": k, "clear": clear}, [packed, whole(rng, k, out)]


def ternary_case(rng: np.random.Generator, *, rows=(3,), k=96, out=17, extreme=False) -> Case:
    """``extreme``: the largest sum there is."""
    w = np.ones((out, k), int) if extreme else rng.integers(-1, 2, (out, k))
    x = np.full((*rows, k), -128) if extreme else rng.integers(-128, 128, (*rows, k))
    return "TernaryGemm", {"k": k}, [x.astype(np.int8), np.stack([pack_bits(w > 0), pack_bits(w < 0)])]


def quantize_case(rng: np.random.Generator, *, shape=(2, 5, 19), divide=0, low=-128, high=127, axes=None) -> Case:
    """Many ties: multiples of a quarter. ``axes``: shape of the scale, where it is not one a row."""
    x = (rng.integers(-600, 600, shape) / 4).astype(np.float32)
    scale = np.exp2(rng.integers(-1, 2, axes or (*shape[:-1], 1))).astype(np.float32)
    x.flat[:4] = [3e38, -3e38, -0.0, 1e-40]
    return "QuantizeRows", {"low": low, "high": high, "divide": divide}, [x, scale]


def cases(seed: int = 0) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 100)
    yield low_bit_case(rng)
    yield low_bit_case(rng, bits=1, rows=(1,), k=300, out=40, group=32)
    yield low_bit_case(rng, bits=3, rows=(2, 5), k=77, out=9, offset=False)
    yield low_bit_case(rng, bits=4, rows=(13,), k=700, out=35, group=64, zero=False)
    yield low_bit_case(rng, bits=4, rows=(1,), k=5, out=1, zero=False, offset=False)
    yield low_bit_case(rng, bits=2, rows=(7,), k=600, out=70, group=128)
    yield low_bit_case(rng, bits=2, out=12, conv=((1, 8, 9, 7), conv_attrs()))
    yield low_bit_case(rng, bits=1, out=6, zero=False, conv=((2, 4, 8, 8), conv_attrs(strides=(2, 2))))
    yield low_bit_case(rng, bits=3, out=8, conv=((1, 8, 5, 6), conv_attrs(group=4, pads=(0, 1, 2, 1))))
    yield low_bit_case(rng, bits=4, out=24, conv=((1, 16, 6, 6), conv_attrs((1, 1), pads=(0, 0, 0, 0))))
    yield shift_case(rng)
    yield shift_case(rng, bits=4, rows=(1,), k=513, out=33)
    yield shift_case(rng, bits=2, rows=(2, 3), k=12, out=5)
    yield shift_case(rng, out=12, conv=((1, 16, 8, 9), conv_attrs()))
    yield shift_case(
        rng, bits=4, out=10, conv=((1, 10, 7, 7), conv_attrs(group=10, dilations=(2, 2), pads=(2, 2, 2, 2)))
    )
    yield ternary_case(rng)
    yield ternary_case(rng, rows=(1,), k=1000, out=40)
    yield ternary_case(rng, rows=(2, 7), k=64, out=8)
    yield ternary_case(rng, rows=(5,), k=3, out=1)
    yield ternary_case(rng, rows=(2,), k=131071, out=9, extreme=True)
    yield quantize_case(rng)
    yield quantize_case(rng, shape=(7, 64), divide=1, low=-127)
    yield quantize_case(rng, shape=(1, 33), low=0, high=15)
    yield quantize_case(rng, shape=(2, 3, 4, 8), axes=(2, 1, 4, 1))
    yield sparse_case(rng)
    yield sparse_case(rng, rows=(1,), k=700, out=70, group=128, dtype=np.int32)
    yield sparse_case(rng, rows=(2, 5), k=40, out=5, share=0.5)
    yield sparse_case(rng, rows=(7,), k=520, out=3, group=32, share=0.0)
    yield bit_float_case(rng)
    yield bit_float_case(rng, rows=(2, 9), k=77, out=40, clear=-1)
    yield bit_float_case(rng, rows=(1,), k=1, out=1)
    yield bit_float_case(rng, rows=(5,), k=400, out=33)
