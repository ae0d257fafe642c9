"""Sums of neighbouring elements, each times a small constant: what makes one number of the counts of bit planes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from amaranth.hdl import Cat, Const, Module, Value, signed

from .steady import Steady, balanced, later


def span_of(coefficients: Sequence[int], most: int) -> tuple[int, int]:
    """The least and the largest sum of numbers from 0 to ``most``."""
    return most * sum(c for c in coefficients if c < 0), most * sum(c for c in coefficients if c > 0)


def bits_of(low: int, high: int) -> tuple[int, bool]:
    """Bits of all numbers from ``low`` to ``high``, in two's complement where some are negative (the flag)."""
    if low < 0:
        return 1 + max(high.bit_length(), (-low - 1).bit_length()), True
    return max(1, high.bit_length()), False


class Weigh(Steady):
    """``simd`` groups of neighbours a word, each neighbour ``width`` bits, not signed: ``Σ coefficients[j] · x[j]``."""

    def __init__(self, coefficients: Sequence[int], most: int, simd: int) -> None:
        self.coefficients, self.simd = list(coefficients), simd
        self.width = max(1, most.bit_length())
        self.bits, _ = bits_of(*span_of(coefficients, most))
        super().__init__(simd * len(coefficients) * self.width, simd * self.bits)

    @staticmethod
    def reference(coefficients: Sequence[int], x: np.ndarray) -> np.ndarray:
        """int64 ``[..., C · len(coefficients)]`` to ``[..., C]``."""
        return x.reshape(*x.shape[:-1], -1, len(coefficients)).astype(np.int64) @ np.asarray(coefficients, np.int64)

    def compute(self, m: Module, word: Value, taken: Value) -> tuple[Value, int]:
        """See ``Steady``."""
        made, cycles = [], 0
        group = self.width * len(self.coefficients)
        for lane in range(self.simd):
            terms: list[Value] = []
            for place, worth in enumerate(self.coefficients):
                start = lane * group + place * self.width
                number = word[start : start + self.width]
                shift = (worth & -worth).bit_length() - 1
                odd = worth >> shift
                part = Cat(number, Const(0, 1)).as_signed()  # never negative
                value = part if odd == 1 else -part if odd == -1 else part * Const(odd, signed(odd.bit_length() + 1))
                terms.append(later(m, Cat(Const(0, shift), value).as_signed() if shift else value, "term"))
            total, levels = balanced(m, terms, "total")
            made.append(
                total[: self.bits]
                if len(total) >= self.bits
                else Cat(total, total[-1].replicate(self.bits - len(total)))
            )
            cycles = levels + 1
        return Cat(*made), cycles
