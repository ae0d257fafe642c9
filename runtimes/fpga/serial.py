"""The device ``serial:///dev/ttyUSB0``: a board that is programmed with the package's bitstream.

``serial:///dev/ttyUSB0?baud=1000000`` sets another speed than that of the design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from ...errors import InputError
from ..device import Device
from .hybrid import HybridSession
from .link.client import Client
from .link.port import SerialPort
from .session import LinkEngine, design_of

if TYPE_CHECKING:
    from ...package import Package

FORM = "serial:///dev/ttyUSB0[?baud=N]"
_MAX_BAUD = 20_000_000


class SerialDevice(Device):
    """A board at a serial port. ``baud``: 0 for that of the package's design."""

    def __init__(self, path: str, baud: int = 0) -> None:
        self.path, self.baud = path, baud
        self.name = f"serial://{path}"

    def open(self, package: Package, threads: int = 1) -> HybridSession:
        """See ``Device.open``."""
        design = design_of(package)
        if threads != 1:
            raise InputError(f"device '{self.name}': {threads} threads make no sense on an FPGA, it has no threads")
        engine = LinkEngine(self.name, package, self.client(design["baud"]))
        return HybridSession(self.name, package, engine)

    def client(self, baud: int) -> Client:
        """The link to whatever is at the port, at ``baud`` unless the user gave another speed."""
        return Client(SerialPort(self.path, self.baud or baud, self.name))


def parse(text: str) -> SerialDevice:
    """The device that ``serial:///dev/ttyUSB0?baud=N`` or ``serial://COM3`` names. Raises ``InputError``."""
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
        baud = int(query.pop("baud", ["0"])[0])
    except ValueError as error:
        raise InputError(f"device '{text}' is not of the form {FORM}: {error}") from error
    path = parts.netloc + parts.path
    if not path or not path.isprintable() or query or parts.fragment or not 0 <= baud <= _MAX_BAUD:
        raise InputError(f"device '{text}' is not of the form {FORM}")
    return SerialDevice(path, baud)
