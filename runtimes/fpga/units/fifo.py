"""A first-in first-out buffer between two units."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Fifo(wiring.Component):
    """Holds up to ``depth`` words of ``width`` bits, and one more in its output register. Adds two cycles of latency.

    ``depth`` is rounded up to a power of two.
    """

    def __init__(self, width: int, depth: int) -> None:
        self.width, self.depth = width, 1 << max(1, (depth - 1).bit_length())
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        address = self.depth.bit_length() - 1
        m.submodules.words = words = Memory(
            shape=self.width, depth=self.depth, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = words.write_port(), words.read_port(domain="comb")
        head, tail = Signal(address), Signal(address)
        # Registers that say so: handshakes and the enables of wide words do not wait for a comparison.
        some, full = Signal(), Signal()
        push, pop = Signal(), Signal()
        m.d.comb += [
            self.input.ready.eq(~full),
            push.eq(self.input.valid & ~full),
            pop.eq(some & (~self.output.valid | self.output.ready)),
            write.addr.eq(head),
            write.data.eq(self.input.payload),
            write.en.eq(push),
            read.addr.eq(tail),
        ]
        # What is pushed while a word goes, or into an empty buffer, leaves the other flag as it is.
        with m.If(push & ~pop):
            m.d.sync += [some.eq(1), full.eq((head + 1)[:address] == tail)]
        with m.Elif(pop & ~push):
            m.d.sync += [full.eq(0), some.eq((tail + 1)[:address] != head)]
        with m.If(push):
            m.d.sync += head.eq(head + 1)
        with m.If(pop):
            m.d.sync += [tail.eq(tail + 1), self.output.payload.eq(read.data), self.output.valid.eq(1)]
        with m.Elif(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        return m
