"""The host's side of the link: requests until they are answered, over anything that moves bytes.

Bytes may be lost, changed or added in either direction: a request is sent again until its reply comes, up to a number
of times, and every wait ends. What the board says of itself is checked before it is believed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ....errors import DeviceError
from ...device import DeviceGone
from .protocol import (
    ERROR,
    FAULT_TEXT,
    HELLO,
    MAGIC,
    MAX_PAYLOAD,
    OVERHEAD,
    REPLY,
    STATUS,
    VERSION,
    Command,
    Fault,
    Frame,
    FrameReader,
)

_DRAIN_SECONDS = 2.0
_QUIET_SECONDS = 0.1
_BITS_PER_BYTE = 10
_MOST_PATIENCE = 4
"""A request that is sent again waits twice as long each time, up to this many times the patience."""
_TALK = 5
"""How many times longer than silence a port may talk without a valid reply."""


class PortError(OSError):
    """A port does not move bytes any more; the message says why, in a few words."""


class Port(Protocol):
    """Moves bytes. Every method may raise ``OSError`` (``PortError``), and none waits for ever."""

    name: str
    """As the user writes it."""
    baud: int
    """Bits a second with 10 bits a byte, or 0 where the port's speed is not limited."""

    def write(self, data: bytes) -> None:
        """Send all bytes."""

    def read(self, seconds: float) -> bytes:
        """What has come, at least one byte; after ``seconds`` without any, nothing."""

    def close(self) -> None:
        """Give the port back. Closing twice is harmless."""


@dataclass(frozen=True)
class Identity:
    """What a board says of itself. Sizes in bits are of one image and one result."""

    design: bytes
    frame_in_bits: int
    frame_out_bits: int
    clock_hz: int
    max_payload: int
    buffer_bytes: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in a frame."""
        return (self.frame_in_bits + 7) // 8

    @property
    def result_bytes(self) -> int:
        """Bytes of one result in a frame."""
        return (self.frame_out_bits + 7) // 8


@dataclass(frozen=True)
class Status:
    """Counters of the board: ``cycles`` of the last ``RUN``, frames that were good and that were not."""

    cycles: int
    good: int
    bad: int


@dataclass
class _Request:
    command: int
    payload: bytes
    replied: int
    """Bytes of the reply's payload."""
    sequence: int
    tries: int = 0
    deadline: float = 0.0
    """When silence has lasted too long: moves on while bytes come, up to ``limit``."""
    limit: float = 0.0


