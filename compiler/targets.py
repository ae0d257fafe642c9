"""The targets: what each is, how TVM and zig build for it, and how it is emulated.

``get(name)`` gives a ``Target``; ``TARGETS`` lists them all.
"""

from __future__ import annotations

import difflib
import functools
import platform
from dataclasses import dataclass, field
from pathlib import Path

from .errors import TargetError


@dataclass(frozen=True)
class Target:
    """One machine that a package can be built for.

    ``llvm`` is the TVM target (triple, CPU, attributes) of the kernels. The C runtime around them is built for the plain
    architecture, so that zig builds each C library once for all boards: ``static_triple`` links the runner (musl,
    static), ``shared_triple`` the shared library against the system's glibc. ``vector_bytes`` is the width of a vector
    register.
    """

    name: str
    description: str
    arch: str
    """``x86_64``, ``aarch64`` or ``arm``: what QEMU calls it; ``fpga`` for a board without a CPU of ours."""
    llvm: dict[str, object] = field(hash=False)
    static_triple: str
    shared_triple: str
    qemu_cpu: str
    vector_bytes: int = 16
    features: frozenset[str] = frozenset()

    @property
    def is_arm(self) -> bool:
        """Whether the kernels may use NEON."""
        return self.arch in ("aarch64", "arm")

    @property
    def is_fpga(self) -> bool:
        """Whether this is an FPGA board: its package holds Verilog, and libraries for a CPU beside it."""
        return self.arch == "fpga"

    @property
    def is_host(self) -> bool:
        """Whether this machine runs the target's code itself, in process."""
        return self.name == "host"


@dataclass(frozen=True)
class FpgaOptions:
    """What can be chosen for a board. ``fps``: images a second to reach (None: as many as fit); ``share``: of the chip's
    LUTs to use at most; ``clock_hz``: 0 for the board's own; ``cpu``: the target of what stays on a CPU;
    ``mst``: count the rows of fully unrolled layers from one another.
    """

    fps: float | None = None
    share: float = 0.7
    clock_hz: float = 0.0
    cpu: str = "host"
    mst: bool = False


def _arm64(name: str, description: str, cpu: str, *features: str) -> Target:
    attributes = ["+neon", *(f"+{feature}" for feature in features)]
    return Target(
        name=name,
        description=description,
        arch="aarch64",
        llvm={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "mattr": attributes},
        static_triple="aarch64-linux-musl",
        shared_triple="aarch64-linux-gnu.2.28",
        qemu_cpu=cpu,
        features=frozenset(features),
    )


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0]) if lines else frozenset()


_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_vpopcntdq", "avx512_vnni")
"""What AVX-512 must have to be used (Ice Lake, Zen 4): it counts bits and multiplies bytes, in registers of all sizes."""


@functools.cache
def _host() -> Target:
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        target = _arm64("host", "this machine (64-bit Arm)", "generic")
        return target
    if machine not in ("x86_64", "amd64"):
        raise TargetError(f"target 'host': this machine is {machine}; xnorc runs on x86-64 and 64-bit Arm")
    flags = _cpu_flags()
    wanted = ("avx2", "bmi2", "fma", "popcnt", "ssse3", "sse4_1", "sse4_2")
    features = [flag for flag in wanted if flag in flags]
    if {"avx2", "fma", *_AVX512} <= flags:
        features += [flag.replace("_", "") for flag in (*_AVX512, "avx512_bitalg") if flag in flags]
    names = ["x86-64", *["AVX2"] * ("avx2" in features), *["AVX-512"] * ("avx512f" in features)]
    return Target(
        name="host",
        description=f"this machine ({', '.join(names)})",
        arch="x86_64",
        llvm={
            "kind": "llvm",
            "mtriple": "x86_64-linux-gnu",
            "mcpu": "x86-64-v3" if {"avx2", "bmi2", "fma"} <= set(features) else "x86-64",
            "mattr": [f"+{feature}" if "_" not in feature else "+" + feature.replace("_", ".") for feature in features],
        },
        static_triple="x86_64-linux-musl",
        shared_triple="x86_64-linux-gnu.2.28",
        qemu_cpu="max",
        vector_bytes=32 if "avx2" in features else 16,
        features=frozenset(features),
    )


_PI = {
    "rpi3": _arm64("rpi3", "Raspberry Pi 3, 64-bit OS (Cortex-A53)", "cortex-a53"),
    "rpi4": _arm64("rpi4", "Raspberry Pi 4, 64-bit OS (Cortex-A72)", "cortex-a72"),
    "rpi5": _arm64("rpi5", "Raspberry Pi 5, 64-bit OS (Cortex-A76, dot product)", "cortex-a76", "dotprod"),
    "rpi-zero2w": _arm64("rpi-zero2w", "Raspberry Pi Zero 2 W, 64-bit OS (Cortex-A53)", "cortex-a53"),
    "aarch64": _arm64("aarch64", "any 64-bit Arm Linux board", "generic"),
    "rpi2": Target(
        name="rpi2",
        description="Raspberry Pi 2, and any Pi with a 32-bit OS (ARMv7, NEON)",
        arch="arm",
        llvm={
            "kind": "llvm",
            "mtriple": "armv7l-linux-gnueabihf",
            "mcpu": "cortex-a7",
            "mattr": ["+neon"],
            "mfloat-abi": "hard",
        },
        static_triple="arm-linux-musleabihf",
        shared_triple="arm-linux-gnueabihf.2.28",
        qemu_cpu="cortex-a7",
    ),
}

NAMES: tuple[str, ...] = ("host", *_PI)
"""Every CPU target's name."""

_BOARDS = {
    "ulx3s-85f": ("ULX3S (Lattice ECP5 LFE5U-85F)", "ECP5 85F"),
    "icebreaker": ("iCEBreaker (Lattice iCE40UP5K)", "iCE40 UP5K"),
    "tangnano9k": ("Tang Nano 9K (Gowin GW1NR-9C)", "GW1NR-9C"),
    "pynq-z2": ("PYNQ-Z2 (Xilinx XC7Z020): a project for Vivado", "XC7Z020"),
}
BOARDS: tuple[str, ...] = tuple(_BOARDS)
"""Every FPGA board's name."""


def get(name: str) -> Target:
    """The target called ``name``. Raises ``TargetError`` with near names when there is none."""
    if name == "host":
        return _host()
    if name in _PI:
        return _PI[name]
    if name in _BOARDS:
        description, chip = _BOARDS[name]
        return Target(name, description, "fpga", {"mcpu": chip}, "", "", "")
    everything = (*NAMES, *BOARDS)
    near = difflib.get_close_matches(name, everything, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the targets are {', '.join(everything)}"
    raise TargetError(f"unknown target '{name}': {hint}")


def every() -> list[Target]:
    """All CPU targets, ``host`` first."""
    return [get(name) for name in NAMES]
