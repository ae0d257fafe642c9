"""The device ``ssh://user@host[:port]``: the package's runner on another machine, through the system's ``ssh``.

Keys, aliases and jump hosts come from the user's own ssh configuration. The environment variable ``XNORC_SSH_OPTIONS``
holds more options for ``ssh``, in the shell's quoting. Nothing is installed: the runner is copied to a fresh temporary
folder, and the folder is removed when the session closes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import DeviceError, InputError, ToolError
from . import stream
from .device import Device, Mode, Session

if TYPE_CHECKING:
    from ..package import Package

_CONNECT_SECONDS = 10
_COPY_SECONDS = 300.0
_MACHINES = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm"}
# One connection for all: make the folder, fill it from standard input, say where it is and what the machine is. It needs
# only a shell on the other side: no scp, no sftp server.
_INSTALL = (
    'd=$(mktemp -d "${TMPDIR:-/tmp}/xnorc.XXXXXXXXXX") && cat > "$d/runner" && chmod 700 "$d/runner" && '
    'echo "xnorc $(uname -m) $d"'
)
# Compilers for 32-bit code run on 64-bit Arm kernels too, so the architectures need not be the same word.
_RUNS = {"arm": ("arm", "aarch64"), "aarch64": ("aarch64",), "x86_64": ("x86_64",)}


class SshDevice(Device):
    """Another machine, by the system's ssh. Needs a login that asks for no password (keys or an agent)."""

    def __init__(self, host: str, user: str | None = None, port: int | None = None) -> None:
        self.host, self.user, self.port = host, user, port
        shown = f"[{host}]" if ":" in host else host
        self.name = f"ssh://{f'{user}@' if user else ''}{shown}{f':{port}' if port else ''}"

    def open(self, package: Package, threads: int = 1) -> SshSession:
        """See ``Device.open``. Copies the runner to the device."""
        return SshSession(self, package, threads)

    def command(self, remote: str) -> list[str]:
        """The local command that runs ``remote`` in the device's shell."""
        program = shutil.which("ssh")
        if program is None:
            raise ToolError("no ssh on PATH: install the OpenSSH client")
        try:
            extra = shlex.split(os.environ.get("XNORC_SSH_OPTIONS", ""))
        except ValueError as error:
            raise InputError(f"XNORC_SSH_OPTIONS cannot be read: {error}") from error
        # ssh takes the first value it sees of an option: the user's come first. A connection that is cut is noticed
        # within a minute.
        options = [
            *extra, "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}",
            "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR",
        ]  # fmt: skip
        options += ["-p", str(self.port)] if self.port else []
        options += ["-l", self.user] if self.user else []
        return [program, *options, "--", self.host, remote]


class SshSession(Session):
    """A runner in a temporary folder of the device; every exchange is one ssh command."""

    def __init__(self, device: SshDevice, package: Package, threads: int) -> None:
        super().__init__(device.name, package, threads)
        self._device = device
        self._folder: str | None = None
        answer = self._call(_INSTALL, package.member("lib/runner"), _COPY_SECONDS)
        # A login script may print lines of its own before.
        found = [match for line in answer.splitlines() if (match := re.fullmatch(r"xnorc (\S+) (/.+)", line.strip()))]
        if not found:
            raise DeviceError(f"device '{device.name}' did not take the runner: it answered {answer.strip()[-200:]!r}")
        self._folder = found[-1].group(2)
        machine, arch = found[-1].group(1), package.target.arch
        if machine in _MACHINES and _MACHINES[machine] not in _RUNS.get(arch, ()):
            self.close()
            raise DeviceError(
                f"device '{device.name}' is {machine}, the package '{package.name}' is built for {package.target.name} ({arch})"
            )

    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """See ``Session.exchange``."""
        if self._folder is None:
            raise DeviceError(f"device '{self.device}': the session is closed")
        runner = shlex.quote(f"{self._folder}/runner")
        command = self._device.command(f"exec {runner} {mode.name.lower()} --threads {self.threads}")
        answer = self.record_bytes(mode)[1]
        return stream.exchange(command, self.device, mode, self.threads, request, count, answer, progress)

    def close(self) -> None:
        """Remove the folder on the device; a device that has gone away keeps it until it is rebooted."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            self._call(f"rm -rf -- {shlex.quote(folder)}", b"", 30.0)
        except DeviceError:
            return

    def _call(self, remote: str, data: bytes, seconds: float) -> str:
        """Run one short command there. Raises ``DeviceError`` with the last line that ssh or the command said."""
        command = self._device.command(remote)
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"device '{self.device}' did not answer within {seconds:g} s") from error
        except OSError as error:
            raise ToolError(f"'{command[0]}' cannot be started: {error}") from error
        if done.returncode:
            lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
            why = lines[-1] if lines else f"ssh ended with status {done.returncode}"
            raise DeviceError(f"device '{self.device}' cannot be used: {why}")
        return done.stdout.decode(errors="replace")
