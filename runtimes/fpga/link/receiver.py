"""The board's side of the protocol: bytes in, payloads to a buffer, jobs for the transmitter."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Signal
from amaranth.lib import crc, data, stream, wiring
from amaranth.lib.wiring import In, Out

from .protocol import SYNC, Command, Fault

JOB_ERROR = 0
JOB = data.StructLayout({"kind": 3, "sequence": 8, "detail": 16})
"""What the transmitter has to answer: ``kind`` is a ``Command`` or ``JOB_ERROR``, ``detail`` the bytes of the payload
of a ``RUN`` reply, or a ``Fault``."""


class Receiver(wiring.Component):
    """Takes a byte every cycle but for a few between frames. A frame is acted on only when both of its CRCs are right.

    ``image_bytes``, ``result_bytes``: of one image and of one result; ``max_payload``: most bytes of a payload;
    ``gap_cycles``: how long the next byte of a frame may take, rounded up to a power of two. The buffer of payloads is
    behind ``data``, ``write``, ``commit``, ``rollback`` and ``full``. ``reset`` is 1 for a cycle; from the
    next one on everything under way is to be thrown away, as long as ``held``. ``good`` and ``bad`` count frames.
    """

    def __init__(self, image_bytes: int, result_bytes: int, max_payload: int, gap_cycles: int) -> None:
        self.image_bytes, self.result_bytes, self.max_payload = image_bytes, result_bytes, max_payload
        self.gap_cycles = gap_cycles
        super().__init__(
            {
                "input": In(stream.Signature(8)),
                "data": Out(8),
                "write": Out(1),
                "commit": Out(1),
                "rollback": Out(1),
                "full": In(1),
                "job": Out(stream.Signature(JOB)),
                "reset": Out(1),
                "held": In(1),
                "good": Out(8),
                "bad": Out(8),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """One state machine; a few cycles to judge the header and the whole frame."""
        m = Module()
        m.submodules.crc8 = crc8 = crc.catalog.CRC8_SMBUS(8).create()
        m.submodules.crc32 = crc32 = crc.catalog.CRC32_ISO_HDLC(8).create()
        head = Signal(32)
        length, sequence, command = head[:16], head[16:24], head[24:]
        place = Signal(3)
        left = Signal(16)
        within = Signal(range(self.image_bytes))
        replied = Signal(16)
        fault = Signal(3)
        matched = Signal()
        # Counts up to a power of two: no comparison, and the shortest carry chain.
        gap = Signal((self.gap_cycles - 1).bit_length() + 1)
        expired = gap[-1]
        byte = self.input.payload
        taken = Signal()
        m.d.comb += [
            taken.eq(self.input.valid & self.input.ready),
            crc8.data.eq(byte),
            crc32.data.eq(byte),
            self.data.eq(byte),
            self.job.payload.sequence.eq(sequence),
            self.job.payload.detail.eq(replied),
        ]
        is_run = command == Command.RUN

        with m.FSM(name="state") as states:
            with m.State("HUNT"):
                m.d.comb += [self.input.ready.eq(~self.held), crc8.start.eq(1), crc32.start.eq(1)]
                m.d.sync += [place.eq(0), within.eq(0), replied.eq(0), fault.eq(0)]
                with m.If(taken & (byte == SYNC)):
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [self.input.ready.eq(1), crc32.valid.eq(taken)]
                with m.If(taken):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 4):
                        m.next = "CHECK"
                        with m.If(byte != crc8.crc):
                            m.next = "HUNT"
                    with m.Else():
                        m.d.comb += crc8.valid.eq(1)
                        m.d.sync += head.eq(Cat(head[8:], byte))
                with m.Elif(expired):  # whose frame it was is not known: no reply
                    m.next = "HUNT"
            with m.State("CHECK"):
                m.d.sync += [place.eq(0), left.eq(length)]
                m.next = "PAYLOAD"
                with m.If(length == 0):
                    m.next = "CRC"
                with m.If((command == 0) | (command > max(Command))):
                    m.d.sync += fault.eq(Fault.UNKNOWN)
                with m.Elif(~is_run & (length != 0)):
                    m.d.sync += fault.eq(Fault.SIZE)
                with m.If(length > self.max_payload):  # nobody vouches for such a length: do not wait for its end
                    m.d.sync += fault.eq(Fault.TOO_LONG)
                    m.next = "ERROR"
            with m.State("PAYLOAD"):
                m.d.comb += [self.input.ready.eq(1), crc32.valid.eq(taken)]
                m.d.comb += self.write.eq(taken & (fault == 0) & ~self.full)
                with m.If(taken & (fault == 0) & self.full):
                    m.d.sync += fault.eq(Fault.BUSY)
                with m.If(taken):
                    m.d.sync += [left.eq(left - 1), within.eq(within + 1)]
                    with m.If(within == self.image_bytes - 1):
                        m.d.sync += [within.eq(0), replied.eq(replied + self.result_bytes)]
                    with m.If(left == 1):
                        m.next = "CRC"
                with m.Elif(expired):
                    m.d.sync += fault.eq(Fault.TIMEOUT)
                    m.next = "ERROR"
            with m.State("CRC"):
                m.d.comb += [self.input.ready.eq(1), crc32.valid.eq(taken)]
                with m.If(taken):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == 3):
                        m.next = "SETTLE"
                with m.Elif(expired):
                    m.d.sync += fault.eq(Fault.TIMEOUT)
                    m.next = "ERROR"
            with m.State("SETTLE"):
                m.next = "MATCH"
            with m.State("MATCH"):
                m.d.sync += matched.eq(crc32.match_detected)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.next = "ERROR"
                with m.If(~matched):
                    m.d.sync += fault.eq(Fault.CRC)
                with m.Elif(fault == 0):
                    with m.If(is_run & ((within != 0) | (length == 0))):
                        m.d.sync += fault.eq(Fault.SIZE)
                    with m.Else():
                        m.next = "ACCEPT"
                        with m.If(command == Command.RESET):
                            m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += self.reset.eq(1)
                m.next = "RESTART"
            with m.State("RESTART"):  # the others are in reset from this cycle on
                with m.If(~self.held):
                    m.next = "ACCEPT"
            with m.State("ACCEPT"):
                # A host that has more requests under way than the board can note gets no answer to the last one.
                m.d.comb += [self.job.valid.eq(1), self.job.payload.kind.eq(command)]
                m.d.comb += [self.commit.eq(self.job.ready), self.rollback.eq(~self.job.ready)]
                m.d.sync += self.good.eq(self.good + 1)
                with m.If(command == Command.RESET):
                    m.d.sync += [self.good.eq(0), self.bad.eq(0)]
                m.next = "HUNT"
            with m.State("ERROR"):
                m.d.comb += [self.rollback.eq(1), self.job.valid.eq(1)]
                m.d.comb += [self.job.payload.kind.eq(JOB_ERROR), self.job.payload.detail.eq(fault)]
                m.d.sync += self.bad.eq(self.bad + 1)
                m.next = "HUNT"

        waiting = states.ongoing("HEAD") | states.ongoing("PAYLOAD") | states.ongoing("CRC")
        with m.If(~waiting | taken):
            m.d.sync += gap.eq(0)
        with m.Else():
            m.d.sync += gap.eq(gap + 1)
        return m
