"""The framed protocol between this machine and a runner, over the standard streams of a process that we start.

Request: header ``XNRQ``, records. Response: header ``XNRS``, records one by one, trailer ``XNRE`` with the count, so that
a response cut short is never taken for a whole one. ``c/runner.h`` has the layout.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import DeviceError, ToolError
from .device import DeviceGone, Mode

_HEADER = struct.Struct("<4sIIIQQ")
_TRAILER = struct.Struct("<4sQ")
_PROTOCOL = 1
_PIECE = 1 << 20
STALL_SECONDS = 600.0
"""A device that says nothing for so long has gone: more than one input ever takes, also under emulation."""
END_SECONDS = 5.0
"""How long the end of a process, and of what it had to say, is waited for."""


def exchange(
    command: Sequence[str],
    device: str,
    mode: Mode,
    threads: int,
    request: bytes | memoryview,
    count: int,
    answer_bytes: int,
    progress: Callable[[int], None] | None = None,
    stall: float | None = None,
) -> bytes:
    """Start ``command`` (a runner, or what reaches one), send ``request`` and return the ``count`` response records.

    Raises ``DeviceError`` with the runner's own message when it refuses, ``DeviceGone`` when it ends early or is silent
    for ``stall`` seconds, ``ToolError`` when the command cannot be started. The process is gone when this returns.
    """
    try:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        raise ToolError(f"'{command[0]}' cannot be started: {error.strerror or error}") from error
    asked = len(request) // count if count else 0
    header = _HEADER.pack(b"XNRQ", _PROTOCOL, mode, threads, count, asked)
    conversation = _Conversation(process, device, count, answer_bytes)
    writer = threading.Thread(target=_send, args=(process, header, request), daemon=True)
    writer.start()
    conversation.errors_reader.start()
    try:
        response = conversation.receive(mode, progress, STALL_SECONDS if stall is None else stall)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)  # everything has arrived: how the process ends does not matter
        return response
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        writer.join(END_SECONDS)
        conversation.errors_reader.join(END_SECONDS)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _send(process: subprocess.Popen[bytes], header: bytes, request: bytes | memoryview) -> None:
    """Feed the process; one that ends early breaks the pipe, which ``receive`` sees and reports."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            view = memoryview(request)
            for piece in (memoryview(header), *(view[at : at + _PIECE] for at in range(0, len(view), _PIECE))):
                while piece:
                    piece = piece[pipe.write(piece) :]
    except OSError:
        return


class _Conversation:
    """The receiving half of one exchange."""

    def __init__(self, process: subprocess.Popen[bytes], device: str, count: int, answer_bytes: int) -> None:
        self.process, self.device, self.count, self.answer_bytes = process, device, count, answer_bytes
        self.errors: deque[str] = deque(maxlen=20)
        self.errors_reader = threading.Thread(target=self.collect_errors, daemon=True)
        self.done = 0

    def collect_errors(self) -> None:
        """Keep the last lines of the standard error stream."""
        assert self.process.stderr is not None
        rest = b""
        try:
            while piece := self.process.stderr.read(4096):
                *lines, rest = (rest + piece).split(b"\n")
                rest = rest[-4096:]
                self.errors.extend(line.decode(errors="replace").strip() for line in lines if line.strip())
        except (OSError, ValueError):
            pass
        if rest.strip():
            self.errors.append(rest.decode(errors="replace").strip())

    def receive(self, mode: Mode, progress: Callable[[int], None] | None, stall: float) -> bytes:
        """Read the whole response; see ``exchange``."""
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        body = self.count * self.answer_bytes
        total = _HEADER.size + body + _TRAILER.size
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            limit = time.monotonic() + stall
            while len(data) < total:
                if not selector.select(max(0.0, limit - time.monotonic())):
                    raise DeviceGone(self.device, self.done, self.count, f"it said nothing for {stall:g} s")
                piece = os.read(handle, min(_PIECE, total - len(data)))
                if not piece:
                    raise self._ended()
                limit = time.monotonic() + stall
                checked = len(data) >= _HEADER.size
                data += piece
                if not checked and len(data) >= _HEADER.size:
                    self._check_header(data, mode)
                self._count(len(data), progress)
        magic, count = _TRAILER.unpack_from(data, _HEADER.size + body)
        if magic != b"XNRE" or count != self.count:
            raise DeviceError(f"device '{self.device}' sent a damaged response (bad trailer)")
        return bytes(memoryview(data)[_HEADER.size : _HEADER.size + body])

    def _check_header(self, data: bytearray, mode: Mode) -> None:
        expected = (b"XNRS", _PROTOCOL, int(mode), self.count, self.answer_bytes)
        magic, version, got_mode, _, count, size = _HEADER.unpack_from(data)
        if (magic, version, got_mode, count, size) != expected:
            raise DeviceError(f"device '{self.device}' sent something that is not a response of this package's runner")

    def _count(self, received: int, progress: Callable[[int], None] | None) -> None:
        whole = max(0, received - _HEADER.size) // self.answer_bytes if self.answer_bytes else 0
        whole = min(whole, self.count)
        if whole > self.done:
            self.done = whole
            if progress is not None:
                progress(whole)

    def _ended(self) -> DeviceError:
        """Why the output ended before the trailer."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        self.errors_reader.join(2)  # the last line may still be on its way
        own = [line for line in self.errors if line.startswith("runner: ")]
        if code == 2 and own:
            return DeviceError(f"device '{self.device}': {own[-1].removeprefix('runner: ')}")
        ending = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with status {code}"
        return DeviceGone(self.device, self.done, self.count, self.errors[-1] if self.errors else ending)
