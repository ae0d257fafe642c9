"""From one clock to another: words of a stream through a FIFO whose ends have clocks of their own."""

from __future__ import annotations

from typing import Any

from amaranth import DomainRenamer, Module
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out

from .widths import Relay

_DEPTH = 8
"""What a word a cycle of the slower clock takes: pointers need a few cycles of either clock to get across."""


class Crossing(wiring.Component):
    """Words of ``width`` bits from domain ``source`` to domain ``sink``; the reset of ``source`` empties it.

    A relay behind the FIFO keeps its pointers apart from whoever takes the words. Both domains must be in reset together for
    a few cycles of either, or neither.
    """

    def __init__(self, width: int, source: str, sink: str) -> None:
        self.source, self.sink = source, sink
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: Any) -> Module:
        """Gray-coded pointers, as ``amaranth.lib.fifo`` has them."""
        m = Module()
        width = len(self.input.payload)
        m.submodules.words = words = AsyncFIFO(width=width, depth=_DEPTH, w_domain=self.source, r_domain=self.sink)
        relay = Relay(width)
        m.submodules.relay = DomainRenamer(self.sink)(relay)
        m.d.comb += [
            words.w_data.eq(self.input.payload),
            words.w_en.eq(self.input.valid),
            self.input.ready.eq(words.w_rdy),
            relay.input.payload.eq(words.r_data),
            relay.input.valid.eq(words.r_rdy),
            words.r_en.eq(relay.input.ready),
        ]
        wiring.connect(m, relay.output, wiring.flipped(self.output))
        return m
