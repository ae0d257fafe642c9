"""The page that shows the Python API runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "quickstart.py"


@pytest.mark.parametrize("arguments", [[], ["--target", "rpi4", "--device", "qemu"]])
def test_quickstart(arguments):
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated: ok=True" in done.stdout and "bad input is one line: " in done.stdout
