"""The largest of a window's elements, channel by channel: max-pooling behind a sliding-window unit.

For windows that overlap or reach over the edge, and for elements of several bits.
"""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Largest(wiring.Component):
    """Of ``positions`` pixels, one behind the other, the largest element of each channel; the least where ``flip`` is 1.

    ``flip``: bits 0/1 ``[channels]``. Words of ``simd`` elements of ``bits`` bits, in two's complement where ``is_signed``.
    Takes a word a cycle; what is the largest so far lies in distributed memory.
    """

    def __init__(self, positions: int, flip: np.ndarray, simd: int, bits: int, is_signed: bool) -> None:
        if len(flip) % simd:
            raise ValueError(f"{simd} does not divide {len(flip)} channels")
        self.positions, self.flip, self.simd, self.bits, self.is_signed = positions, flip, simd, bits, is_signed
        self.words = len(flip) // simd
        width = simd * bits
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        width, all_ones = self.simd * self.bits, (1 << self.bits) - 1
        masks = [
            sum(all_ones << (i * self.bits) for i, bit in enumerate(self.flip[start : start + self.simd]) if bit)
            for start in range(0, len(self.flip), self.simd)
        ]
        word, position = Signal(range(self.words)), Signal(range(self.positions))
        mask = Signal(width)
        m.d.comb += mask.eq(masks[0])
        if len(set(masks)) > 1:
            with m.Switch(word):
                for k, value in enumerate(masks):
                    with m.Case(k):
                        m.d.comb += mask.eq(Const(value, width))
        m.submodules.sofar = memory = Memory(
            shape=width, depth=max(2, self.words), init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        # Inverting all bits of a number, in two's complement or not, turns the order round: the least becomes the largest.
        turned, merged, taken = Signal(width), Signal(width), Signal()
        first, last = position == 0, position == self.positions - 1
        m.d.comb += [
            turned.eq(self.input.payload ^ mask),
            merged.eq(Cat(*(self._larger(turned, read.data, first, k) for k in range(self.simd)))),
            self.input.ready.eq(~self.output.valid | self.output.ready),
            taken.eq(self.input.valid & self.input.ready),
            read.addr.eq(word), write.addr.eq(word), write.data.eq(merged), write.en.eq(taken),
        ]  # fmt: skip
        with m.If(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        with m.If(taken):
            m.d.sync += word.eq(Mux(word == self.words - 1, 0, word + 1))
            with m.If(word == self.words - 1):
                m.d.sync += position.eq(Mux(last, 0, position + 1))
            with m.If(last):
                m.d.sync += [self.output.payload.eq(merged ^ mask), self.output.valid.eq(1)]
        return m

    def _larger(self, new: Value, sofar: Value, first: Value, k: int) -> Value:
        """Element ``k`` of a word, or what was there before it."""
        a, b = (word[k * self.bits : (k + 1) * self.bits] for word in (new, sofar))
        if self.bits == 1 and not self.is_signed:
            return a | (b & ~first)
        wins = a.as_signed() > b.as_signed() if self.is_signed else a > b
        return Mux(first | wins, a, b)
