"""Devices: where a package runs. ``parse_device("qemu").open(package)`` gives a ``Session`` that runs it.

A device implements one primitive, ``Session.exchange``: records in, records out, as bytes. What a caller wants (``run``,
``trace``, ``layers``, ``bench``) is built on it here, once.

The leading axis of samples. A tensor of the model has a static shape, say ``[1, 3, 32, 32]``. An array for it is

* of exactly that shape: one sample;
* of one more axis in front, ``[samples, 1, 3, 32, 32]``: that many samples;
* where the shape starts with 1, of any first axis, ``[samples, 3, 32, 32]``: that many samples too.

All inputs must have the same number of samples. ``run`` answers in the form of the question: the exact shape, a new axis
in front, or the batch axis as samples where an output has one. ``trace`` and ``layers`` always put a new axis in front.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from ..package import Package

Progress = Callable[[int, int], None]
"""Called with the number of inputs done and the number of all."""

CHUNK_BYTES = 64 << 20
"""Most bytes of requests, or of responses, in one exchange."""


class Mode(IntEnum):
    """What is asked of a device (``xnorc_mode`` in ``xnorc.h``)."""

    RUN = 0
    TRACE = 1
    LAYERS = 2
    BENCH = 3


class DeviceGone(DeviceError):
    """A device stopped answering within an exchange: ``done`` of ``total`` inputs were answered."""

    def __init__(self, device: str, done: int, total: int, detail: str) -> None:
        super().__init__(f"device '{device}' went away after {done} of {total} inputs: {detail}")
        self.device, self.done, self.total, self.detail = device, done, total, detail


class Device(ABC):
    """Something that packages can run on."""

    name: str
    """As the user writes it: ``host``, ``qemu``, ``ssh://pi@raspberry``."""

    @abstractmethod
    def open(self, package: Package, threads: int = 1) -> Session:
        """A session for one package, to be used as a context manager.

        Raises ``DeviceError`` when the package is for other machines or the device cannot be reached.
        """


