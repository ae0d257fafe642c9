"""A depthwise convolution behind a sliding-window unit: each channel's window times the channel's own weights."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ....opset._fixed import bounds
from .matvec import LOGIC_DEPTH, Store, rom
from .steady import collect, later
from .technology import Technology
from .weigh import bits_of


def result_of(weights: np.ndarray, bits: int, is_signed: bool) -> tuple[int, bool]:
    """Bits of a channel's sum, and whether they are in two's complement.

    ``weights``: int64 ``[positions, channels]``; elements of ``bits`` bits, in two's complement where ``is_signed``.
    """
    least, most = bounds(bits, is_signed)
    ends = np.stack([weights * least, weights * most])
    return bits_of(int(ends.min(0).sum(0).min()), int(ends.max(0).sum(0).max()))


class Depthwise(wiring.Component):
    """Of a window's pixels, one behind the other, each channel's sum of elements times ``weights`` ``[positions, channels]``.

    Words of ``simd`` elements of ``bits`` bits, in two's complement where ``is_signed``; results as ``result_of`` says. Takes a
    word a cycle: sums so far lie in distributed memory, one word for each ``simd`` channels.
    """

    _MustUse__silence = True  # estimates ask one for its sizes, and never elaborate it

    def __init__(
        self, weights: np.ndarray, simd: int, bits: int, is_signed: bool, technology: Technology | None = None
    ) -> None:
        positions, channels = weights.shape
        if channels % simd:
            raise ValueError(f"{simd} does not divide {channels} channels")
        self.weights, self.simd, self.bits, self.is_signed = weights.astype(np.int64), simd, bits, is_signed
        self.technology = technology or Technology()
        self.positions, self.words = positions, channels // simd
        self.is_binary = bool((np.abs(self.weights) == 1).all())
        low, high = int(self.weights.min()), int(self.weights.max())
        self.weight_bits = 1 if self.is_binary else max(bits_of(low, high)[0] + (low >= 0), 2)
        self.result_bits, self.result_signed = result_of(self.weights, bits, is_signed)
        super().__init__(
            {"input": In(stream.Signature(simd * bits)), "output": Out(stream.Signature(simd * self.result_bits))}
        )

    @property
    def entries(self) -> int:
        """Words of weights."""
        return self.positions * self.words

    @property
    def store(self) -> Store:
        """Where they lie."""
        return "logic" if self.entries <= LOGIC_DEPTH else "block"

    @property
    def delay(self) -> int:
        """Cycles from a word to its product with the weights, and to the sum."""
        return 3 + (0 if self.entries == 1 else 1 if self.store == "logic" else 2)

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        taken, ready = Signal(), Signal()
        word, position = Signal(range(self.words)), Signal(range(self.positions))
        place, address = Signal(range(self.entries)), Signal(range(max(2, self.entries)), reset_less=True)
        ends_pixel = word == self.words - 1
        last = position == self.positions - 1
        m.d.comb += [self.input.ready.eq(ready), taken.eq(self.input.valid & ready)]
        with m.If(taken):
            m.d.sync += place.eq(Mux(place == self.entries - 1, 0, place + 1))
            m.d.sync += word.eq(Mux(ends_pixel, 0, word + 1))
            with m.If(ends_pixel):
                m.d.sync += position.eq(Mux(last, 0, position + 1))
        m.d.sync += address.eq(place)
        weights = rom(
            m, address, self._table(), self.simd * self.weight_bits, "weights", self.store, self.technology
        )  # fmt: skip
        early = self.delay - 2
        elements = later(m, self.input.payload, "elements", early)
        products = [
            later(m, self._product(elements.word_select(k, self.bits), weights, k), f"product_{k}")
            for k in range(self.simd)
        ]
        # A cycle later each product is added to the sum of its channel, which begins with the first position.
        width = self.result_bits
        m.submodules.sofar = memory = Memory(
            shape=self.simd * width, depth=max(2, self.words), init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        there, first = Signal(self.delay), later(m, position == 0, "first", early + 1)
        mine = later(m, word, "mine", early + 1)
        totals, sums = Signal(self.simd * width), Signal(self.simd * width, reset_less=True)
        parts = []
        for k, product in enumerate(products):
            before = Mux(first, 0, read.data[k * width : (k + 1) * width]).as_signed()
            parts.append(_bits(before + product, width))
        m.d.sync += there.eq(Cat(taken, there[:-1]))
        m.d.comb += [
            totals.eq(Cat(*parts)), read.addr.eq(mine), write.addr.eq(mine), write.data.eq(totals),
            write.en.eq(there[early]),
        ]  # fmt: skip
        m.d.sync += sums.eq(totals)
        done = Signal(self.delay)
        m.d.sync += done.eq(Cat(taken & last, done[:-1]))
        collect(m, self.output, sums, done[early + 1], taken & last, ready, self.delay)
        return m

    def _table(self) -> list[int]:
        """Words of weights, position by position; a weight of ±1 is a bit."""
        raw = (self.weights > 0) if self.is_binary else self.weights & ((1 << self.weight_bits) - 1)
        rows = raw.astype(np.int64).reshape(self.entries, self.simd).tolist()
        return [sum(value << (k * self.weight_bits) for k, value in enumerate(row)) for row in rows]

    def _product(self, element: Value, weights: Value, k: int) -> Value:
        """One element times its weight, in two's complement."""
        x = element.as_signed() if self.is_signed else Cat(element, Const(0, 1)).as_signed()
        own = weights[k * self.weight_bits : (k + 1) * self.weight_bits]
        return Mux(own, x, -x) if self.is_binary else x * own.as_signed()


def _bits(value: Value, width: int) -> Value:
    """The lowest ``width`` bits of a number in two's complement."""
    return value[:width] if len(value) >= width else Cat(value, value[-1].replicate(width - len(value)))
