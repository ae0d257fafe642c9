"""The arithmetic of fixed-point types in NumPy: what ``ap_fixed<W, I, Q, O>`` of AMD's Vitis HLS does to a value.

A fixed-point number is an integer, its *raw* value, times 2^-f with f = W − I fraction bits. Bringing a value to fewer
fraction bits rounds (the quantization mode Q), bringing it to fewer bits of weight overflows (the overflow mode O): see
"Arbitrary Precision Fixed-Point Data Types" in AMD's UG1399. Rounding comes first and may itself overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Rounding(IntEnum):
    """Quantization modes. Between two raw values q and q + 1:"""

    TRN = 0
    """``AP_TRN``: to q, toward minus infinity (the default)."""
    RND = 1
    """``AP_RND``: to the nearer one, ties toward plus infinity."""
    TRN_ZERO = 2
    """``AP_TRN_ZERO``: toward zero."""
    RND_ZERO = 3
    """``AP_RND_ZERO``: to the nearer one, ties toward zero."""
    RND_INF = 4
    """``AP_RND_INF``: to the nearer one, ties away from zero."""
    RND_MIN_INF = 5
    """``AP_RND_MIN_INF``: to the nearer one, ties toward minus infinity."""
    RND_CONV = 6
    """``AP_RND_CONV``: to the nearer one, ties to the even one (``torch.round``)."""


class Overflow(IntEnum):
    """Overflow modes: what becomes of a raw value outside of the type's range."""

    WRAP = 0
    """``AP_WRAP`` with no saturation bits: the low W bits are kept (the default)."""
    SAT = 1
    """``AP_SAT``: the nearest end of the range."""
    SAT_ZERO = 2
    """``AP_SAT_ZERO``: zero."""
    SAT_SYM = 3
    """``AP_SAT_SYM``: as ``AP_SAT``, but the least value of a signed type is −(2^(W−1) − 1)."""


@dataclass(frozen=True)
class FixedType:
    """``ap_fixed<width, integer, rounding, overflow>`` (``ap_ufixed`` where not ``signed``)."""

    width: int
    integer: int
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP
    signed: bool = True

    @property
    def fraction(self) -> int:
        """Fraction bits f: a raw value stands for raw · 2^-f."""
        return self.width - self.integer

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real values to raw ones: float [..] → int64 [..]. Exact for float32: the arithmetic is in float64."""
        scaled = np.ldexp(np.asarray(x, np.float64), self.fraction)
        whole = np.floor(np.abs(scaled))
        part = np.abs(scaled) - whole
        return limit(signed_round(scaled < 0, whole, part, self.rounding), self.width, self.signed, self.overflow)

    def values(self, raw: np.ndarray) -> np.ndarray:
        """Raw values to what they stand for, float64."""
        return np.ldexp(np.asarray(raw, np.float64), -self.fraction)


def signed_round(negative: np.ndarray, whole: np.ndarray, part: np.ndarray, rounding: Rounding) -> np.ndarray:
    """±(``whole`` + ``part``), 0 <= part < 1, as an integral float64. Magnitudes keep the parts of tiny values exact."""
    above, tie = part > 0.5, part == 0.5
    up = {
        Rounding.TRN: negative & (part > 0),
        Rounding.RND: above | (tie & ~negative),
        Rounding.TRN_ZERO: np.zeros_like(negative),
        Rounding.RND_ZERO: above,
        Rounding.RND_INF: above | tie,
        Rounding.RND_MIN_INF: above | (tie & negative),
        Rounding.RND_CONV: above | (tie & (np.fmod(whole, 2) == 1)),
    }[Rounding(rounding)]
    return np.where(negative, -(whole + up), whole + up)


def shift_round(v: np.ndarray, shift: int, rounding: Rounding) -> np.ndarray:
    """``v / 2^shift`` rounded, for integers: int64 [..] → int64 [..]."""
    v = np.asarray(v, np.int64)
    quotient = v >> shift
    twice = 2 * (v - (quotient << shift)) - (1 << shift)  # the remainder against one half
    negative, above, tie = v < 0, twice > 0, twice == 0
    up = {
        Rounding.TRN: np.zeros_like(negative),
        Rounding.RND: above | tie,
        Rounding.TRN_ZERO: negative & ((quotient << shift) != v),
        Rounding.RND_ZERO: above | (tie & negative),
        Rounding.RND_INF: above | (tie & ~negative),
        Rounding.RND_MIN_INF: above,
        Rounding.RND_CONV: above | (tie & (quotient % 2 == 1)),
    }[Rounding(rounding)]
    return quotient + up


def bounds(width: int, signed: bool, overflow: Overflow = Overflow.SAT) -> tuple[int, int]:
    """Least and greatest raw value of a type."""
    if not signed:
        return 0, (1 << width) - 1
    high = (1 << (width - 1)) - 1
    return -high if overflow is Overflow.SAT_SYM else -high - 1, high


def limit(raw: np.ndarray, width: int, signed: bool, overflow: Overflow) -> np.ndarray:
    """Integral values (integers, or float64 of any size) brought into the range of a type: int64."""
    overflow = Overflow(overflow)
    low, high = bounds(width, signed, overflow)
    if overflow is Overflow.WRAP:
        residue = np.mod(raw, 1 << width)
        return np.where(residue > high, residue - (1 << width), residue).astype(np.int64)
    inside = np.clip(raw, low, high)
    return np.where((raw == inside) | (overflow is not Overflow.SAT_ZERO), inside, 0).astype(np.int64)
