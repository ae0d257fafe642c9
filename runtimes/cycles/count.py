"""How often each block of instructions of a package's runner runs, step by step: exact, by a QEMU plugin (``count.c``)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DeviceError, InputError, ToolError
from ..device import machine
from ..qemu import QemuSession, qemu_version

if TYPE_CHECKING:
    from ...package import Package

_CLOCK = {"aarch64": "113", "arm": "263:403", "x86_64": "228"}
"""Numbers of the system call clock_gettime (arm: and clock_gettime64) in Linux."""
_INSTALL = "install Debian's qemu-user (the static QEMU cannot load plugins)"


@dataclass(frozen=True)
class Block:
    """A piece of straight-line code: its bytes, as they lie in memory, and how many instructions they are."""

    address: int
    instructions: int
    code: bytes


@dataclass(frozen=True)
class Counts:
    """``steps[i]``: block index → how often it ran in step i."""

    blocks: list[Block]
    steps: list[dict[int, int]]
    samples: list[list[list[int]]]
    """For each step, stretches of its execution: the blocks in the order in which they ran."""


SAMPLES, FEWEST, MOST = 240, 4, 60
"""Stretches of the execution that are written down: about so many in all, and the fewest and most of a step."""
SAMPLE_INSTRUCTIONS = 3000
"""Length of a stretch."""


def count_instructions(package: Package, feeds: Mapping[str, np.ndarray]) -> Counts:
    """Run one sample of ``feeds`` on one thread under QEMU and count; run again, and take samples of each step.

    A run is deterministic, so the second has the counts of the first: they say where its samples are to be taken.

    Raises ``ToolError`` when there is no QEMU that loads plugins, or no compiler for the plugin.
    """
    arch = package.target.arch
    if arch not in _CLOCK:
        raise DeviceError(f"package '{package.name}' is built for {arch}, which QEMU cannot run here")
    qemu = shutil.which(f"qemu-{arch}")
    if qemu is None:
        raise ToolError(f"counting instructions needs qemu-{arch} on PATH: {_INSTALL}")
    with tempfile.TemporaryDirectory(prefix="xnorc-") as name:
        folder = Path(name)
        plugin, out = build_plugin(folder, qemu), folder / "counts"
        option = f"{plugin},out={out},clock={_CLOCK[arch]}"

        def run(option: str) -> Counts:
            with QemuSession("qemu", package, 1, program=qemu, arguments=["-plugin", option]) as session:
                try:
                    session.bench(feeds, repeats=1, warmup=0)
                except DeviceError as error:
                    raise ToolError(f"'{qemu}' does not run with a plugin ({error}): {_INSTALL}") from error
            if not out.exists():
                raise ToolError(f"'{qemu}' did not load the plugin: {_INSTALL}")
            return read_counts(out.read_text(), package.member("lib/runner"), len(package.manifest["steps"]))

        first = run(option)
        wanted = folder / "samples"
        wanted.write_text(sample_plan(first))
        return run(f"{option},samples={wanted}")


def sample_plan(counts: Counts) -> str:
    """Where to take samples, as ``count.c`` reads it: one at random in each of equal parts of every step."""
    rng = np.random.default_rng(0)
    sizes = [sum(n * counts.blocks[i].instructions for i, n in blocks.items()) for blocks in counts.steps]
    lines = []
    for step, (blocks, size) in enumerate(zip(counts.steps, sizes, strict=True)):
        starts = sum(blocks.values())
        samples = min(MOST, max(FEWEST, round(SAMPLES * size / sum(sizes))))
        if size <= 2 * samples * SAMPLE_INSTRUCTIONS:  # all of it
            lines += [f"{2 * step + 1} 0 {size}"] if size else []
            continue
        span = starts * (1 - SAMPLE_INSTRUCTIONS / size)
        places = [int((part + rng.random()) * span / samples) for part in range(samples)]
        lines += [f"{2 * step + 1} {at} {SAMPLE_INSTRUCTIONS}" for at in places]
    return "\n".join([str(len(lines)), *lines]) + "\n"


def build_plugin(folder: Path, qemu: str) -> Path:
    """Compile ``count.c`` for this machine. The interface's number is that of the QEMU that will load it."""
    version = qemu_version(qemu).split()[-1].split(".")[0]
    number = "1" if not version.isdigit() or int(version) < 9 else "2"
    source, plugin = Path(__file__).parent / "count.c", folder / "count.so"
    triple = {"x86_64": "x86_64-linux-gnu.2.28", "aarch64": "aarch64-linux-gnu.2.28"}.get(machine())
    if triple is None:
        raise ToolError(f"the counting plugin cannot be built on {machine()}")
    command = [
        sys.executable, "-m", "ziglang", "cc", "-target", triple, "-O2", "-shared", "-fPIC", "-fno-sanitize=all",
        f"-DPLUGIN_VERSION={number}", "-Wl,--allow-shlib-undefined", "-o", str(plugin), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise ToolError(f"zig cannot build the counting plugin: {lines[0].strip()}")
    return plugin


def read_counts(text: str, elf: bytes, steps: int) -> Counts:
    """Read what ``count.c`` wrote. ``elf``: the runner, a static program that is loaded where it says."""
    place = Image(elf)
    blocks: list[Block] = []
    phases: list[dict[int, int]] = []
    samples: list[list[list[int]]] = [[]]
    ended = False
    current: dict[int, int] = {}
    for line in text.splitlines():
        word, *rest = line.split()
        numbers = [int(item) for item in rest]
        if word == "block":
            index, address, count, size = numbers
            if index != len(blocks):
                raise ToolError("the counting plugin wrote blocks out of order")
            blocks.append(Block(address, count, place.read(address, size)))
        elif word == "phase":
            current = {}
            phases.append(current)
            samples.append([])
        elif word == "sample":
            samples[-1].append(numbers[1:])
        elif word == "count":
            current[numbers[0]] = numbers[1]
        elif word == "end":
            ended = numbers[0] == len(phases)
    # One phase before the first step, one in each step, one after each.
    if not ended or len(phases) != 2 * steps + 1:
        raise ToolError(f"the counting plugin saw {len(phases)} phases, a run of {steps} steps has {2 * steps + 1}")
    return Counts(blocks, phases[1::2], samples[1 : 2 * steps : 2])


class Image:
    """The loaded bytes of a static ELF program."""

    def __init__(self, elf: bytes) -> None:
        if elf[:4] != b"\x7fELF" or elf[5] != 1:
            raise InputError("the runner is no little-endian ELF file")
        wide = elf[4] == 2
        word = 8 if wide else 4

        def number(at: int, size: int) -> int:
            return int.from_bytes(elf[at : at + size], "little")

        table, entry, count = (
            number(32 if wide else 28, word),
            number(54 if wide else 42, 2),
            number(56 if wide else 44, 2),
        )
        self._segments: list[tuple[int, bytes]] = []
        for at in range(table, table + entry * count, entry):
            if number(at, 4) == 1:
                offset, address, size = (
                    (number(at + 8, 8), number(at + 16, 8), number(at + 32, 8))
                    if wide
                    else (number(at + 4, 4), number(at + 8, 4), number(at + 16, 4))
                )
                self._segments.append((address, elf[offset : offset + size]))

    def read(self, address: int, size: int) -> bytes:
        """The bytes at ``address``; empty where the program has none (code of the kernel, say)."""
        for start, data in self._segments:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        return b""
