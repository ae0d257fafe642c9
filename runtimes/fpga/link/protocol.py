"""What the bytes between a host and a board mean. Both sides' hardware and software take their numbers from here.

A frame, in either direction:

    offset  bytes  content
    0       1      0x7E
    1       2      n, bytes of the payload, little-endian
    3       1      sequence number; a reply carries that of its request
    4       1      command; a reply's is the request's | 0x80, an error's is 0xFF
    5       1      CRC-8 of bytes 1 to 4
    6       n      payload
    6 + n   4      CRC-32 of bytes 1 to 5 + n, little-endian

The CRC-8 (polynomial x^8+x^2+x+1, initial value 0: SMBus 2.0, section 5.4) lets a receiver trust the length before it
acts on it; the CRC-32 is that of IEEE 802.3 (ISO-HDLC). A receiver that sees anything else hunts for the next 0x7E. A
board gives a half frame up once no byte has come for its gap time; a host that waits longer than that before it sends
again therefore always finds a board that hunts.

Requests and their replies:

    HELLO   no payload   → ``HELLO`` structure: who the board is
    RUN     k images     → k results; image and result are ceil(bits / 8) bytes each, bit i in bit i % 8 of byte i // 8
    STATUS  no payload   → ``STATUS`` structure
    RESET   no payload   → no payload, after everything under way has been thrown away

A board answers in the order of the requests. ``RUN`` has no side effect: a request whose reply was lost is sent again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

SYNC = 0x7E
VERSION = 1
HEADER_BYTES = 6
TRAILER_BYTES = 4
OVERHEAD = HEADER_BYTES + TRAILER_BYTES
MAX_PAYLOAD = 0xFFFF
REPLY = 0x80
ERROR = 0xFF
DESIGN_BYTES = 16
HELLO = struct.Struct("<4sBBHI16sIII")
"""``b"XNOR"``, version, 0, most bytes of a payload, bytes of the board's buffer, the design's hash, bits of an image,
bits of a result, clock in Hz."""
MAGIC = b"XNOR"
STATUS = struct.Struct("<IBB")
"""Cycles from the first word into the accelerator to the last one out of it, of the last ``RUN``; frames that were good
and that were not, since the last reset, modulo 256."""


class Command(IntEnum):
    """What a request asks for."""

    HELLO = 1
    RUN = 2
    STATUS = 3
    RESET = 4


class Fault(IntEnum):
    """Why a board refuses a frame: the payload of an error reply."""

    CRC = 1
    TOO_LONG = 2
    UNKNOWN = 3
    TIMEOUT = 4
    SIZE = 5
    BUSY = 6


FAULT_TEXT = {
    Fault.CRC: "the frame's CRC is wrong",
    Fault.TOO_LONG: "the payload is larger than the board's buffer",
    Fault.UNKNOWN: "the command is unknown",
    Fault.TIMEOUT: "the frame stopped half-way",
    Fault.SIZE: "the payload is not a whole number of images",
    Fault.BUSY: "the board's buffer is full",
}


@dataclass(frozen=True)
class Frame:
    """One frame: sequence number and command (0 to 255), and the payload (at most 65535 bytes)."""

    sequence: int
    command: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame's bytes."""
        head = struct.pack("<HBB", len(self.payload), self.sequence, self.command)
        body = head + bytes([crc8(head)]) + self.payload
        return bytes([SYNC]) + body + zlib.crc32(body).to_bytes(4, "little")


def crc8(data: bytes | bytearray) -> int:
    """CRC-8 with polynomial 0x07, initial value 0 (SMBus 2.0, section 5.4)."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value


class FrameReader:
    """Finds frames in a stream of bytes that may hold anything else too. ``skipped``: bytes that were in no frame."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.skipped = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take more bytes and give the frames that are now complete."""
        self._bytes += data
        while (frame := self._next()) is not None:
            yield frame

    def clear(self) -> None:
        """Forget a half frame."""
        self.skipped += len(self._bytes)
        self._bytes.clear()

    def give_up(self) -> Iterator[Frame]:
        """Do not wait for the rest of a half frame: give the whole frames behind its start, if there are any."""
        while self._bytes:
            del self._bytes[0]
            self.skipped += 1
            yield from self.feed(b"")

    def _next(self) -> Frame | None:
        held = self._bytes
        while True:
            start = held.find(SYNC)
            start = len(held) if start < 0 else start
            self.skipped += start
            del held[:start]
            if len(held) < HEADER_BYTES:
                return None
            if crc8(held[1:5]) == held[5]:
                end = HEADER_BYTES + int.from_bytes(held[1:3], "little")
                if len(held) < end + TRAILER_BYTES:
                    return None
                if zlib.crc32(held[1:end]) == int.from_bytes(held[end : end + TRAILER_BYTES], "little"):
                    frame = Frame(held[3], held[4], bytes(held[HEADER_BYTES:end]))
                    del held[: end + TRAILER_BYTES]
                    return frame
            del held[0]  # not a frame: the next 0x7E may start one
            self.skipped += 1
