"""The devices ``sim``, ``sim://bare`` and ``sim://board``: the package's Verilog in Verilator, head and tail in this process.

* ``sim``: what goes on a board, from the link inwards: framing, CRCs, buffers, converters, accelerator. Its bytes take a cycle
  each. The same program streams words past the link for the accelerator's own cycles.
* ``sim://board``: the board's top level itself, UART pins and all, bit by bit at the board's speed (its PLL is a wire).
  Hundreds of times slower: for a few images.
* ``sim://bare``: the accelerator alone, a word a cycle.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DeviceError, InputError
from ..device import Device
from .emit import design_in
from .hybrid import Engine, HybridSession
from .link.protocol import ERROR, FAULT_TEXT, HELLO, OVERHEAD, REPLY, STATUS, Command, Fault, Frame, FrameReader
from .session import design_of
from .simulate import Cycles, Simulator, word_sizes

if TYPE_CHECKING:
    from ...package import Package

BENCH_FRAMES = 64
FORMS = ("sim", "sim://bare", "sim://board")


class SimDevice(Device):
    """A package's design as Verilator runs it, cycle by cycle; ``name`` is one of ``FORMS``."""

    def __init__(self, name: str = "sim") -> None:
        self.name = name

    def open(self, package: Package, threads: int = 1) -> HybridSession:
        """See ``Device.open``. The first time builds the simulator, which is then kept."""
        design_of(package)
        if threads != 1:
            raise InputError(f"device '{self.name}': {threads} threads make no sense on an FPGA, it has no threads")
        make: dict[str, Callable[[Package], Engine]] = {
            "sim": _Linked, "sim://bare": _Bare, "sim://board": _Board,
        }  # fmt: skip
        return HybridSession(self.name, package, make[self.name](package))


class _Bare:
    """``Engine`` over a ``Simulator``."""

    def __init__(self, package: Package, simulator: Simulator | None = None) -> None:
        self._simulator = simulator or Simulator(design_in(package))
        self._estimate = package.manifest["fpga"]["estimate"]
        self._measured: Cycles | None = None

    def run(self, frames: np.ndarray) -> np.ndarray:
        """See ``Engine``."""
        results, cycles = self._simulator.run(frames)
        if len(frames) >= BENCH_FRAMES:
            self._measured = cycles
        return results

    def nanoseconds(self, frames: np.ndarray) -> float:
        """See ``Engine``. Of a run of ``BENCH_FRAMES`` images, whatever was asked for."""
        return self._cycles().interval * 1e9 / self._estimate["clock_hz"]

    def notes(self) -> list[str]:
        """See ``Engine``: cycles as simulated beside those estimated."""
        cycles, guess = self._cycles(), self._estimate
        expected = guess["latency_cycles"] + (cycles.frames - 1) * guess["interval_cycles"]
        rate, delay = guess["clock_hz"] / cycles.interval, cycles.first / guess["clock_hz"] * 1e6
        return [
            f"accelerator, simulated: {cycles.interval:g} cycles an image, {cycles.first} to the first result, "
            f"{cycles.total} for {cycles.frames} images (estimated {expected}, {cycles.total / expected - 1:+.2%}); at "
            f"{guess['clock_hz'] / 1e6:g} MHz {rate:,.0f} FPS, first result after {delay:.2f} µs"
        ]

    def close(self) -> None:
        """See ``Engine``: nothing runs between two calls."""

    def _cycles(self) -> Cycles:
        if self._measured is None:
            random = np.random.default_rng(0)
            size = (BENCH_FRAMES, self._simulator.design.frame_in_bits)
            self._measured = self._simulator.run(random.integers(0, 2, size).astype(np.uint8))[1]
        return self._measured