class Client:
    """One board at the other end of ``port``, asked by one caller.

    ``patience``: seconds of silence, beyond the time that the bytes themselves need, before a request is sent again; it
    must be longer than the board's gap time. ``tries``: how often a request is sent at most.
    """

    def __init__(self, port: Port, patience: float = 0.3, tries: int = 8) -> None:
        self.port, self.patience, self.tries = port, patience, tries
        self.resent = 0
        """Requests that had to be sent again, so far."""
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()
        self._sequence = 0
        self._heard = 0
        self._fault = ""

    def connect(self) -> Identity:
        """Bring the board to a known state and ask who it is.

        Raises ``DeviceError`` when nothing answers, when what answers is no xnorc board, or one of another version.
        """
        self._drain()
        self._ask(Command.RESET, 0)
        reply = self._ask(Command.HELLO, HELLO.size)
        magic, version, _, payload, depth, design, bits_in, bits_out, clock = HELLO.unpack(reply)
        if magic != MAGIC:
            raise DeviceError(f"device '{self.port.name}' is not an xnorc board: it says {magic!r}")
        if version != VERSION:
            raise DeviceError(
                f"device '{self.port.name}' speaks version {version} of the link, this xnorc {VERSION}: "
                "build its bitstream again"
            )
        found = Identity(design, bits_in, bits_out, clock, payload, depth)
        if not (bits_in and bits_out and found.image_bytes <= payload <= MAX_PAYLOAD and payload <= depth):
            raise DeviceError(f"device '{self.port.name}' gives sizes that cannot be: {found}")
        return found

    def status(self) -> Status:
        """The board's counters."""
        return Status(*STATUS.unpack(self._ask(Command.STATUS, STATUS.size)))

    def run(
        self, board: Identity, images: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """Results of ``count`` images, ``board.image_bytes`` each in and ``board.result_bytes`` each out.

        ``progress`` is called with the number of images done. Raises ``DeviceGone`` when the board stops answering.
        """
        images = memoryview(images).cast("B")
        if len(images) != count * board.image_bytes:
            raise DeviceError(f"{len(images)} bytes for {count} images of {board.image_bytes} bytes")
        # Replies are kept about as large as requests, so that either direction's frames take comparable time.
        largest = max(board.image_bytes, min(board.max_payload, MAX_PAYLOAD))
        batch = max(1, min(largest // board.image_bytes, max(1, largest // board.result_bytes)))
        window = max(1, board.buffer_bytes // (batch * board.image_bytes))
        waiting = deque(range(0, count, batch))
        results: dict[int, bytes] = {}
        under_way: dict[int, tuple[_Request, int]] = {}
        done = 0
        while waiting or under_way:
            while waiting and len(under_way) < min(window, 4):
                start = waiting.popleft()
                number = min(batch, count - start)
                part = bytes(images[start * board.image_bytes : (start + number) * board.image_bytes])
                request = self._request(Command.RUN, part, number * board.result_bytes)
                under_way[request.sequence] = (request, start)
                self._send(request, [other for other, _ in under_way.values()], done, count)
            reply = self._next([request for request, _ in under_way.values()], done, count)
            request, start = under_way.pop(reply.sequence)
            results[start] = reply.payload
            done += len(reply.payload) // board.result_bytes
            if progress is not None:
                progress(done)
        return b"".join(results[start] for start in sorted(results))

    def close(self) -> None:
        """Close the port."""
        self.port.close()

    def _request(self, command: int, payload: bytes, replied: int) -> _Request:
        self._sequence = (self._sequence + 1) % 256
        return _Request(command, payload, replied, self._sequence)

    def _ask(self, command: int, replied: int) -> bytes:
        request = self._request(command, b"", replied)
        try:
            self._send(request, [request], 0, 0)
            return self._next([request], 0, 0).payload
        except DeviceGone as gone:
            raise DeviceError(f"device '{self.port.name}': {gone.detail}") from gone

    def _send(self, request: _Request, under_way: list[_Request], done: int, total: int) -> None:
        """Send ``request``, for the first time or again. Its reply is expected after those of all that are under way."""
        if request.tries >= self.tries:
            raise DeviceGone(self.port.name, done, total, self._silence(request.tries))
        self.resent += request.tries > 0
        request.tries += 1
        try:
            self.port.write(Frame(request.sequence, request.command, request.payload).encode())
        except OSError as error:
            raise DeviceGone(self.port.name, done, total, _why(error)) from error
        # A board that is slower than thought (a simulated one, say) must not be buried under repetitions.
        wait = self._wait(under_way) + self.patience * (min(1 << (request.tries - 1), _MOST_PATIENCE) - 1)
        request.deadline = time.monotonic() + wait
        request.limit = time.monotonic() + _TALK * wait

    def _silence(self, tries: int) -> str:
        if self._fault:
            return f"it refused a request {tries} times, at last because {self._fault}"
        if self._heard:
            return (
                f"no valid reply to {tries} requests, but {self._heard} other bytes: is it this board, at this speed?"
            )
        return f"no answer to {tries} requests: is the board on, and programmed with this design?"

    def _next(self, under_way: list[_Request], done: int, total: int) -> Frame:
        """The next valid reply to one of ``under_way``; sends again what the board refuses or does not answer."""
        asked = {request.sequence: request for request in under_way}
        while True:
            while self._frames:
                frame = self._frames.popleft()
                request = asked.get(frame.sequence)
                if request is None:
                    continue  # a late reply to what has been answered since
                if frame.command == ERROR and len(frame.payload) == 1:
                    code = frame.payload[0]
                    self._fault = FAULT_TEXT[Fault(code)] if code in set(Fault) else f"of fault {code}"
                    self._send(request, under_way, done, total)
                elif frame.command == request.command | REPLY and len(frame.payload) == request.replied:
                    self._heard, self._fault = 0, ""
                    now, wait = time.monotonic(), self._wait(under_way)
                    for other in under_way:  # the board lives: those behind it get their time from here
                        other.deadline = max(other.deadline, now + wait)
                        other.limit = max(other.limit, now + _TALK * wait)
                    return frame
            self._receive(under_way, done, total)

    def _receive(self, under_way: list[_Request], done: int, total: int) -> None:
        """Wait for bytes until the first deadline; send again what is late."""
        late = [request for request in under_way if request.deadline <= time.monotonic()]
        if late:  # half a frame that will not be completed may hold whole ones
            self._frames.extend(self._reader.give_up())
        if self._frames:
            return
        for request in late:
            self._send(request, under_way, done, total)
        wait = min(request.deadline for request in under_way) - time.monotonic()
        try:
            data = self.port.read(max(0.0, wait))
        except OSError as error:
            raise DeviceGone(self.port.name, done, total, _why(error)) from error
        self._heard += len(data)
        self._frames.extend(self._reader.feed(data))
        for request in under_way if data else []:
            request.deadline = min(request.limit, max(request.deadline, time.monotonic() + self.patience))

    def _wait(self, under_way: list[_Request]) -> float:
        """Seconds in which the replies to all of ``under_way`` should come, if they begin to move now."""
        size = sum(len(request.payload) + request.replied + 2 * OVERHEAD for request in under_way)
        moving = size * _BITS_PER_BYTE / self.port.baud if self.port.baud else 0.0
        return self.patience + 2 * moving

    def _drain(self) -> None:
        """Read what an earlier session left under way, until the line is quiet."""
        end = time.monotonic() + _DRAIN_SECONDS
        try:
            while self.port.read(_QUIET_SECONDS) and time.monotonic() < end:
                pass
        except OSError as error:
            raise DeviceError(f"device '{self.port.name}': {_why(error)}") from error


def _why(error: OSError) -> str:
    return error.strerror or str(error)
