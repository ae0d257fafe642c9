"""The link between a host and an accelerator: frames over a byte stream, the same bytes on a UART and in a simulation.

``Framed(accelerator)`` is the hardware: byte streams in and out. ``Client`` is the host's side. ``protocol`` says what
the bytes mean. The hardware's names are imported only when asked for, so that the host's side does not need Amaranth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client import Client, Identity, Port, Status
from .protocol import Command, Fault, Frame, FrameReader

if TYPE_CHECKING:
    from .framed import Framed
    from .uart import Uart
    from .widths import BytesToWords, WordsToBytes

_HARDWARE = {"Framed": "framed", "Uart": "uart", "BytesToWords": "widths", "WordsToBytes": "widths"}

__all__ = [
    "BytesToWords",
    "Client",
    "Command",
    "Fault",
    "Frame",
    "FrameReader",
    "Framed",
    "Identity",
    "Port",
    "Status",
    "Uart",
    "WordsToBytes",
]


def __getattr__(name: str) -> Any:
    if name not in _HARDWARE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_HARDWARE[name]}", __name__), name)
