"""A package whose middle runs on an FPGA: head and tail on a CPU, the accelerator wherever the device has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ... import manifest as manifests
from ...errors import DeviceError
from ..device import Mode, Session
from ..host import HostDevice

if TYPE_CHECKING:
    from ...package import Package

PARTS = ("head", "tail")


class Engine(Protocol):
    """Something that holds the accelerator."""

    def run(self, frames: np.ndarray) -> np.ndarray:
        """Results uint8 0/1 ``[count, frame_out_bits]`` of frames uint8 0/1 ``[count, frame_in_bits]``."""

    def nanoseconds(self, frames: np.ndarray) -> float:
        """How long the accelerator takes for a frame, in the long run."""

    def notes(self) -> list[str]:
        """What the user should know of the runs so far, a line each."""

    def close(self) -> None:
        """Give back what it holds."""


class HybridSession(Session):
    """Head → accelerator → tail. The accelerator is one step, an exact one."""

    def __init__(self, device: str, package: Package, engine: Engine) -> None:
        self._engine = engine
        self._parts: dict[str, Session] = {}
        try:
            super().__init__(device, package, 1)
            self._design = package.manifest["fpga"]
            for part in PARTS:
                if self._design[part] is not None:
                    self._parts[part] = HostDevice().open(part_of(package, part))
        except BaseException:
            self.close()
            raise

    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """See ``Session.exchange``."""
        asked, _ = self.record_bytes(mode)
        rows = np.frombuffer(request, np.uint8).reshape(count, asked)
        if mode is Mode.LAYERS:
            return self._layers(rows, count)
        values: dict[str, np.ndarray] = {}
        _unpack(rows, [self._tensors[index] for index in self._inputs], values)
        times = []
        for part in ("head", "fpga", "tail"):
            if part == "fpga":
                times.append(self._accelerate(values, mode))
            elif part in self._parts:
                times.append(self._run_part(self._parts[part], mode, values, count))
        if progress is not None:
            progress(count)
        self.notes = self._engine.notes()
        if mode is Mode.BENCH:
            return np.ascontiguousarray(np.concatenate(times, axis=1)).tobytes()
        wanted = self._outputs if mode is Mode.RUN else self._writes
        return _pack([values[self._tensors[index]["name"]] for index in wanted])

    def close(self) -> None:
        """Close the CPU's parts and the accelerator."""
        for session in self._parts.values():
            session.close()
        self._parts = {}
        self._engine.close()

    def _run_part(self, session: Session, mode: Mode, values: dict[str, np.ndarray], count: int) -> np.ndarray:
        """Run a part, add what it made to ``values``; times uint64 ``[count, steps]`` where those were asked for."""
        manifest = session.package.manifest
        request = _pack([values[manifest["tensors"][index]["name"]] for index in manifest["inputs"]])
        times = np.zeros((count, 0), np.uint64)
        if mode is Mode.BENCH:
            raw = session.exchange(Mode.BENCH, request, count)
            times = np.frombuffer(raw, "<u8").reshape(count, -1)
        raw = session.exchange(Mode.TRACE, request, count)
        written = [manifest["tensors"][index] for step in manifest["steps"] for index in step["writes"]]
        _unpack(np.frombuffer(raw, np.uint8).reshape(count, -1), written, values)
        return times

    def _accelerate(self, values: dict[str, np.ndarray], mode: Mode) -> np.ndarray:
        source = values[self._design["source"]["tensor"]]
        frames = to_frames(source, self._design["source"])
        result = np.ascontiguousarray(from_frames(self._engine.run(frames), self._design["result"]))
        values[self._design["result"]["tensor"]] = result.reshape(len(source), -1).view(np.uint8)
        if mode is not Mode.BENCH:
            return np.zeros((len(source), 0), np.uint64)
        return np.full((len(source), 1), round(self._engine.nanoseconds(frames)), np.uint64)

    def _layers(self, rows: np.ndarray, count: int) -> bytes:
        """Every step on given inputs: each part has a run of them, in the order of the request."""
        responses, place = [], 0
        for part in ("head", "fpga", "tail"):
            if part == "fpga":
                tensor = next(t for t in self._tensors if t["name"] == self._design["source"]["tensor"])
                values: dict[str, np.ndarray] = {}
                size = _nbytes(tensor)
                _unpack(rows[:, place : place + size], [tensor], values)
                place += size
                self._accelerate(values, Mode.LAYERS)
                responses.append(values[self._design["result"]["tensor"]])
            elif part in self._parts:
                session = self._parts[part]
                size = session.record_bytes(Mode.LAYERS)[0]
                request = np.ascontiguousarray(rows[:, place : place + size]).tobytes()
                place += size
                raw = session.exchange(Mode.LAYERS, request, count)
                responses.append(np.frombuffer(raw, np.uint8).reshape(count, -1))
        return _pack(responses)


