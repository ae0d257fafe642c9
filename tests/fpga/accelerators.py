"""Small accelerators for tests of the link: what they compute is easy to say."""

from __future__ import annotations

from math import ceil
from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Invert(wiring.Component):
    """Every word inverted: the bits of an image, those of the padding too (which nobody sees)."""

    _MustUse__silence = True  # some tests refuse it

    def __init__(self, bits: int, width: int) -> None:
        self.frame_in_bits = self.frame_out_bits = bits
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        with m.If(~self.output.valid | self.output.ready):
            m.d.comb += self.input.ready.eq(1)
            m.d.sync += [self.output.payload.eq(~self.input.payload), self.output.valid.eq(self.input.valid)]
        return m


class Sum(wiring.Component):
    """The sum of an image's bytes, as 12 bits in words of 12: other sizes at the output than at the input."""

    _MustUse__silence = True

    def __init__(self, count: int) -> None:
        self.count, self.frame_in_bits, self.frame_out_bits = count, 8 * count, 12
        super().__init__({"input": In(stream.Signature(8)), "output": Out(stream.Signature(12))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        place = Signal(range(self.count))
        m.d.comb += self.input.ready.eq(~self.output.valid)
        with m.If(self.output.valid & self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += self.output.payload.eq(Mux(place == 0, 0, self.output.payload) + self.input.payload)
            m.d.sync += place.eq(place + 1)
            with m.If(place == self.count - 1):
                m.d.sync += [place.eq(0), self.output.valid.eq(1)]
        return m


def inverted(image: bytes, bits: int) -> bytes:
    """What ``Invert`` makes of an image whose padding is zero, up to the padding of the last byte."""
    assert len(image) == ceil(bits / 8)
    return bytes(byte ^ 0xFF for byte in image)
