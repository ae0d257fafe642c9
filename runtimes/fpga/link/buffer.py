"""The board's buffer for payloads: what has been written can be read only once it is known to be good."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class PacketBuffer(wiring.Component):
    """A queue of bytes in one memory of ``depth`` (a power of two) bytes.

    ``data`` is taken in a cycle of ``write``; ``commit`` hands everything written so far to ``output``, ``rollback``
    forgets what was written since the last commit. ``free`` is the number of bytes that may be written.
    """

    def __init__(self, depth: int) -> None:
        assert depth > 1 and depth & (depth - 1) == 0
        self.depth = depth
        super().__init__(
            {
                "data": In(8),
                "write": In(1),
                "commit": In(1),
                "rollback": In(1),
                "free": Out(range(depth + 1)),
                "output": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Three pointers of one more bit than an address: read, committed, written."""
        m = Module()
        m.submodules.memory = memory = Memory(shape=8, depth=self.depth, init=[])
        write_port, read_port = memory.write_port(), memory.read_port()
        bits = (self.depth - 1).bit_length()
        read, good, written = Signal(bits + 1), Signal(bits + 1), Signal(bits + 1)
        m.d.sync += self.free.eq(self.depth - (written - read)[: bits + 1])
        m.d.comb += [
            write_port.addr.eq(written[:bits]),
            write_port.data.eq(self.data),
            write_port.en.eq(self.write),
            read_port.addr.eq(read[:bits]),
            self.output.payload.eq(read_port.data),
        ]
        with m.If(self.write):
            m.d.sync += written.eq(written + 1)
        with m.If(self.commit):
            m.d.sync += good.eq(written)
        with m.Elif(self.rollback):
            m.d.sync += written.eq(good)
        fetch = (read != good) & (~self.output.valid | self.output.ready)
        m.d.comb += read_port.en.eq(fetch)
        with m.If(fetch):
            m.d.sync += [read.eq(read + 1), self.output.valid.eq(1)]
        with m.Elif(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        return m
