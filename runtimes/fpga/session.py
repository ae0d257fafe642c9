"""A package on an accelerator behind the link, wherever that is: a board, or a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import DeviceError
from ..device import Mode, Session
from .link.client import Client, Identity

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


class AcceleratorSession(Session):
    """One package whose whole model is one accelerator: the request's bytes are the image, the response's the result.

    ``identity``: what the board says of itself. Raises ``DeviceError`` when it is not programmed with the package's
    design (``fpga.design`` of the manifest, hexadecimal), or that design's sizes are not those of the package.
    """

    def __init__(self, device: str, package: Package, client: Client) -> None:
        self._client = client
        try:
            super().__init__(device, package, 1)
            self.identity = client.connect()
            self._check(design_of(package))
        except BaseException:
            client.close()
            raise

    def _check(self, design: dict[str, Any]) -> None:
        found: Identity = self.identity
        if found.design.hex() != design["design"]:
            raise DeviceError(
                f"device '{self.device}' holds another design ({found.design.hex()[:12]}…) than package "
                f"'{self.package.name}' ({design['design'][:12]}…): load the package's bitstream"
            )
        if self.record_bytes(Mode.RUN) != (found.image_bytes, found.result_bytes):
            raise DeviceError(
                f"device '{self.device}' takes {found.image_bytes} bytes and gives {found.result_bytes}, the model of "
                f"package '{self.package.name}' has {self.record_bytes(Mode.RUN)[0]} and {self.record_bytes(Mode.RUN)[1]}"
            )

    def exchange(
        self, mode: Mode, request: bytes | memoryview, count: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """See ``Session.exchange``. An accelerator is one step: only ``RUN`` can be asked of it."""
        if mode is not Mode.RUN:
            raise DeviceError(
                f"device '{self.device}' runs the whole model at once: it cannot {mode.name.lower()} steps"
            )
        return self._client.run(self.identity, request, count, progress)

    def close(self) -> None:
        """Give the port back."""
        self._client.close()
