"""Cases of ``GatedSum``: gates of either direction, values at their thresholds, odd numbers of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def gated_case(rng: np.random.Generator, *shape: int, weight: int = 2, flips: bool = True) -> Case:
    a, b = rng.integers(-20, 21, shape).astype(np.int32), rng.integers(-20, 21, shape).astype(np.int32)
    threshold = rng.integers(-12, 13, shape[-1]).astype(np.int32)
    flip = rng.integers(0, 2, shape[-1]).astype(np.uint8) * np.uint8(flips)
    return "GatedSum", {"weight": weight, "limit": 20}, [a, b, threshold, flip]


def cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield gated_case(rng, 1, 7, 7, 16)
    yield gated_case(rng, 2, 5, 3, 21, flips=False)
    yield gated_case(rng, 6, 9, weight=0)
    yield gated_case(rng, 3, weight=-1)
    yield gated_case(rng, 1, 40, 40, 24)
