"""QONNX's operators once more, in float64 and element by element where the specification leaves no doubt.

Written from the specification (``docs/qonnx-custom-ops`` of qonnx), not from the importer: rounding goes by its table, on
exact fractions. Arithmetic in float32 is NumPy's, one operation at a time, as the operators are defined on float32.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def round_one(value: float, mode: str) -> int:
    """One number to a whole one, by the specification's table of rounding modes."""
    x = Fraction(float(value))
    down = x.numerator // x.denominator
    rest = x - down
    toward_zero = down if x >= 0 or rest == 0 else down + 1
    away = toward_zero if rest == 0 else toward_zero + (1 if x > 0 else -1)
    half, nearest = rest == Fraction(1, 2), down + (rest > Fraction(1, 2))
    return {
        "ROUND": nearest if not half else down + down % 2,
        "HALF_EVEN": nearest if not half else down + down % 2,
        "CEIL": down + (rest > 0),
        "FLOOR": down,
        "UP": away,
        "DOWN": toward_zero,
        "ROUND_TO_ZERO": toward_zero,
        "HALF_UP": nearest if not half else away,
        "HALF_DOWN": nearest if not half else toward_zero,
    }[mode]


def round_all(x: np.ndarray, mode: str) -> np.ndarray:
    """``round_one`` for every element, float32."""
    return np.array([round_one(value, mode) for value in x.reshape(-1)], np.float32).reshape(x.shape)


def limits(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """All integers of that many bits; narrow: as many negative as positive ones, or one fewer."""
    integers = list(range(-(1 << bits >> 1), 1 << bits >> 1)) if signed else list(range(1 << bits))
    if narrow:
        integers = integers[1:] if signed else integers[:-1]
    return integers[0], integers[-1]


def quant(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, signed: bool, narrow: bool, mode: str
) -> np.ndarray:
    """``Quant``, and one signed bit as the executor has it."""
    y = x / scale + zero
    if bits == 1 and signed:
        y = np.where(y >= 0, np.float32(1), np.float32(-1))
    else:
        low, high = limits(bits, signed, narrow)
        y = round_all(np.minimum(np.maximum(y, np.float32(low)), np.float32(high)), mode)
    return (y - zero) * scale


def bipolar(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``BipolarQuant``."""
    return np.array([1 if value >= 0 else -1 for value in x.reshape(-1)], np.float32).reshape(x.shape) * scale


def trunc_1(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, out_bits: int, mode: str) -> np.ndarray:
    """``Trunc`` of version 1: drops the lowest bits, keeps the scale."""
    y = round_all(x / scale + zero, "ROUND") / np.float32(2.0 ** (bits - out_bits))
    return (round_all(y, mode) - zero) * scale


def trunc_2(
    x: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    out_scale: np.ndarray,
    out_bits: int,
    signed: bool,
    narrow: bool,
    mode: str,
) -> np.ndarray:
    """``Trunc`` of version 2: to another scale, a power of two away, and clamped."""
    step = np.float32(2) ** np.round(np.log2(out_scale / scale)).astype(np.float32)
    low, high = limits(out_bits, signed, narrow)
    y = round_all(x / scale + zero, "ROUND") / step
    y = round_all(np.minimum(np.maximum(y, np.float32(low)), np.float32(high)), mode)
    return (y - zero / step) * out_scale


def multi_threshold(
    x: np.ndarray, thresholds: np.ndarray, factor: np.float32, bias: np.float32, axis: int
) -> np.ndarray:
    """``MultiThreshold``: how many thresholds are reached, channel by channel of ``axis``."""
    rows = np.moveaxis(x, axis, 0)
    table = thresholds if len(thresholds) > 1 else np.repeat(thresholds, len(rows), axis=0)
    counts = np.stack([sum((row >= t).astype(np.float32) for t in line) for row, line in zip(rows, table, strict=True)])
    return np.float32(factor) * np.moveaxis(counts, 0, axis) + np.float32(bias)


def xnor_popcount(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``XnorPopcountMatMul``: the number of positions where row and column hold the same bit."""
    return (a[:, :, None] == b[None]).sum(axis=1).astype(np.float32)
