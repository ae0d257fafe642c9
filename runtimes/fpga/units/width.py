"""Between streams of different word widths."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Widen(wiring.Component):
    """Puts ``ratio`` words of ``width`` bits into one, the first lowest; ``ratio`` is more than 1."""

    def __init__(self, width: int, ratio: int) -> None:
        self.width, self.ratio = width, ratio
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width * ratio))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        kept = Signal(self.width * (self.ratio - 1), reset_less=True)
        place = Signal(range(self.ratio))
        # Handshakes go by registers, not by comparisons: they reach from one unit to the next within a cycle. A word is made
        # where none waits, whether or not one is taken just now, and the registers of its parts do not know of it: wide
        # registers have enables of few signals, none of which comes through the unit behind. That costs no cycle, since a
        # word is taken while the parts of the next one come.
        last, free = Signal(), ~self.output.valid
        m.d.comb += self.input.ready.eq(~last | free)
        with m.If(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        with m.If(self.input.valid & ~last):
            m.d.sync += [
                kept.eq(Cat(kept, self.input.payload)[self.width :]), place.eq(place + 1),
                last.eq(place == self.ratio - 2),
            ]  # fmt: skip
        with m.If(self.input.valid & last & free):
            m.d.sync += [
                self.output.payload.eq(Cat(kept, self.input.payload)), self.output.valid.eq(1), place.eq(0), last.eq(0),
            ]  # fmt: skip
        return m


class Narrow(wiring.Component):
    """Cuts a word into ``ratio`` words of ``width`` bits, lowest first."""

    def __init__(self, width: int, ratio: int) -> None:
        self.width, self.ratio = width, ratio
        super().__init__({"input": In(stream.Signature(width * ratio)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        kept = Signal(self.width * self.ratio, reset_less=True)
        left, last = Signal(range(self.ratio + 1)), Signal()
        m.d.comb += [
            self.output.payload.eq(kept[: self.width]),
            self.input.ready.eq(~self.output.valid | (last & self.output.ready)),
        ]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += [
                kept.eq(self.input.payload), left.eq(self.ratio), last.eq(self.ratio == 1), self.output.valid.eq(1),
            ]  # fmt: skip
        with m.Elif(self.output.valid & self.output.ready):
            m.d.sync += [
                kept.eq(kept[self.width :]),
                left.eq(left - 1),
                last.eq(left == 2),
                self.output.valid.eq(~last),
            ]
        return m


def converters(source: int, result: int) -> list[wiring.Component]:
    """Units that take words of ``source`` bits to words of ``result`` bits, bit order kept; none where they are equal.

    Where neither divides the other, words pass through the greatest common divisor.
    """
    from math import gcd

    common = gcd(source, result)
    units: list[wiring.Component] = []
    if source != common:
        units.append(Narrow(common, source // common))
    if result != common:
        units.append(Widen(common, result // common))
    return units
