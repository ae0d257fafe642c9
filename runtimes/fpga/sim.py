"""The devices ``sim`` and ``sim://board``: the package's Verilog in Verilator, head and tail in this process.

``sim`` feeds the accelerator a word a cycle and counts its cycles. ``sim://board`` puts around it what goes on a board: the
framed link, whose bytes (a cycle each) are all that passes in and out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ..device import Device
from .hybrid import HybridSession
from .session import LinkEngine, design_of
from .simulate import Cycles, Simulator

if TYPE_CHECKING:
    from ...package import Package

BENCH_FRAMES = 64


class SimDevice(Device):
    """The accelerator as Verilator runs it, cycle by cycle."""

    name = "sim"

    def open(self, package: Package, threads: int = 1) -> HybridSession:
        """See ``Device.open``. The first time builds the simulator, which is then kept."""
        design_of(package)
        if threads != 1:
            raise InputError(f"device 'sim': {threads} threads make no sense on an FPGA, it has no threads")
        engine = _Engine(package)
        session = HybridSession(self.name, package, engine)
        session.notes.append(engine.note())
        return session


class SimBoardDevice(Device):
    """The accelerator behind the link, as on a board."""

    name = "sim://board"

    def open(self, package: Package, threads: int = 1) -> HybridSession:
        """See ``Device.open``. The first time builds the simulator, which is then kept."""
        facts = design_of(package)
        if threads != 1:
            raise InputError(f"device '{self.name}': {threads} threads make no sense on an FPGA, it has no threads")
        from .link.client import Client
        from .link.framed import Framed
        from .program import accelerator_of
        from .verilated import Process, build

        clock = facts["estimate"]["clock_hz"]
        framed = Framed(accelerator_of(package), design=bytes.fromhex(facts["design"]), clock_hz=clock)
        client = Client(Process(build(framed.verilog())))
        return HybridSession(self.name, package, LinkEngine(self.name, package, client))


class _Engine:
    """``Engine`` over a ``Simulator``."""

    def __init__(self, package: Package) -> None:
        from .emit import design_in

        self._simulator = Simulator(design_in(package))
        self._estimate = package.manifest["fpga"]["estimate"]
        self._measured: Cycles | None = None

    def run(self, frames: np.ndarray) -> np.ndarray:
        """See ``Engine``."""
        results, _ = self._simulator.run(frames)
        return results

    def nanoseconds(self, frames: np.ndarray) -> float:
        """See ``Engine``. Of a run of ``BENCH_FRAMES`` images, whatever was asked for."""
        return self._cycles().interval * 1e9 / self._estimate["clock_hz"]

    def note(self) -> str:
        """Cycles as simulated beside those estimated."""
        cycles, guess = self._cycles(), self._estimate
        expected = guess["latency_cycles"] + (cycles.frames - 1) * guess["interval_cycles"]
        rate, delay = guess["clock_hz"] / cycles.interval, cycles.first / guess["clock_hz"] * 1e6
        return (
            f"accelerator, simulated: {cycles.interval:g} cycles an image, {cycles.first} to the first result, "
            f"{cycles.total} for {cycles.frames} images (estimated {expected}, {cycles.total / expected - 1:+.2%}); at "
            f"{guess['clock_hz'] / 1e6:g} MHz {rate:,.0f} FPS, first result after {delay:.2f} µs"
        )

    def close(self) -> None:
        """See ``Engine``: nothing runs between two calls."""

    def _cycles(self) -> Cycles:
        if self._measured is None:
            random = np.random.default_rng(0)
            size = (BENCH_FRAMES, self._simulator.design.frame_in_bits)
            self._measured = self._simulator.run(random.integers(0, 2, size).astype(np.uint8))[1]
        return self._measured
