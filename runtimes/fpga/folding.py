"""How parallel each stage is: rows and columns a cycle, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from .units.matvec import Store


@dataclass(frozen=True)
class Fold:
    """``pe`` rows × ``simd`` columns a cycle, weights in ``store``."""

    pe: int
    simd: int
    store: Store
