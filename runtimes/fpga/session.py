"""An accelerator behind the link as the engine of a package's session, wherever it is: a board, or a simulation of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceError
from .link.client import Client

if TYPE_CHECKING:
    from ...package import Package


def design_of(package: Package) -> dict[str, Any]:
    """The manifest's entry ``fpga``. Raises ``DeviceError`` when the package holds no design."""
    design = package.manifest.get("fpga")
    if not isinstance(design, dict):
        raise DeviceError(
            f"package '{package.name}' is built for {package.manifest['target']} and holds no FPGA design: "
            "compile with --target and the name of a board"
        )
    return design


class LinkEngine:
    """``Engine`` over a ``Client``; see ``hybrid``.

    Raises ``DeviceError`` when nothing answers, or what answers is not programmed with the package's design
    (``fpga.design`` of the manifest, hexadecimal); the port is given back then.
    """

    def __init__(self, device: str, package: Package, client: Client) -> None:
        self._client = client
        try:
            self.identity = client.connect()
            self._check(device, package)
        except BaseException:
            client.close()
            raise

    def _check(self, device: str, package: Package) -> None:
        found, design = self.identity, design_of(package)
        if found.design.hex() != design["design"]:
            raise DeviceError(
                f"device '{device}' holds another design ({found.design.hex()[:12]}…) than package "
                f"'{package.name}' ({design['design'][:12]}…): load the package's bitstream"
            )
        if (found.frame_in_bits, found.frame_out_bits) != (design["frame_in_bits"], design["frame_out_bits"]):
            raise DeviceError(
                f"device '{device}' takes {found.frame_in_bits} bits and gives {found.frame_out_bits}, the design of "
                f"package '{package.name}' has {design['frame_in_bits']} and {design['frame_out_bits']}"
            )

    def run(self, frames: np.ndarray) -> np.ndarray:
        """See ``Engine``. Raises ``DeviceGone`` when the board stops answering."""
        images = np.packbits(frames, axis=1, bitorder="little")
        raw = self._client.run(self.identity, images.tobytes(), len(frames))
        results = np.frombuffer(raw, np.uint8).reshape(len(frames), self.identity.result_bytes)
        return np.unpackbits(results, axis=1, count=self.identity.frame_out_bits, bitorder="little")

    def nanoseconds(self, frames: np.ndarray) -> float:
        """See ``Engine``: the board's own count, of one frame of the link; the link feeds a byte a cycle at most."""
        count = min(len(frames), max(1, self.identity.max_payload // self.identity.image_bytes))
        self.run(frames[:count])
        return self._client.status().cycles / count / self.identity.clock_hz * 1e9

    def notes(self) -> list[str]:
        """See ``Engine``."""
        return []

    def close(self) -> None:
        """Give the port back."""
        self._client.close()
