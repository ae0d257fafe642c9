"""The ssh device against a real sshd on the loopback, with keys of its own."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xnorc.errors import DeviceError, InputError, ToolError
from xnorc.runtimes import ssh
from xnorc.runtimes.device import DeviceGone, parse_device

from . import fake
from .fake import FakePackage
from .sshd import Server, free_port, needs_sshd

pytestmark = needs_sshd


def test_run_trace_layers_bench(server: Server) -> None:
    x = fake.inputs(20)
    device = parse_device(server.url)
    with device.open(FakePackage(), 2) as session:
        assert len(server.folders()) == 1
        out = session.run({"x": x})
        np.testing.assert_array_equal(out["y"], x * 2 + 1)
        np.testing.assert_array_equal(session.trace({"x": x})["t"], x * 2)
        np.testing.assert_array_equal(session.layers({"x": x, "t": x, "y": x})["y"], x + 1)
        assert session.bench({"x": x}, repeats=3).shape == (3, 3)
    assert server.folders() == []
    session.close()
    with pytest.raises(DeviceError, match="the session is closed"):
        session.run({"x": x})


def test_the_runner_is_killed(server: Server) -> None:
    x = np.concatenate([fake.inputs(3), fake.inputs(1, fake.KILL), fake.inputs(2)])
    with parse_device(server.url).open(FakePackage()) as session:
        with pytest.raises(DeviceGone, match=r"went away after 3 of 6 inputs: .+") as error:
            session.run({"x": x})
        assert server.url in str(error.value) and "\n" not in str(error.value)
        assert session.run({"x": x[:3]})["y"].shape == (3, 1, 1000), "the device itself is still there"


def test_a_kernel_fails(server: Server) -> None:
    failed = pytest.raises(DeviceError, match="input 1 of 1: a kernel failed")
    with parse_device(server.url).open(FakePackage()) as session, failed:
        session.run({"x": fake.inputs(1, fake.FAIL)})


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found + [below for child in found for below in children_of(child)]


def test_the_connection_drops(server: Server) -> None:
    """Everything that serves the connection is killed while inputs are under way."""
    x = fake.inputs(200, fake.SLEEP)

    def cut() -> None:
        victims = children_of(server.process.pid)
        server.process.kill()
        for pid in victims:
            os.kill(pid, 9)

    session = parse_device(server.url).open(FakePackage())
    timer: list[threading.Timer] = []

    def watch(done: int, total: int) -> None:
        if done == 3 and not timer:
            timer.append(threading.Timer(0, cut))
            timer[0].start()

    begin = time.monotonic()
    with pytest.raises(DeviceGone, match=r"went away after \d+ of 200 inputs: .+") as error:
        session.run({"x": x}, progress=watch)
    assert time.monotonic() - begin < 15 and 3 <= error.value.done < 30
    begin = time.monotonic()
    session.close()
    assert time.monotonic() - begin < 15


def one_line_error(url: str, package: FakePackage | None = None) -> str:
    with pytest.raises(DeviceError) as error:
        parse_device(url).open(package or FakePackage())
    text = str(error.value)
    assert "\n" not in text and f"device '{url}'" in text
    return text


def test_nobody_listens(server: Server) -> None:
    assert "refused" in one_line_error(f"ssh://nobody@127.0.0.1:{free_port()}")


def test_no_such_host(server: Server) -> None:
    one_line_error("ssh://pi@no-such-host.invalid")


def test_wrong_user(server: Server) -> None:
    assert "Permission denied" in one_line_error(server.url.replace("ssh://", "ssh://x"))


def test_package_of_another_machine(server: Server) -> None:
    text = one_line_error(server.url, FakePackage("rpi4"))
    assert "is x86_64" in text and "rpi4 (aarch64)" in text
    assert server.folders() == [], "the folder is removed"


def test_bad_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNORC_SSH_OPTIONS", "-o 'unfinished")
    with pytest.raises(InputError, match="XNORC_SSH_OPTIONS"):
        parse_device("ssh://host").open(FakePackage())
    monkeypatch.setattr(ssh.shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match="no ssh on PATH"):
        parse_device("ssh://host").open(FakePackage())
