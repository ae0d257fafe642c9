"""Runs kernels on a PC that Bochs emulates, without an operating system: for processors with what this machine has not.

Bochs (github.com/bochs-emu/Bochs) knows AVX-512, which QEMU does not; ``bochs.sh`` builds it and mends three faults of it. The
kernels and their arguments are a program of their own on its disk (``image.c``); an option ROM (``rom.S``) loads and calls it.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.lower.kernel_calls import RUNTIME, Job, answers, build_kernels, calls, request

HERE = Path(__file__).parent
BUILT = HERE.parents[2] / "build" / "bochs"
"""Where ``bochs.sh`` puts it."""
_ROM_BYTES, _SECTORS_AT = 1024, 0x3F0
_SECTOR, _TRACK = 512, 16 * 63
_MACHINE = """megs: 1024
cpu: model=corei7_icelake_u, count=1, ips=50000000, reset_on_triple_fault=0
romimage: file={share}/BIOS-bochs-latest
vgaromimage: file={share}/VGABIOS-lgpl-latest.bin
optromimage1: file=rom.img, address=0xd0000
ata0-master: type=disk, path=disk.img, mode=flat, cylinders={cylinders}, heads=16, spt=63
boot: disk
port_e9_hack: enabled=1
display_library: nogui
log: bochs.log
panic: action=fatal
"""


def _zig(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments], cwd=folder, check=True, capture_output=True, timeout=300
    )


def _flat(folder: Path, name: str, script: Path, *objects: str) -> bytes:
    """The bytes of a linked program."""
    _zig(folder, "ld.lld", "-T", str(script), "-o", f"{name}.elf", *objects)
    _zig(folder, "objcopy", "-O", "binary", f"{name}.elf", f"{name}.bin")
    return (folder / f"{name}.bin").read_bytes()


def _object(folder: Path, source: str, *flags: str) -> str:
    """The name of what a file in C or assembly compiles to."""
    made = f"{Path(source).stem}.o"
    _zig(folder, "cc", "-target", "x86_64-freestanding-none", "-c", *flags, source, "-o", made)
    return made


def _rom(folder: Path, sectors: int) -> bytes:
    """The option ROM: of fixed size, its bytes sum up to 0."""
    (folder / "rom.ld").write_text("SECTIONS { . = 0; .text : { *(.text*) } }\n")
    code = bytearray(_flat(folder, "rom", folder / "rom.ld", _object(folder, str(HERE / "rom.S"))))
    assert len(code) <= _SECTORS_AT
    code += bytes(_ROM_BYTES - len(code))
    struct.pack_into("<I", code, _SECTORS_AT, sectors)
    code[-1] = -sum(code) & 0xFF
    return bytes(code)


def run(jobs: Sequence[Job], folder: Path) -> list[np.ndarray]:
    """Each kernel's outputs. Skips where ``bochs.sh`` was not run."""
    if not (BUILT / "bochs").exists():
        pytest.skip("no Bochs in build/bochs: tests/lower/bare_x86/bochs.sh builds it")
    build_kernels(jobs, folder)
    (folder / "request.bin").write_bytes(request(jobs))
    (folder / "request.S").write_text(
        '.section .request,"aw"\n.globl request, request_end\nrequest: .incbin "request.bin"\nrequest_end:\n'
    )
    (folder / "main.c").write_text((HERE / "image.c").read_text() + RUNTIME + calls(jobs))
    main = _object(folder, "main.c", "-O1", "-w", "-ffreestanding", "-fno-builtin", "-mno-red-zone")
    image = _flat(folder, "image", HERE / "image.ld", main, _object(folder, "request.S"), "kernels.o")
    cylinders = -(-len(image) // (_SECTOR * _TRACK))
    (folder / "disk.img").write_bytes(image + bytes(cylinders * _SECTOR * _TRACK - len(image)))
    (folder / "rom.img").write_bytes(_rom(folder, -(-len(image) // _SECTOR)))
    (folder / "bochsrc").write_text(_MACHINE.format(cylinders=cylinders, share=BUILT))
    done = subprocess.run(
        [str(BUILT / "bochs"), "-q", "-f", "bochsrc"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=900,
    )
    assert b"<wrong>" not in done.stdout, "this Bochs has faults that bochs.sh should have mended"
    given, ended, _ = done.stdout.partition(b"<outputs>")[2].partition(b"</outputs>")
    assert ended, f"bochs ended early: {(folder / 'bochs.log').read_text()[-500:]}"
    assert not given.endswith(b"<failed>"), "the program failed"
    return answers(jobs, given)
