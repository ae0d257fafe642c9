"""What is assumed of the boards that are modelled. Everything here is printed with the results that rest on it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ...targets import Target


@dataclass(frozen=True)
class Core:
    """One core and the memory behind it.

    ``mcpu`` is LLVM's name of its scheduling model, None where LLVM has none. The model of Cortex-A72 and A76 is in LLVM
    that of Cortex-A57. ``binary_limit``: binary MAC a cycle when each 128 take three vector instructions (eor, cnt, and one
    to add) and nothing else; ``float_limit``: float32 MAC a cycle (Arm's software optimization guides of the cores).
    ``memory_gbs``: bytes a nanosecond that one core reads from memory in a stream; an assumption of the order that public
    memory benchmarks of these boards report.
    """

    board: str
    mcpu: str | None
    ghz: float
    cache_bytes: int
    memory_gbs: float
    binary_limit: float
    float_limit: float


_MIB = 1 << 20

CORES = {
    "rpi-zero2w": Core("Raspberry Pi Zero 2 W", "cortex-a53", 1.0, _MIB // 2, 2.0, 128 / 3, 4.0),
    "rpi3": Core("Raspberry Pi 3", "cortex-a53", 1.2, _MIB // 2, 2.0, 128 / 3, 4.0),
    "rpi4": Core("Raspberry Pi 4", "cortex-a72", 1.5, _MIB, 4.0, 256 / 3, 4.0),
    "rpi5": Core("Raspberry Pi 5", "cortex-a76", 2.4, 2 * _MIB, 8.0, 256 / 3, 8.0),
    "rpi2": Core("Raspberry Pi 2", None, 0.9, _MIB // 2, 1.5, 128 / 3, 2.0),
}
"""Target name → its core. The generic target ``aarch64`` has none."""


def core_of(target: Target) -> Core:
    """The core of a target. Raises ``InputError`` for a target that is no board."""
    if target.name not in CORES:
        raise InputError(
            f"target '{target.name}' is no board whose core is known: cycles are modelled for {', '.join(CORES)}"
        )
    return CORES[target.name]
