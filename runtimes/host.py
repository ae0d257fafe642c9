"""The device ``host``: the package's shared library, loaded into this process."""

from __future__ import annotations

import _ctypes
import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DeviceError
from .device import Device, Mode, Session, machine

if TYPE_CHECKING:
    from ..package import Package

_ALIGN = 64
_STATUS_OK = 0


class HostDevice(Device):
    """This machine, in this process. A kernel that crashes takes the process along; ``qemu`` and ``ssh`` isolate."""

    name = "host"

    def open(self, package: Package, threads: int = 1) -> HostSession:
        """See ``Device.open``. The package must be built for this machine's architecture."""
        target = package.target
        if not target.is_host and target.arch != machine():
            raise DeviceError(
                f"package '{package.name}' is built for {target.name} ({target.arch}), this machine is {machine()}: "
                "use the device qemu or ssh://user@host"
            )
        return HostSession(self.name, package, threads)


class HostSession(Session):
    """The loaded library. It lies in a private folder only for as long as it takes to load it."""

    def __init__(self, device: str, package: Package, threads: int) -> None:
        super().__init__(device, package, threads)
        self._library: ctypes.CDLL | None = None
        content = package.member(f"lib/lib{package.name}.so")
        # A name of its own for every session: the loader would give an already loaded library of the same file again.
        with tempfile.TemporaryDirectory(prefix="xnorc-") as folder:
            path = Path(folder) / f"lib{package.name}.so"
            path.write_bytes(content)
            try:
                self._library = ctypes.CDLL(str(path))
            except OSError as error:
                raise DeviceError(f"device 'host' cannot load the library of '{package.name}': {error}") from error
        try:
            self._bind(package.name)
            self._check(self._library.xnorc_set_threads(threads))
        except BaseException:
            self.close()
            raise

    def _bind(self, name: str) -> None:
        library = self._library
        assert library is not None
        try:
            model, serve = library[f"{name}_model"], library.xnorc_serve
            library.xnorc_set_threads.argtypes = [ctypes.c_uint32]
            library.xnorc_status_text.restype = ctypes.c_char_p
            library.xnorc_scratch_bytes.argtypes = [ctypes.c_void_p]
            library.xnorc_scratch_bytes.restype = ctypes.c_uint64
            sizes = (library.xnorc_request_bytes, library.xnorc_response_bytes)
        except AttributeError as error:
            raise DeviceError(f"the library of '{name}' is not an xnorc library: {error}") from error
        model.restype = ctypes.c_void_p
        serve.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p,
        ]  # fmt: skip
        self._model = model()
        self._serve = serve
        for function, index in zip(sizes, (0, 1), strict=True):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_uint64
            for mode in Mode:
                if function(self._model, mode) != self.record_bytes(mode)[index]:
                    raise DeviceError(f"the library of '{name}' does not fit the package's manifest")
        self._scratch = _aligned(library.xnorc_scratch_bytes(self._model))

    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """See ``Session.exchange``."""
        if self._library is None:
            raise DeviceError("device 'host': the session is closed")
        asked, answered = self.record_bytes(mode)
        source = np.frombuffer(request, np.uint8)
        if len(source) != asked * count:
            raise DeviceError(f"device 'host': {len(source)} request bytes in place of {asked * count}")
        response = np.empty(max(1, answered * count), np.uint8)
        first = source.ctypes.data if len(source) else response.ctypes.data
        for index in range(count):
            status = self._serve(
                self._model,
                int(mode),
                first + index * asked,
                response.ctypes.data + index * answered,
                1,
                self._scratch.ctypes.data,
            )
            self._check(status, f"input {index + 1} of {count}: ")
            if progress is not None:
                progress(index + 1)
        return response[: answered * count].tobytes()

    def close(self) -> None:
        """Stop the library's threads and unload it."""
        library, self._library = self._library, None
        if library is None:
            return
        # Workers run the library's code: it may only go once they have ended.
        if hasattr(library, "xnorc_set_threads"):
            library.xnorc_set_threads(1)
        _ctypes.dlclose(library._handle)

    def _check(self, status: int, where: str = "") -> None:
        if status != _STATUS_OK and self._library is not None:
            raise DeviceError(f"device 'host': {where}{self._library.xnorc_status_text(status).decode()}")


def _aligned(size: int) -> np.ndarray:
    """A zeroed byte array that starts at a multiple of ``_ALIGN``."""
    whole = np.zeros(size + _ALIGN, np.uint8)
    start = -whole.ctypes.data % _ALIGN
    return whole[start : start + size]
