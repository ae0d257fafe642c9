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
    forgets what was written since the last commit. While ``full``, nothing may be written.
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
                "full": Out(1),
                "output": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """Three pointers of one more bit than an address: read, committed, written."""
        m = Module()
        # What is being written is never read: yosys need not make sure of what a collision gives.
        m.submodules.memory = memory = Memory(shape=8, depth=self.depth, init=[], attrs={"no_rw_check": 1})
        write_port, read_port = memory.write_port(), memory.read_port()
        bits = (self.depth - 1).bit_length()
        read = Signal(bits + 1)
        good = Signal(bits + 1)
        written = Signal(bits + 1)
        m.d.comb += [
            write_port.addr.eq(written[:bits]),
            write_port.data.eq(self.data),
            write_port.en.eq(self.write),
            read_port.addr.eq(read[:bits]),
            self.full.eq((written[:bits] == read[:bits]) & (written[bits] != read[bits])),
        ]
        with m.If(self.write):
            m.d.sync += written.eq(written + 1)
        with m.If(self.commit):
            m.d.sync += good.eq(written)
        with m.Elif(self.rollback):
            m.d.sync += written.eq(good)
        # A block RAM is slow to answer: its output goes to a register before anything else.
        fetched = Signal()
        fetch = Signal()
        move = Signal()
        byte = Signal(8, reset_less=True)  # a reset would be logic in front of the register
        m.d.comb += [
            self.output.payload.eq(byte),
            move.eq(~self.output.valid | self.output.ready),
            fetch.eq((read != good) & (~fetched | move)),
            read_port.en.eq(fetch),
        ]
        with m.If(fetch):
            m.d.sync += [read.eq(read + 1), fetched.eq(1)]
        with m.Elif(move):
            m.d.sync += fetched.eq(0)
        with m.If(move):
            m.d.sync += [byte.eq(read_port.data), self.output.valid.eq(fetched)]
        return m
