"""Error bounds of the operators of ``ai.xnorc``. Integer operators are exact; a sign near its threshold is open.

An operator without a rule here gets the bound zero: equality is required.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..opset import REGISTRY, pack_bits
from .bound_rules import Error


@dataclass(frozen=True)
class Use:
    """One use of an operator on one sample. ``errors`` and ``masks``: of the inputs, in order."""

    op: str
    attrs: Mapping[str, Any]
    inputs: Sequence[np.ndarray]
    output: np.ndarray
    errors: Sequence[Error]
    masks: Sequence[np.ndarray | None]
    """Which bits of a packed input rounding leaves open, packed like it; None: none."""


@dataclass(frozen=True)
class Bound:
    """``error`` of a float output; ``mask``: the bits of a packed output that rounding leaves open, packed like it."""

    error: Error | None = None
    mask: np.ndarray | None = None


def _pack(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    x, perm = use.inputs[0], use.attrs["perm"]
    margin = np.abs(x.astype(np.float64).transpose(perm) - use.inputs[1])
    moved = np.broadcast_to(use.errors[0], x.shape).transpose(perm)
    return Bound(mask=pack_bits(margin <= 2 * moved))


def _binarize(use: Use) -> Bound:
    if not np.any(use.errors[0]):
        return Bound()
    return Bound(error=np.where(np.abs(use.inputs[0]) <= 2 * np.asarray(use.errors[0]), 1.0, 0.0))


def _max_pool(use: Use) -> Bound:
    if use.masks[0] is None:
        return Bound()
    flip = np.zeros_like(use.inputs[1])
    return Bound(mask=REGISTRY[use.op].reference([use.masks[0], flip], use.attrs))


RULES: dict[str, Callable[[Use], Bound]] = {"Pack": _pack, "Binarize": _binarize, "BinaryMaxPool": _max_pool}
"""Operator → its rule."""
