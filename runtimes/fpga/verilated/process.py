"""A Verilated design as a port of the link: a child process and its pipes."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ..link.client import PortError

_WRITE_SECONDS = 60.0


class Process:
    """``Port`` over the standard input and output of ``program``. ``baud`` is 0: simulated time is nobody's time."""

    baud = 0

    def __init__(self, program: Path, name: str = "sim", arguments: Sequence[str] = ()) -> None:
        self.name = name
        self._child = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._in, self._out = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._in, False)
        self._early = bytearray()

    def write(self, data: bytes) -> None:
        """See ``Port``. Reads on while it writes, so that neither side waits for the other."""
        view, end = memoryview(data), time.monotonic() + _WRITE_SECONDS
        while view:
            readable, writable, _ = select.select([self._out], [self._in], [], max(0.0, end - time.monotonic()))
            if not readable and not writable:
                raise PortError(f"the simulation took no byte for {_WRITE_SECONDS:g} s")
            if readable:
                self._early += self._read()
            if writable:
                try:
                    view = view[os.write(self._in, view) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    raise PortError(self._ended()) from error

    def read(self, seconds: float) -> bytes:
        """See ``Port``."""
        if self._early:
            data = bytes(self._early)
            self._early.clear()
            return data
        readable, _, _ = select.select([self._out], [], [], max(0.0, seconds))
        return self._read() if readable else b""

    def close(self) -> None:
        """End the process."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> bytes:
        data = os.read(self._out, 1 << 16)
        if not data:
            raise PortError(self._ended())
        return data

    def _ended(self) -> str:
        try:
            return f"the simulation ended with status {self._child.wait(5)}"
        except subprocess.TimeoutExpired:
            return "the simulation closed its pipes"