class _Script:
    """The link's requests to a simulated design, all of them known before it starts: no wall time plays a part."""

    def __init__(self, package: Package, device: str, program: Path, clock_hz: float | None = None) -> None:
        self._device, self._program, self._facts = device, program, design_of(package)
        self.image_bytes, self.result_bytes = (-(-self._facts[key] // 8) for key in ("frame_in_bits", "frame_out_bits"))
        self.clock_hz = clock_hz or self._facts["estimate"]["clock_hz"]
        self.images, self.link_cycles, self.core_cycles = 0, 0, 0
        """So far: images, cycles in which they came and went, the board's own count for the last request."""
        (hello,), _ = self._exchange([(Command.HELLO, b"", HELLO.size)], 1)
        _, _, _, self._payload, self._buffer, design, *_ = HELLO.unpack(hello)
        if design.hex() != self._facts["design"]:
            raise DeviceError(f"device '{device}' says that it holds design {design.hex()}: not that of the package")

    def run(self, frames: np.ndarray) -> np.ndarray:
        """Results of frames, as ``Engine`` has them."""
        images = np.packbits(frames, axis=1, bitorder="little")
        batch = max(1, min(self._payload // self.image_bytes, self._payload // self.result_bytes))
        parts = [images[start : start + batch] for start in range(0, len(frames), batch)]
        requests = [(Command.RUN, part.tobytes(), len(part) * self.result_bytes) for part in parts]
        window = max(1, min(4, self._buffer // (batch * self.image_bytes)))
        replies, cycles = self._exchange([*requests, (Command.STATUS, b"", STATUS.size)], window)
        self.images, self.link_cycles = self.images + len(frames), self.link_cycles + cycles
        self.core_cycles = STATUS.unpack(replies.pop())[0]
        results = np.frombuffer(b"".join(replies), np.uint8).reshape(len(frames), self.result_bytes)
        return np.unpackbits(results, axis=1, count=self._facts["frame_out_bits"], bitorder="little")

    def notes(self) -> list[str]:
        """Cycles of the link, once it was used."""
        if not self.images:
            return []
        each = self.link_cycles / self.images
        return [
            f"with the link: {each:,.0f} cycles an image for {self.images} images, {self.clock_hz / each:,.0f} FPS at "
            f"{self.clock_hz / 1e6:g} MHz; the design's own count of its last request: {self.core_cycles} cycles"
        ]

    def _exchange(self, requests: list[tuple[int, bytes, int]], window: int) -> tuple[list[bytes], int]:
        """Payloads of the replies to requests (command, payload, bytes of the reply's payload), and the cycles of it all."""
        script, wanted = bytearray(), []
        for number, (command, payload, replied) in enumerate(requests):
            encoded = Frame(number % 256, command, payload).encode()
            script += struct.pack("<II", len(encoded), replied + OVERHEAD) + encoded
            wanted.append((number % 256, command | REPLY, replied))
        done = subprocess.run([str(self._program), "link", str(window)], input=script, capture_output=True, check=False)
        frames = list(FrameReader().feed(done.stdout))
        for frame, (number, command, size) in zip(frames, wanted, strict=False):
            if frame.command == ERROR and frame.payload[:1]:
                raise DeviceError(f"device '{self._device}' refuses a request: {FAULT_TEXT[Fault(frame.payload[0])]}")
            if (frame.sequence, frame.command, len(frame.payload)) != (number, command, size):
                raise DeviceError(f"device '{self._device}' answers request {number} with something else")
        if done.returncode != 0 or len(frames) != len(wanted):
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
            raise DeviceError(f"device '{self._device}': {said[-1]}")
        cycles = int(json.loads(done.stderr.decode().strip().splitlines()[-1])["cycles"])
        return [frame.payload for frame in frames], cycles


def linked(package: Package) -> Simulator:
    """The design from the link inwards as a program; the simulator streams words past the link."""
    from .link.framed import Framed
    from .program import accelerator_of
    from .verilated.build import build_program, source

    facts, design = design_of(package), design_in(package)
    name, clock = bytes.fromhex(facts["design"]), facts["estimate"]["clock_hz"]
    verilog = Framed(accelerator_of(package), design=name, clock_hz=clock).verilog(direct=True)
    defines = ["-DXNORC_DIRECT", *word_sizes(design)]
    return Simulator(design, program=build_program(verilog, "top", source("wires", "stream", "host"), defines))


class _Linked(_Bare):
    """The design from the link inwards, and its accelerator past the link, as one program."""

    def __init__(self, package: Package) -> None:
        simulator = linked(package)
        super().__init__(package, simulator)
        self._link = _Script(package, "sim", simulator.program)

    def run(self, frames: np.ndarray) -> np.ndarray:
        """See ``Engine``: through the link."""
        return self._link.run(frames)

    def notes(self) -> list[str]:
        """See ``Engine``."""
        return [*super().notes(), *self._link.notes()]


class _Board:
    """The board's top level, through its UART's pins."""

    def __init__(self, package: Package) -> None:
        from .program import top_of
        from .verilated.build import build_program, source

        top = top_of(package)
        defines = [f"-DXNORC_CYCLES={top.cycles}", *(["-DXNORC_RESET_LOW"] if top.board.reset_low else [])]
        program = build_program(top.verilog(), "top", source("wires", "host"), defines)
        self._link = _Script(package, "sim://board", program, top.link_hz)

    def run(self, frames: np.ndarray) -> np.ndarray:
        """See ``Engine``."""
        return self._link.run(frames)

    def nanoseconds(self, frames: np.ndarray) -> float:
        """See ``Engine``: as the link lets images pass."""
        self._link.run(frames)
        return self._link.link_cycles / self._link.images / self._link.clock_hz * 1e9

    def notes(self) -> list[str]:
        """See ``Engine``."""
        return self._link.notes()

    def close(self) -> None:
        """See ``Engine``: nothing runs between two calls."""
