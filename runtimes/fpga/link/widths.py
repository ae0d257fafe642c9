"""Width converters between the link's bytes and an accelerator's words.

One item (an image, a result) of ``bits`` bits is ceil(bits / 8) bytes on one side and ceil(bits / width) words on the
other, both little-endian, both padded with zeros at the end. Between the two the bits go in groups of gcd(8, width):
bytes are cut into groups, groups are added or left out at the end of each item, groups are collected to words. All of
it keeps the order and applies back-pressure; a converter moves one group a cycle.
"""

from __future__ import annotations

from math import ceil, gcd
from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Relay(wiring.Component):
    """Room for two words of ``width`` bits: no logic passes through in either direction, and a word does every cycle."""

    def __init__(self, width: int) -> None:
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: Any) -> Module:
        """The word at the output, and a spare one for what comes while that one waits."""
        m = Module()
        spare = Signal(len(self.input.payload))
        full = Signal()
        m.d.comb += self.input.ready.eq(~full)
        with m.If(~self.output.valid | self.output.ready):
            m.d.sync += [self.output.valid.eq(full | self.input.valid), full.eq(0)]
            m.d.sync += self.output.payload.eq(Mux(full, spare, self.input.payload))
        with m.Elif(self.input.valid & ~full):
            m.d.sync += [spare.eq(self.input.payload), full.eq(1)]
        return m


class Narrow(wiring.Component):
    """Words of ``wide`` bits to words of ``narrow`` bits, lowest bits first. ``wide`` is a multiple of ``narrow``."""

    def __init__(self, wide: int, narrow: int) -> None:
        assert wide % narrow == 0
        self.parts = wide // narrow
        super().__init__({"input": In(stream.Signature(wide)), "output": Out(stream.Signature(narrow))})

    def elaborate(self, platform: Any) -> Module:
        """A shift register and the number of parts that it still holds."""
        m = Module()
        if self.parts == 1:
            wiring.connect(m, wiring.flipped(self.input), wiring.flipped(self.output))
            return m
        word = Signal(len(self.input.payload))
        left = Signal(range(self.parts + 1))
        m.d.comb += [
            self.output.payload.eq(word),
            self.output.valid.eq(left != 0),
            self.input.ready.eq((left == 0) | ((left == 1) & self.output.ready)),
        ]
        with m.If(self.output.valid & self.output.ready):
            m.d.sync += [word.eq(word >> len(self.output.payload)), left.eq(left - 1)]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += [word.eq(self.input.payload), left.eq(self.parts)]
        return m


class Widen(wiring.Component):
    """Words of ``narrow`` bits to words of ``wide`` bits, lowest bits first. ``wide`` is a multiple of ``narrow``."""

    def __init__(self, narrow: int, wide: int) -> None:
        assert wide % narrow == 0
        self.parts = wide // narrow
        super().__init__({"input": In(stream.Signature(narrow)), "output": Out(stream.Signature(wide))})

    def elaborate(self, platform: Any) -> Module:
        """A shift register and the number of parts that it holds."""
        m = Module()
        if self.parts == 1:
            wiring.connect(m, wiring.flipped(self.input), wiring.flipped(self.output))
            return m
        word = Signal(len(self.output.payload))
        held = Signal(range(self.parts + 1))
        full = held == self.parts
        m.d.comb += [
            self.output.payload.eq(word),
            self.output.valid.eq(full),
            self.input.ready.eq(~full | self.output.ready),
        ]
        with m.If(self.output.valid & self.output.ready):
            m.d.sync += held.eq(0)
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += word.eq(Cat(word[len(self.input.payload) :], self.input.payload))
            with m.If(full):
                m.d.sync += held.eq(1)
            with m.Else():
                m.d.sync += held.eq(held + 1)
        return m


class Adjust(wiring.Component):
    """Items of ``given`` words to items of ``wanted`` words: words at the end are left out, or zeros added."""

    def __init__(self, width: int, given: int, wanted: int) -> None:
        self.given, self.wanted = given, wanted
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: Any) -> Module:
        """A counter of words within an item, where there is anything to do."""
        m = Module()
        if self.given == self.wanted:
            wiring.connect(m, wiring.flipped(self.input), wiring.flipped(self.output))
            return m
        last = max(self.given, self.wanted) - 1
        place = Signal(range(last + 1))
        moved = Signal()
        with m.If(place < min(self.given, self.wanted)):
            m.d.comb += [
                self.output.payload.eq(self.input.payload),
                self.output.valid.eq(self.input.valid),
                self.input.ready.eq(self.output.ready),
                moved.eq(self.input.valid & self.output.ready),
            ]
        with m.Elif(self.given > self.wanted):
            m.d.comb += [self.input.ready.eq(1), moved.eq(self.input.valid)]
        with m.Else():
            m.d.comb += [self.output.valid.eq(1), moved.eq(self.output.ready)]
        with m.If(moved):
            with m.If(place == last):
                m.d.sync += place.eq(0)
            with m.Else():
                m.d.sync += place.eq(place + 1)
        return m


class Convert(wiring.Component):
    """Items of ``bits`` bits from words of ``source`` bits to words of ``sink`` bits."""

    def __init__(self, bits: int, source: int, sink: int) -> None:
        self.bits, self.source, self.sink = bits, source, sink
        super().__init__({"input": In(stream.Signature(source)), "output": Out(stream.Signature(sink))})

    def elaborate(self, platform: Any) -> Module:
        """Cut, adjust, collect."""
        m = Module()
        group = gcd(self.source, self.sink)
        groups = [ceil(self.bits / width) * width // group for width in (self.source, self.sink)]
        m.submodules.cut = cut = Narrow(self.source, group)
        m.submodules.adjust = adjust = Adjust(group, *groups)
        m.submodules.collect = collect = Widen(group, self.sink)
        wiring.connect(m, wiring.flipped(self.input), cut.input)
        wiring.connect(m, cut.output, adjust.input)
        wiring.connect(m, adjust.output, collect.input)
        wiring.connect(m, collect.output, wiring.flipped(self.output))
        return m


class BytesToWords(Convert):
    """Bytes to an accelerator's words of ``width`` bits, for items of ``bits`` bits."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__(bits, 8, width)


class WordsToBytes(Convert):
    """An accelerator's words of ``width`` bits to bytes, for items of ``bits`` bits."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__(bits, width, 8)