def part_of(package: Package, part: str) -> Package:
    """The head or the tail as a package of its own, for the CPU's devices."""
    from ...package import Package as Whole

    content = {
        **package.manifest["fpga"][part], "format": manifests.FORMAT, "xnorc": package.manifest["xnorc"],
        "choices": package.manifest["choices"], "files": {},
    }  # fmt: skip
    manifests.check(content)
    prefix = f"{part}/"
    members = {name.removeprefix(prefix): package.member(name) for name in package.members if name.startswith(prefix)}
    found = Whole(package.path, content, members)
    found.check_device("host")
    return found


def to_frames(samples: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """Bytes of a tensor uint8 ``[count, bytes]`` as frames of bits 0/1 ``[count, pixels · channels · bits]``.

    The tensor holds bit planes, or, as ``kind`` of the port says, integers of a byte: then of each the low bits.
    """
    count, pixels, channels, bits = len(samples), port["pixels"], port["channels"], port["bits"]
    if port.get("kind") == "integers":
        return np.unpackbits(samples.reshape(count, -1, 1), axis=2, bitorder="little")[..., :bits].reshape(count, -1)
    planes = np.unpackbits(samples.reshape(count, bits, pixels, -1), axis=3, bitorder="little")[..., :channels]
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).reshape(count, -1)


def from_frames(frames: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """What ``to_frames`` undoes; sums come as integers of the port's ``dtype``: ``scale · number + offset[channel]``."""
    count, pixels, channels, bits = len(frames), port["pixels"], port["channels"], port["bits"]
    elements = frames.reshape(count, pixels * channels, bits)
    if port["kind"] == "sums":
        worth = 1 << np.arange(bits, dtype=np.int64)
        if port["signed"]:
            worth[-1] = -worth[-1]
        numbers = elements.astype(np.int64) @ worth
        rows = numbers.reshape(count, pixels, channels) * port["scale"] + np.asarray(port["offset"], np.int64)
        return rows.astype(port.get("dtype", "int32")).reshape(count, -1)
    planes = elements.reshape(count, pixels, channels, bits).transpose(0, 3, 1, 2)
    return np.packbits(planes, axis=3, bitorder="little")


def _unpack(rows: np.ndarray, tensors: list[Any], values: dict[str, np.ndarray]) -> None:
    place = 0
    for tensor in tensors:
        size = _nbytes(tensor)
        values[tensor["name"]] = rows[:, place : place + size]
        place += size
    if place != rows.shape[1]:
        raise DeviceError(f"a record has {rows.shape[1]} bytes in place of {place}")


def _pack(parts: list[np.ndarray]) -> bytes:
    return np.ascontiguousarray(np.concatenate(parts, axis=1)).tobytes()


def _nbytes(tensor: Mapping[str, Any]) -> int:
    return int(np.prod(tensor["shape"], dtype=np.int64)) * np.dtype(tensor["dtype"]).itemsize
