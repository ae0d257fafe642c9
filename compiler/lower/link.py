"""Compiles C and links with zig's clang, which carries the C libraries of every target."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ToolError
from ..targets import Target

RUNTIME_SOURCES = ("xnorc.c", "threads.c", "tvm_backend.c")
FLAGS = (
    "-Os",
    "-std=c11",
    "-fno-sanitize=all",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-ident",
    "-g0",
)
"""How every C file is compiled. zig builds a C library of its own for each choice of these, so that tests use them too."""


def runtime_folder() -> Path:
    """Where the C runtime's sources are, in a checkout and in an installed wheel alike."""
    import xnorc.runtimes.c as package

    return Path(str(package.__file__)).parent


def zig(arguments: Sequence[str], folder: Path) -> None:
    """Run zig. Raises ``ToolError`` with the first line of what it complains of."""
    if importlib.util.find_spec("ziglang") is None:
        raise ToolError("the zig compiler is missing: pip install 'ziglang==0.17.*'")
    command = [sys.executable, "-m", "ziglang", *arguments]
    # What is built of this one model goes away with the folder; the C libraries stay in the user's cache.
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "zig-cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines() or ["?"]
        )
        raise ToolError(f"zig {arguments[0]} failed: {lines[0].strip()}")


def _cc(triple: str, *arguments: str) -> list[str]:
    return ["cc", "-target", triple, *FLAGS, "-w", *arguments]


def link(folder: Path, name: str, target: Target, only: str = "") -> dict[str, bytes]:
    """Build the library and the runner from the generated files and the C runtime; ``only`` one of ``shared`` and ``runner``.

    ``folder`` holds ``model.c``, ``this.c``, ``<name>.h``, ``kernels.o`` and the weights. Returns the members of
    ``lib/``: ``<name>.h``, ``xnorc.h``, ``lib<name>.a``, ``lib<name>.so`` and ``runner``.
    """
    runtime = runtime_folder()
    sources = ["model.c", *(str(runtime / file) for file in RUNTIME_SOURCES)]
    include = ["-I.", f"-I{runtime}"]
    libraries = ["-lm", "-lpthread"]
    small = ["-Wl,--gc-sections", "-s"]
    archive, shared = f"lib{name}.a", f"lib{name}.so"
    whole = ["-shared", "-fPIC", "-Wl,--hash-style=gnu", *small, *include, *sources, "kernels.o"]
    if only == "shared":
        zig(_cc(target.shared_triple, *whole, "-o", shared, *libraries), folder)
        return {shared: (folder / shared).read_bytes()}
    if only == "runner":
        program = ["-static", *small, *include, "this.c", str(runtime / "runner.c"), *sources, "kernels.o"]
        zig(_cc(target.static_triple, *program, "-o", "runner", *libraries), folder)
        return {"runner": (folder / "runner").read_bytes()}
    objects = ["kernels.o"]
    for source in sources:
        objects.append(f"{Path(source).stem}.o")
        zig(_cc(target.static_triple, "-fPIC", *include, "-c", source, "-o", objects[-1]), folder)
    zig(["ar", "rcsD", archive, *objects], folder)
    runner = ["this.c", str(runtime / "runner.c"), *objects]
    zig(_cc(target.static_triple, "-static", *small, *include, *runner, "-o", "runner", *libraries), folder)
    zig(_cc(target.shared_triple, *whole, "-o", shared, *libraries), folder)
    members = {file: (folder / file).read_bytes() for file in (f"{name}.h", archive, shared, "runner")}
    members["xnorc.h"] = (runtime / "xnorc.h").read_bytes()
    return members
