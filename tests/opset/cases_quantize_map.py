"""Cases of ``QuantizeMap``: both layouts, odd sizes, ties, values out of range, and denormals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def quantize_map_case(
    rng: np.random.Generator, *, shape=(1, 3, 7, 9), perm=(0, 2, 3, 1), factor=20.0, low=-127, high=127
) -> Case:
    x = (rng.standard_normal(shape) * rng.choice([0.1, 1, 10], shape)).astype(np.float32)
    ties = (rng.integers(-260, 260, shape) / 2 / np.float32(factor)).astype(np.float32)
    special = rng.choice(np.float32([0.0, -0.0, 1e-40, -1e-45, 3e38, -np.inf, np.inf]), shape)
    x = np.choose(rng.choice(3, shape, p=[0.5, 0.4, 0.1]), [x, ties, special]).astype(np.float32)
    return "QuantizeMap", {"perm": list(perm), "low": low, "high": high}, [x, np.float32([factor])]


def cases(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    yield quantize_map_case(rng)
    yield quantize_map_case(rng, shape=(2, 5, 40, 33), factor=0.3)
    yield quantize_map_case(rng, shape=(2, 6, 5, 24), perm=(0, 1, 2, 3), factor=127.0)
    yield quantize_map_case(rng, shape=(3, 1025), perm=(0, 1), low=0, high=127)
    yield quantize_map_case(rng, shape=(17,), perm=(0,), factor=1e-3)
    yield quantize_map_case(rng, shape=(1, 1, 1, 1), factor=2.0**120)
    yield quantize_map_case(rng, shape=(2, 3, 5), perm=(2, 0, 1), low=-128, high=5)
    yield quantize_map_case(rng, shape=(1, 19, 2, 3), factor=2.0**126)
