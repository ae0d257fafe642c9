"""An OpenSSH server on the loopback, with keys of its own: the fixture ``server``, and what skips tests where there is none."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
needs_sshd = pytest.mark.skipif(
    not (os.access(SSHD, os.X_OK) and shutil.which("ssh") and shutil.which("ssh-keygen")),
    reason="needs the OpenSSH server and client (apt install openssh-server)",
)


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    remote_tmp: Path

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.remote_tmp.glob("xnorc.*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user_key.pub", tmp_path / "authorized_keys")
    remote_tmp = tmp_path / "remote"
    remote_tmp.mkdir()
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"UsePAM no\nSetEnv TMPDIR={remote_tmp}\n"
    )
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    monkeypatch.setenv(
        "XNORC_SSH_OPTIONS",
        f"-F none -i {tmp_path}/user_key -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
        f"-o UserKnownHostsFile={tmp_path}/known_hosts",
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        yield Server(f"ssh://{user}@127.0.0.1:{port}", process, remote_tmp)
    finally:
        process.kill()
        process.wait()
