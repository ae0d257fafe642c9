"""The board's side of the protocol: jobs in, reply frames out."""

from __future__ import annotations

from typing import Any

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import crc, stream, wiring
from amaranth.lib.wiring import In, Out

from .protocol import ERROR, REPLY, STATUS, SYNC, Command
from .receiver import JOB, JOB_ERROR


class Transmitter(wiring.Component):
    """Answers the jobs in order. ``results`` are the bytes of ``RUN`` replies; ``hello`` is the payload of that reply.

    ``done`` is 1 in the cycle in which the last byte of results leaves.
    """

    def __init__(self, hello: bytes) -> None:
        self.hello = hello
        super().__init__(
            {
                "job": In(stream.Signature(JOB)),
                "results": In(stream.Signature(8)),
                "status": In(8 * STATUS.size),
                "output": Out(stream.Signature(8)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """One state machine, a register at the output; a byte leaves in every cycle that the next and the results allow."""
        m = Module()
        m.submodules.crc8 = crc8 = crc.catalog.CRC8_SMBUS(8).create()
        m.submodules.crc32 = crc32 = crc.catalog.CRC32_ISO_HDLC(8).create()
        job = Signal(JOB)
        kind = job.kind
        length = job.detail
        fault = Signal(3)
        place = Signal(range(max(len(self.hello), 8)))
        left = Signal(16)
        byte = Signal(8)
        valid = Signal()
        sent = Signal()
        m.d.comb += [
            sent.eq(valid & (~self.output.valid | self.output.ready)),
            crc8.data.eq(self.output.payload),
            crc32.data.eq(self.output.payload),
        ]
        # The CRCs see a byte when it is in the register, a cycle after it was sent there.
        with m.If(sent):
            m.d.sync += [self.output.payload.eq(byte), self.output.valid.eq(1)]
        with m.Elif(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        m.d.sync += [crc8.valid.eq(0), crc32.valid.eq(0)]
        sizes = {Command.HELLO: len(self.hello), Command.STATUS: STATUS.size, JOB_ERROR: 1}
        command = Mux(kind == JOB_ERROR, ERROR, Cat(kind, Const(0, 4), Const(REPLY >> 7, 1)))
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += [job.eq(self.job.payload), fault.eq(self.job.payload.detail), place.eq(0)]
                with m.If(self.job.valid):
                    m.next = "SIZE"
            with m.State("SIZE"):
                with m.Switch(kind):
                    for value, size in sizes.items():
                        with m.Case(value):
                            m.d.sync += length.eq(size)
                m.next = "SYNC"
            with m.State("SYNC"):
                m.d.comb += [byte.eq(SYNC), valid.eq(1)]
                m.d.comb += [crc8.start.eq(1), crc32.start.eq(1)]
                m.d.sync += left.eq(length)
                with m.If(sent):
                    m.next = "HEAD"
            with m.State("HEAD"):
                head = Cat(length, job.sequence, command)
                m.d.comb += [byte.eq(head.word_select(place[:2], 8)), valid.eq(1)]
                m.d.sync += [crc8.valid.eq(sent), crc32.valid.eq(sent)]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.next = "SETTLE8"
            with m.State("SETTLE8"):
                m.next = "CRC8"
            with m.State("CRC8"):
                m.d.comb += [byte.eq(crc8.crc), valid.eq(1)]
                m.d.sync += [crc32.valid.eq(sent), place.eq(0)]
                with m.If(sent):
                    m.next = "PAYLOAD"
                    with m.If(left == 0):
                        m.next = "SETTLE"
            with m.State("PAYLOAD"):
                m.d.comb += valid.eq(1)
                m.d.sync += crc32.valid.eq(sent)
                with m.Switch(kind):
                    with m.Case(Command.RUN):
                        m.d.comb += [
                            byte.eq(self.results.payload),
                            valid.eq(self.results.valid),
                            self.results.ready.eq(~self.output.valid | self.output.ready),
                        ]
                    with m.Case(Command.HELLO):
                        m.d.comb += byte.eq(Array(Const(byte, 8) for byte in self.hello)[place])
                    with m.Case(Command.STATUS):
                        m.d.comb += byte.eq(self.status.word_select(place[:3], 8))
                    with m.Default():
                        m.d.comb += byte.eq(fault)
                with m.If(sent):
                    m.d.sync += [place.eq(place + 1), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.d.comb += self.done.eq(kind == Command.RUN)
                        m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += place.eq(0)
                m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [byte.eq(crc32.crc.word_select(place[:2], 8)), valid.eq(1)]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.next = "IDLE"
        return m
