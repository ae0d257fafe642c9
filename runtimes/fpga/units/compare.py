"""Numbers to codes of a few bits: a quantizer, as thresholds of each channel."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from .matvec import LOGIC_DEPTH, Border, Store, rom
from .steady import Steady, later
from .technology import Technology


@dataclass(frozen=True, eq=False)
class Steps:
    """A quantizer: a number reaches as many steps as there are ``limits`` not above it, and becomes the code of that number.

    ``limits``: int64 ``[classes, M, T]``, rising along T, a class for each of ``border`` (one without). ``falls``: 0/1
    ``[M]``, where the codes are read from the other end. ``codes``: T + 1 numbers of ``bits`` bits.
    """

    limits: np.ndarray
    falls: np.ndarray
    codes: tuple[int, ...]
    bits: int
    border: Border | None = None

    @property
    def steps(self) -> int:
        """T."""
        return self.limits.shape[2]

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Codes int64 ``[..., M]`` of numbers ``[..., M]``; all pixels of an image where there is a border."""
        limits = self.limits[0]
        if self.border is not None:
            limits = self.limits[self.border.classes()].reshape(*x.shape, self.steps)
        reached = (x[..., None] >= limits).sum(-1)
        return np.asarray(self.codes, np.int64)[np.where(self.falls, self.steps - reached, reached)]


class Compare(Steady):
    """``simd`` numbers of ``width`` bits (two's complement where ``is_signed``) a word to codes; channel 0 lowest."""

    def __init__(
        self, steps: Steps, width: int, is_signed: bool, simd: int, technology: Technology | None = None
    ) -> None:
        self.steps, self.width, self.is_signed, self.simd = steps, width, is_signed, simd
        self.technology = technology or Technology()
        self.words = steps.limits.shape[1] // simd
        self.wide = width + (not is_signed) + 1
        """Bits of a threshold: one that nothing reaches is beyond what a number can be."""
        super().__init__(simd * width, simd * steps.bits)

    @property
    def entries(self) -> int:
        """Words of thresholds."""
        return self.words * self.steps.limits.shape[0]

    @property
    def store(self) -> Store:
        """Where they lie."""
        return "logic" if self.entries <= LOGIC_DEPTH else "block"

    @property
    def latency(self) -> int:
        """Cycles from a word to its codes."""
        return 3 + (0 if self.entries == 1 else 1 if self.store == "logic" else 2)

    def _table(self) -> tuple[list[int], int]:
        """Thresholds, lowest first, and above them whether codes fall: of a lane, lanes behind one another; and their width."""
        low = -(1 << (self.wide - 1))
        limits = np.clip(self.steps.limits, low, -low - 1)
        lane = self.wide * self.steps.steps + 1
        words = []
        for numbers in limits:
            for start in range(0, len(numbers), self.simd):
                word = 0
                for place in range(self.simd):
                    value = int(self.steps.falls[start + place]) << (lane - 1)
                    for t, limit in enumerate(numbers[start + place]):
                        value |= (int(limit) % (1 << self.wide)) << (t * self.wide)
                    word |= value << (place * lane)
                words.append(word)
        return words, lane * self.simd

    def _address(self, m: Module, taken: Value) -> Value:
        """The entry of the word that is taken, a cycle later."""
        word = Signal(range(self.words))
        last = word == self.words - 1
        place: Value = word
        with m.If(taken):
            m.d.sync += word.eq(Mux(last, 0, word + 1))
        if (border := self.steps.border) is not None:
            x, y = Signal(range(len(border.columns))), Signal(range(len(border.rows)))
            with m.If(taken & last):
                m.d.sync += x.eq(Mux(x == len(border.columns) - 1, 0, x + 1))
                with m.If(x == len(border.columns) - 1):
                    m.d.sync += y.eq(Mux(y == len(border.rows) - 1, 0, y + 1))
            for counter, classes, worth in ((x, border.columns, 1), (y, border.rows, 1 + max(border.columns))):
                part = Signal(range(self.entries))
                with m.Switch(counter):
                    for index, number in enumerate(classes):
                        if number:
                            with m.Case(index):
                                m.d.comb += part.eq(number * worth * self.words)
                place = place + part
        address = Signal(range(max(2, self.entries)), reset_less=True)
        m.d.sync += address.eq(place)
        return address

    def compute(self, m: Module, word: Value, taken: Value) -> tuple[Value, int]:
        """See ``Steady``."""
        words, wide = self._table()
        limits = rom(m, self._address(m, taken), words, wide, "limits", self.store, self.technology)
        numbers = later(m, word, "numbers", self.latency - 2)
        lane, made = wide // self.simd, []
        codes, steps = self.steps.codes, self.steps.steps
        for place in range(self.simd):
            number = numbers[place * self.width : (place + 1) * self.width]
            value = number.as_signed() if self.is_signed else Cat(number, Const(0, 1)).as_signed()
            own = limits[place * lane : (place + 1) * lane]
            reached = Signal(steps, name=f"reached_{place}", reset_less=True)
            m.d.sync += reached.eq(
                Cat(*(value >= own[t * self.wide : (t + 1) * self.wide].as_signed() for t in range(steps)))
            )
            falls = later(m, own[-1], "falls")
            up, down = (_code(reached, list(order), self.steps.bits) for order in (codes, codes[::-1]))
            code = Signal(self.steps.bits, name=f"code_{place}", reset_less=True)
            m.d.sync += code.eq(Mux(falls, down, up) if self.steps.falls.any() else up)
            made.append(code)
        return Cat(*made), self.latency


def _code(reached: Signal, codes: list[int], bits: int) -> Value:
    """The code of the number of steps reached: those below it are reached too, so each step flips what changes there."""
    made = []
    for bit in range(bits):
        value: Value = Const((codes[0] >> bit) & 1, 1)
        for step, (before, behind) in enumerate(itertools.pairwise(codes)):
            if (before ^ behind) >> bit & 1:
                value = value ^ reached[step]
        made.append(value)
    return Cat(*made)
