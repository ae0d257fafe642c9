"""The fixed-point epilogue: numbers times a constant of their channel, plus another, rounded and limited as by ``ap_fixed``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed

from ....opset._fixed import Overflow, Rounding, bounds, limit, shift_round
from .matvec import LOGIC_DEPTH, Store, rom
from .steady import Steady, later
from .technology import Technology


@dataclass(frozen=True, eq=False)
class Rescaling:
    """``overflow(round((x · mul + add) / 2^shift))`` with int64 ``mul`` and ``add`` ``[M]``: the operator ``FixedRescale``."""

    mul: np.ndarray
    add: np.ndarray
    shift: int
    width: int
    signed: bool
    rounding: Rounding
    overflow: Overflow

    def reference(self, x: np.ndarray) -> np.ndarray:
        """int64 ``[..., M]`` to int64."""
        raw = shift_round(x.astype(np.int64) * self.mul + self.add, self.shift, self.rounding)
        return limit(raw, self.width, self.signed, self.overflow)

    def bits(self, width: int, is_signed: bool) -> tuple[int, int, int]:
        """Bits of ``mul``, ``add`` and of ``x · mul + add``, all in two's complement, for x of ``width`` bits."""
        low, high = bounds(width, is_signed)
        ends = [int(value) for x in (low, high) for value in (x * self.mul + self.add)]
        ends += [int(value) for x in (low, high) for value in x * self.mul]
        return _bits(self.mul.tolist()), _bits(self.add.tolist()), _bits(ends)


def _bits(values: list[int]) -> int:
    return 1 + max(value.bit_length() if value >= 0 else (-value - 1).bit_length() for value in values)


class Rescale(Steady):
    """``simd`` numbers of ``width`` bits a word, in two's complement where ``is_signed``."""

    def __init__(
        self, scaling: Rescaling, width: int, is_signed: bool, simd: int, technology: Technology | None = None
    ) -> None:
        self.scaling, self.width, self.is_signed, self.simd = scaling, width, is_signed, simd
        self.technology = technology or Technology()
        self.words = len(scaling.mul) // simd
        self.mul_bits, self.add_bits, self.wide = scaling.bits(width, is_signed)
        super().__init__(simd * width, simd * scaling.width)

    @property
    def store(self) -> Store:
        """Where the constants lie."""
        return "logic" if self.words <= LOGIC_DEPTH else "block"

    @property
    def latency(self) -> int:
        """Cycles from a word to its result."""
        return 6 + (0 if self.words == 1 else 1 if self.store == "logic" else 2)

    def compute(self, m: Module, word: Value, taken: Value) -> tuple[Value, int]:
        """See ``Steady``: product (two cycles, as multipliers have registers at both ends), sum, rounding, limits."""
        place, address = Signal(range(self.words)), Signal(range(max(2, self.words)), reset_less=True)
        with m.If(taken):
            m.d.sync += place.eq(Mux(place == self.words - 1, 0, place + 1))
        m.d.sync += address.eq(place)
        lane = self.mul_bits + self.add_bits
        words = [
            sum(
                (int(mul) % (1 << self.mul_bits) | int(add) % (1 << self.add_bits) << self.mul_bits) << (k * lane)
                for k, (mul, add) in enumerate(zip(muls, adds, strict=True))
            )
            for muls, adds in zip(
                self.scaling.mul.reshape(-1, self.simd).tolist(), self.scaling.add.reshape(-1, self.simd).tolist(),
                strict=True,
            )
        ]  # fmt: skip
        constants = rom(m, address, words, lane * self.simd, "constants", self.store, self.technology)
        numbers = later(m, word, "numbers", self.latency - 5)
        made = []
        for k in range(self.simd):
            number = numbers[k * self.width : (k + 1) * self.width]
            x = number.as_signed() if self.is_signed else Cat(number, Const(0, 1)).as_signed()
            own = constants[k * lane : (k + 1) * lane]
            mul, add = own[: self.mul_bits].as_signed(), own[self.mul_bits :].as_signed()
            x, mul = later(m, x, f"x_{k}"), later(m, mul, f"mul_{k}")
            product = Signal(signed(self.wide), name=f"product_{k}", reset_less=True)
            total = Signal(signed(self.wide), name=f"total_{k}", reset_less=True)
            m.d.sync += [product.eq(x * mul), total.eq(product + later(m, add, f"add_{k}", 2))]
            made.append(self._limited(m, self._rounded(m, total, k), k))
        return Cat(*made), self.latency

    def _rounded(self, m: Module, value: Value, k: int) -> Value:
        """``value / 2^shift`` as the mode says, a cycle later."""
        shift, mode = self.scaling.shift, self.scaling.rounding
        rounded = Signal(signed(max(2, self.wide - shift + 1)), name=f"rounded_{k}", reset_less=True)
        if shift == 0:
            m.d.sync += rounded.eq(value)
            return rounded
        quotient, negative = (value >> shift), value[-1]
        half, rest = value[shift - 1], value[: shift - 1].any() if shift > 1 else Const(0, 1)
        above, tie = half & rest, half & ~rest
        up = {
            Rounding.TRN: Const(0, 1),
            Rounding.RND: half,
            Rounding.TRN_ZERO: negative & (half | rest),
            Rounding.RND_ZERO: above | (tie & negative),
            Rounding.RND_INF: above | (tie & ~negative),
            Rounding.RND_MIN_INF: above,
            Rounding.RND_CONV: above | (tie & value[shift]),
        }[mode]
        m.d.sync += rounded.eq(quotient + up)
        return rounded

    def _limited(self, m: Module, value: Value, k: int) -> Value:
        """The value within the type's range, a cycle later."""
        scaling = self.scaling
        low, high = bounds(scaling.width, scaling.signed, scaling.overflow)
        result = Signal(scaling.width, name=f"result_{k}", reset_less=True)
        kept: Value = value
        if scaling.overflow is not Overflow.WRAP:
            zero = scaling.overflow is Overflow.SAT_ZERO
            kept = Mux(value < low, 0 if zero else low, Mux(value > high, 0 if zero else high, value))
        m.d.sync += result.eq(kept)
        return result
