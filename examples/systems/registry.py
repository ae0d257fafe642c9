"""Finds the systems of this folder: every file that defines ``SYSTEM`` or ``SYSTEMS`` is one."""

from __future__ import annotations

import ast
import importlib
import sys
from functools import cache, lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Files of this folder import each other by plain names, as scripts beside each other do.
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from system import System  # noqa: E402


class UnknownSystemError(LookupError):
    """No system of that name."""


@lru_cache(maxsize=1)
def files() -> dict[str, Path]:
    """Module name → file, of every file here that assigns ``SYSTEM`` or ``SYSTEMS`` at its top level."""
    return {path.stem: path for path in sorted(HERE.glob("*.py")) if _defines_systems(path)}


def _defines_systems(path: Path) -> bool:
    """Read, not run: one broken file must not hide the others."""
    for node in ast.parse(path.read_text(), str(path)).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id in ("SYSTEM", "SYSTEMS") for target in targets):
            return True
    return False


@cache
def systems_of(stem: str) -> tuple[System, ...]:
    """The systems of one file."""
    module = importlib.import_module(stem)
    found = tuple(getattr(module, "SYSTEMS", ())) or (module.SYSTEM,)
    if not all(isinstance(item, System) for item in found):
        raise TypeError(f"{files()[stem]}: SYSTEM and SYSTEMS must hold System objects")
    return found


def systems() -> dict[str, System]:
    """Every system by its name, file by file. Raises ``ValueError`` when two have one name."""
    found: dict[str, System] = {}
    for stem in files():
        for system in systems_of(stem):
            if system.name in found:
                raise ValueError(f"two systems are named '{system.name}'; one of them is in {files()[stem]}")
            found[system.name] = system
    return found


def choose(names: list[str]) -> list[System]:
    """The systems of these names; the name of a file stands for all systems in it; none: all systems."""
    every = systems()
    if not names:
        return list(every.values())
    chosen: list[System] = []
    for name in names:
        if name in every:
            chosen.append(every[name])
        elif name in files():
            chosen += systems_of(name)
        else:
            known = ", ".join([*every])
            raise UnknownSystemError(f"no system '{name}': choose from {known}")
    return list({system.name: system for system in chosen}.values())