class Session(ABC):
    """One package on one device. ``notes``: what the user should know about how it runs there, a line each."""

    def __init__(self, device: str, package: Package, threads: int = 1) -> None:
        limit = package.manifest["memory"]["max_threads"]
        if not 1 <= threads <= limit:
            raise InputError(f"{threads} threads: the package '{package.name}' can use 1 to {limit}")
        self.device, self.package, self.threads = device, package, threads
        self.notes: list[str] = []
        self._tensors: list[dict[str, Any]] = package.manifest["tensors"]
        self._inputs: list[int] = package.manifest["inputs"]
        self._outputs: list[int] = package.manifest["outputs"]
        steps = package.manifest["steps"]
        self._reads: list[int] = [index for step in steps for index in step["reads"]]
        self._writes: list[int] = [index for step in steps for index in step["writes"]]
        self._steps = len(steps)

    @abstractmethod
    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """Send ``count`` request records and return as many response records (sizes: ``record_bytes``).

        ``progress`` is called with the number of records done so far. Raises ``DeviceError``; ``DeviceGone`` when the
        device stops answering.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the session holds. Closing twice is harmless."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def record_bytes(self, mode: Mode) -> tuple[int, int]:
        """Bytes of one request and of one response record."""
        asked = self._reads if mode is Mode.LAYERS else self._inputs
        if mode is Mode.BENCH:
            return self._bytes(asked), 8 * self._steps
        return self._bytes(asked), self._bytes(self._outputs if mode is Mode.RUN else self._writes)

    def run(self, feeds: Mapping[str, np.ndarray], progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Run the model; returns output name → array, in the form that the feeds have (see the module)."""
        arrays, form = self._feeds(feeds)
        out = self._ask(Mode.RUN, arrays, self._outputs, progress)
        for index in self._outputs if form != "stack" else []:
            name, shape = self._tensors[index]["name"], self._tensors[index]["shape"]
            if form == "exact" or (shape and shape[0] == 1):
                out[name] = out[name].reshape(shape if form == "exact" else (-1, *shape[1:]))
        return out

    def trace(self, feeds: Mapping[str, np.ndarray], progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Run the model and return what every step wrote: tensor name → ``[samples, *shape]``."""
        return self._ask(Mode.TRACE, self._feeds(feeds)[0], self._writes, progress)

    def layers(self, values: Mapping[str, np.ndarray], progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Run every step by itself on given inputs and return what it wrote.

        ``values``: tensor name → ``[samples, *shape]`` for every tensor that a step reads.
        """
        arrays = {}
        for index in dict.fromkeys(self._reads):
            tensor = self._tensors[index]
            if tensor["name"] not in values:
                raise InputError(f"no value for tensor '{tensor['name']}', which a step reads")
            arrays[index] = as_samples(tensor, np.asarray(values[tensor["name"]]), "tensor", only_stack=True)[0]
        return self._ask(Mode.LAYERS, arrays, self._writes, progress)

    def bench(
        self, feeds: Mapping[str, np.ndarray], repeats: int = 10, warmup: int = 1, progress: Progress | None = None
    ) -> np.ndarray:
        """Time the steps on the first sample of ``feeds``: nanoseconds, ``uint64 [repeats, steps]``.

        ``warmup`` runs come before and are not counted.
        """
        arrays, _ = self._feeds(feeds)
        repeated = {index: np.repeat(array[:1], warmup + repeats, axis=0) for index, array in arrays.items()}
        parts = self._exchanges(Mode.BENCH, repeated, progress)
        times = np.frombuffer(b"".join(parts), dtype="<u8").reshape(warmup + repeats, self._steps)
        return times[warmup:]

    def _bytes(self, indices: list[int]) -> int:
        return sum(_nbytes(self._tensors[index]) for index in indices)

    def _feeds(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[int, np.ndarray], str]:
        """Checked arrays ``[samples, *shape]`` by tensor index, and the form they were given in."""
        names = {self._tensors[index]["name"]: index for index in self._inputs}
        for name in feeds:
            if name not in names:
                raise InputError(f"the model has no input '{name}', its inputs are {', '.join(names)}")
        arrays, forms = {}, set()
        for name, index in names.items():
            if name not in feeds:
                tensor = self._tensors[index]
                raise InputError(f"input '{name}' ({tensor['dtype']} {list(tensor['shape'])}) is missing")
            arrays[index], form = as_samples(self._tensors[index], np.asarray(feeds[name]), "input")
            forms.add(form)
        counts = {name: len(arrays[index]) for name, index in names.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
            raise InputError(f"the inputs have different numbers of samples: {shown}")
        if forms == {"exact"}:
            return arrays, "exact"
        return arrays, "batch" if "batch" in forms else "stack"

    def _ask(
        self, mode: Mode, arrays: Mapping[int, np.ndarray], answer: list[int], progress: Progress | None
    ) -> dict[str, np.ndarray]:
        """Exchange all samples and cut the responses into the tensors ``answer``."""
        parts: dict[str, list[np.ndarray]] = {self._tensors[index]["name"]: [] for index in answer}
        for response in self._exchanges(mode, arrays, progress):
            rows = np.frombuffer(response, np.uint8).reshape(-1, self._bytes(answer))
            place = 0
            for index in answer:
                tensor = self._tensors[index]
                end = place + _nbytes(tensor)
                cut = np.ascontiguousarray(rows[:, place:end]).view(np.dtype(tensor["dtype"]))
                parts[tensor["name"]].append(_from_device(tensor, cut))
                place = end
        if not next(iter(parts.values()), [None]):
            tensors = {self._tensors[index]["name"]: self._tensors[index] for index in answer}
            return {name: np.empty((0, *tensors[name]["shape"]), tensors[name]["dtype"]) for name in parts}
        return {name: np.concatenate(cuts) for name, cuts in parts.items()}

    def _exchanges(self, mode: Mode, arrays: Mapping[int, np.ndarray], progress: Progress | None) -> list[bytes]:
        """The responses to all samples, asked for in parts of at most ``CHUNK_BYTES``."""
        asked = self._reads if mode is Mode.LAYERS else self._inputs
        total = len(next(iter(arrays.values()))) if arrays else 0
        size = max(1, CHUNK_BYTES // max(1, *self.record_bytes(mode)))
        responses = []
        for start in range(0, total, size):
            count = min(size, total - start)
            rows = [
                to_device(self._tensors[index], arrays[index][start : start + count]).reshape(count, -1).view(np.uint8)
                for index in asked
            ]
            request = np.concatenate(rows, axis=1) if rows else np.empty((count, 0), np.uint8)
            report = None if progress is None else _shifted(progress, start, total)
            try:
                response = self.exchange(mode, np.ascontiguousarray(request).reshape(-1).data, count, report)
            except DeviceGone as gone:
                raise DeviceGone(gone.device, start + gone.done, total, gone.detail) from gone
            expected = count * self.record_bytes(mode)[1]
            if len(response) != expected:
                raise DeviceError(f"device '{self.device}' answered {len(response)} bytes in place of {expected}")
            responses.append(response)
        return responses


def _shifted(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(start + done, total)


def _nbytes(tensor: Mapping[str, Any]) -> int:
    return int(np.prod(tensor["shape"], dtype=np.int64)) * np.dtype(tensor["dtype"]).itemsize


def to_device(tensor: Mapping[str, Any], samples: np.ndarray) -> np.ndarray:
    """Samples ``[samples, *shape]`` as they lie on a device."""
    if tensor.get("layout") == "channels_last":
        samples = np.moveaxis(samples, 2, -1)
    return np.ascontiguousarray(samples)


def _from_device(tensor: Mapping[str, Any], samples: np.ndarray) -> np.ndarray:
    """What ``to_device`` undoes; ``samples`` may have any shape of the right size."""
    shape = tensor["shape"]
    if tensor.get("layout") == "channels_last":
        n, c, h, w = shape
        return np.moveaxis(samples.reshape(-1, n, h, w, c), -1, 2)
    return samples.reshape(-1, *shape)


def as_samples(
    tensor: Mapping[str, Any], array: np.ndarray, what: str, only_stack: bool = False
) -> tuple[np.ndarray, str]:
    """``array`` as ``[samples, *shape]``, and its form: ``exact``, ``stack`` or ``batch`` (see the module)."""
    name, shape, dtype = tensor["name"], tuple(tensor["shape"]), np.dtype(tensor["dtype"])
    if array.dtype != dtype:
        raise InputError(f"{what} '{name}' is {array.dtype}, the model wants {dtype}")
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return array, "stack"
    if not only_stack and array.shape == shape:
        return array[None], "exact"
    if not only_stack and shape and shape[0] == 1 and array.ndim == len(shape) and array.shape[1:] == shape[1:]:
        return array[:, None], "batch"
    also = "" if only_stack else f" (or {list(shape)}, one sample)"
    wanted = f"[samples, {', '.join(map(str, shape))}]" if shape else "[samples]"
    raise InputError(f"{what} '{name}' has shape {list(array.shape)}, the model wants {wanted}{also}")


def machine() -> str:
    """What this machine is, in the words of ``Target.arch``."""
    import platform

    name = platform.machine().lower()
    known = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm", "armv6l": "armv6"}
    return known.get(name, name)


def parse_device(text: str) -> Device:
    """The device that ``text`` names: ``host``, ``qemu``, ``sim[://bare|board]``, ``ssh://[user@]host[:port]`` or ``serial:///dev/ttyUSB0``.

    Raises ``InputError`` when it is none of these.
    """
    from .host import HostDevice
    from .qemu import QemuDevice
    from .ssh import SshDevice

    if text == "host":
        return HostDevice()
    if text == "qemu":
        return QemuDevice()
    if text in ("sim", "sim://bare", "sim://board"):
        from .fpga.tools import require_amaranth

        require_amaranth()
        from .fpga.sim import SimDevice

        return SimDevice(text)
    if text.startswith("serial://"):
        from .fpga.serial import parse

        return parse(text)
    forms = "host, qemu, sim, sim://bare, sim://board, ssh://user@host[:port] or serial:///dev/ttyUSB0"
    if not text.startswith("ssh://"):
        near = difflib.get_close_matches(text, ["host", "qemu", "sim"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {forms}"
        raise InputError(f"unknown device '{text}': {hint}")
    try:
        parts = urlsplit(text)
        user, host, port = parts.username, parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"device '{text}': {error}") from error
    if not host or parts.password is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InputError(f"device '{text}' is not of the form ssh://user@host[:port]")
    # A name that starts with a dash would be an option of ssh; white space and controls have no place in either.
    for word in (host, user or ""):
        if word.startswith("-") or not word.isprintable() or any(c.isspace() for c in word):
            raise InputError(f"device '{text}': '{word}' is not a name")
    return SshDevice(host, user, port)
