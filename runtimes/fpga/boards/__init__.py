"""The boards: what each is, its pins, its clock, the tools that build for it. ``get(name)`` gives a ``Board``.

One file a board, with a ``BOARD``. ``top(board, accelerator)`` is the design that goes on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ....errors import TargetError

if TYPE_CHECKING:
    from ..link.framed import Accelerator
    from .toplevel import Top

_FILES = {"ulx3s-85f": "ulx3s", "icebreaker": "icebreaker", "tangnano9k": "tangnano9k"}
NAMES: tuple[str, ...] = tuple(_FILES)
"""Every board that the open tools build for."""
_VENDORS = {"pynq-z2": "pynq"}
"""Boards whose bitstream needs the vendor's tools: what there is for them is a project for these."""


SLACK = 0.1
"""A clock may be that much slower than the one that was asked for: a PLL has a grid of them. It is never faster."""


@dataclass(frozen=True)
class Pll:
    """How a board's PLL makes a clock: an instance of ``cell`` with ``parameters`` and more constant ports.

    ``inputs`` are ports tied to constants, value and width; ``clock_in``, ``clock_out``, ``locked`` and ``feedback``
    name the rest. ``link_out`` gives a slower clock of ``link_hz`` beside it, where there is one.
    """

    cell: str
    hz: float
    """What comes out, in Hz."""
    parameters: Mapping[str, int | str]
    inputs: Mapping[str, tuple[int, int]]
    clock_in: str
    clock_out: str
    locked: str
    feedback: str | None = None
    link_out: str | None = None
    link_hz: float | None = None


@dataclass(frozen=True)
class Board:
    """One board. ``pins`` maps the top level's ports to sites; a port that is not there does not exist on the board.

    Ports: ``clk`` (the oscillator), ``rx`` and ``tx`` (of the UART, as the FPGA sees it), ``reset`` (a button), ``led``
    (images are in the accelerator), and those of ``high`` (driven to 1 for ever).
    """

    name: str
    description: str
    family: str
    """``ecp5``, ``ice40`` or ``gowin``: which tools; ``xc7``: the vendor's."""
    device: tuple[str, ...]
    """Options that tell nextpnr the chip, its package and speed."""
    oscillator_hz: float
    clock_hz: float
    """The design's clock, unless the caller wants another."""
    baud: int
    pins: Mapping[str, str]
    capacity: Mapping[str, int]
    """What the chip has: ``LUT4``, ``FF``, ``BRAM`` (blocks), ``BRAM bits``, ``DSP``."""
    bram: tuple[int, ...]
    """Shapes of one block: data widths that it can have, and its bits last."""
    reset_low: bool = False
    led_low: bool = False
    high: tuple[str, ...] = field(default=())

    def pll(self, hz: float) -> Pll | None:
        """The PLL for the fastest clock up to ``hz`` that it can make; nothing where the oscillator's own will do.

        Raises ``TargetError`` when the PLL cannot make it.
        """
        if abs(hz - self.oscillator_hz) < 1:
            return None
        return import_module(f".{_FILES[self.name]}", __name__).pll(self.oscillator_hz, hz)

    def constraints(self) -> tuple[str, str]:
        """Suffix and text of the file that tells nextpnr the pins."""
        return import_module(f".{_FILES[self.name]}", __name__).constraints(self)


def get(name: str) -> Board:
    """The board called ``name``. Raises ``TargetError`` with near names when there is none."""
    files = {**_FILES, **_VENDORS}
    if name in files:
        return import_module(f".{files[name]}", __name__).BOARD
    near = difflib.get_close_matches(name, files, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the boards are {', '.join(files)}"
    raise TargetError(f"unknown board '{name}': {hint}")


def top(board: str | Board, accelerator: Accelerator, **options: Any) -> Top:
    """The top level for ``board``: clock, reset, UART, link and ``accelerator``; see ``Top``."""
    from .toplevel import Top

    return Top(get(board) if isinstance(board, str) else board, accelerator, **options)


def fits(out: float, hz: float) -> bool:
    """Whether a PLL's output is no faster than what was asked for."""
    return out <= hz * (1 + 1e-6)


def unreachable(board: str, oscillator: float, hz: float, low: float, high: float) -> TargetError:
    """The error of a PLL that cannot make ``hz``."""
    return TargetError(
        f"board '{board}': its PLL cannot make {hz / 1e6:g} MHz of {oscillator / 1e6:g} MHz, it makes {low / 1e6:g} to "
        f"{high / 1e6:g} MHz"
    )
