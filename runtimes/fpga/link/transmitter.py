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

    ``status`` is copied when its reply begins; ``done`` is 1 in the cycle in which the last byte of results leaves.
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
        """One state machine; a byte leaves in every cycle that the output and the results allow."""
        m = Module()
        m.submodules.crc8 = crc8 = crc.catalog.CRC8_SMBUS(8).create()
        m.submodules.crc32 = crc32 = crc.catalog.CRC32_ISO_HDLC(8).create()
        job = Signal(JOB)
        kind = job.kind
        status = Signal.like(self.status)
        place = Signal(range(max(len(self.hello), 8)))
        left = Signal(16)
        sent = Signal()
        m.d.comb += [
            sent.eq(self.output.valid & self.output.ready),
            crc8.data.eq(self.output.payload),
            crc32.data.eq(self.output.payload),
        ]
        lengths = {Command.HELLO: len(self.hello), Command.STATUS: STATUS.size, JOB_ERROR: 1}
        command = Mux(kind == JOB_ERROR, ERROR, Cat(kind, Const(0, 4), Const(REPLY >> 7, 1)))
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += [job.eq(self.job.payload), status.eq(self.status), place.eq(0)]
                with m.Switch(self.job.payload.kind):
                    for value, length in lengths.items():
                        with m.Case(value):
                            m.d.sync += job.length.eq(length)
                with m.If(self.job.valid):
                    m.next = "SYNC"
            with m.State("SYNC"):
                m.d.comb += [self.output.payload.eq(SYNC), self.output.valid.eq(1)]
                m.d.comb += [crc8.start.eq(1), crc32.start.eq(1)]
                m.d.sync += left.eq(job.length)
                with m.If(sent):
                    m.next = "HEAD"
            with m.State("HEAD"):
                head = Array([job.length[:8], job.length[8:], job.sequence, command, crc8.crc])
                m.d.comb += [self.output.payload.eq(head[place]), self.output.valid.eq(1)]
                m.d.comb += [crc8.valid.eq(sent), crc32.valid.eq(sent)]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 4):
                        m.d.sync += place.eq(0)
                        m.next = "PAYLOAD"
                        with m.If(left == 0):
                            m.next = "CRC"
            with m.State("PAYLOAD"):
                m.d.comb += [self.output.valid.eq(1), crc32.valid.eq(sent)]
                with m.Switch(kind):
                    with m.Case(Command.RUN):
                        m.d.comb += [
                            self.output.payload.eq(self.results.payload),
                            self.output.valid.eq(self.results.valid),
                            self.results.ready.eq(self.output.ready),
                        ]
                    with m.Case(Command.HELLO):
                        m.d.comb += self.output.payload.eq(Array(Const(byte, 8) for byte in self.hello)[place])
                    with m.Case(Command.STATUS):
                        m.d.comb += self.output.payload.eq(status[:8])
                    with m.Default():
                        m.d.comb += self.output.payload.eq(job.fault)
                with m.If(sent):
                    m.d.sync += [place.eq(place + 1), left.eq(left - 1), status.eq(status >> 8)]
                    with m.If(left == 1):
                        m.d.comb += self.done.eq(kind == Command.RUN)
                        m.d.sync += place.eq(0)
                        m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [self.output.payload.eq(crc32.crc.word_select(place[:2], 8)), self.output.valid.eq(1)]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.next = "IDLE"
        return m
