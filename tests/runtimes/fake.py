"""The hand-written model of ``fake_model.c`` as a package, built with zig for any target."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xnorc import targets
from xnorc.lower import link

RUNTIME = Path(__file__).resolve().parents[2] / "runtimes" / "c"
MODEL = Path(__file__).with_name("fake_model.c")
SOURCES = ("xnorc.c", "threads.c", "tvm_backend.c")
SIZE = 1000
FAIL, TOO_MUCH, SLEEP, KILL, HANG, TEAM, BAD_BARRIER, WORKER_TOO_MUCH = range(10001, 10009)
"""First elements of x that ask the model for trouble."""
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")


def cc(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", *link.FLAGS, f"-I{RUNTIME}", *map(str, arguments)]
    # Not in a folder above zig's own: zig would build the C libraries anew, for relative paths.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@functools.cache
def runner(target: str, *flags: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runner"
        sources = [RUNTIME / name for name in (*SOURCES, "runner.c")]
        triple = targets.get(target).static_triple
        cc("-target", triple, "-static", "-s", "-DXNORC_RUNNER", *flags, MODEL, *sources, "-o", path)
        return path.read_bytes()


@functools.cache
def library(target: str = "host") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "libfake.so"
        sources = [RUNTIME / name for name in SOURCES]
        cc("-target", targets.get(target).shared_triple, "-shared", "-fPIC", MODEL, *sources, "-o", path)
        return path.read_bytes()


def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def step(name: str, op: str, reads: list[int], writes: list[int], kind: str) -> dict[str, Any]:
    return {"name": name, "op": op, "reads": reads, "writes": writes, "kind": kind, "nodes": [name], "macs": 1000}


MANIFEST: dict[str, Any] = {
    "tensors": [
        tensor("x", "float32", 1, SIZE),
        tensor("t", "float32", 1, SIZE),
        tensor("y", "float32", 1, SIZE),
        tensor("z", "int32", 1, SIZE),
    ],
    "inputs": [0],
    "outputs": [2, 3],
    "steps": [
        step("double", "Mul", [0], [1], "float"),
        step("plus_one", "Add", [1], [2], "float"),
        step("to_int", "Cast", [2], [3], "integer"),
    ],
    "memory": {"arena_bytes": 36288, "workspace_bytes": 8064, "max_threads": 4},
}


@dataclass
class FakePackage:
    """What the devices need of ``xnorc.package.Package``."""

    target_name: str = "host"
    name: str = "fake"
    manifest: dict[str, Any] = field(default_factory=lambda: MANIFEST)

    @property
    def target(self) -> targets.Target:
        return targets.get(self.target_name)

    def member(self, path: str) -> bytes:
        return runner(self.target_name) if path == "lib/runner" else library(self.target_name)


def inputs(samples: int, first: float | None = None) -> np.ndarray:
    x = np.random.default_rng(0).integers(-500, 500, (samples, 1, SIZE)).astype(np.float32)
    if first is not None:
        x[:, 0, 0] = first
    return x
