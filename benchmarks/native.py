"""Small C programs of this folder: compiled for this machine and run here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def numbers(name: str, *flags: str, cpu: str = "native") -> dict[str, float] | None:
    """What ``NAME.c``, compiled with ``flags`` for ``cpu``, prints: a name and a number a line. None where it cannot be built
    (for another kind of processor).

    Raises ``CalledProcessError`` if it runs and fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / name
        source = Path(__file__).resolve().parent / f"{name}.c"
        made = subprocess.run([sys.executable, "-m", "ziglang", "cc", "-O3", f"-mcpu={cpu}", *flags, source, "-o", program],
                              capture_output=True, check=False)  # fmt: skip
        if made.returncode:
            return None
        lines = subprocess.run([program], stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    return {name: float(number) for name, number in (line.split() for line in lines)}
