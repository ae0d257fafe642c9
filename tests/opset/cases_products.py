"""Cases of the products of bits that are both computed at run time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xnorc.opset import pack_bits

from .cases import Case


def pair_case(
    rng: np.random.Generator, op: str, lead: Sequence[int], m: int, n: int, k: int, holes: int = 0, density: float = 0.5
) -> Case:
    """``holes``: bits in the middle that are zero in both operands. ``density``: share of ones in a."""
    a, b = rng.random((*lead, m, k + holes)) < density, rng.random((*lead, n, k + holes)) < 0.5
    for x in (a, b):
        x[..., k // 2 : k // 2 + holes] = False
    return op, {"k": k}, [pack_bits(a), pack_bits(b)]


def cases(seed: int) -> Iterator[Case]:
    """Both products: odd sizes, tails, several images, more steps than narrow lanes hold, threads."""
    rng = np.random.default_rng(seed)
    for op in ("BinaryMatMul", "AndMatMul"):
        yield pair_case(rng, op, (1, 2), 16, 16, 64)
        yield pair_case(rng, op, (), 5, 3, 7)
        yield pair_case(rng, op, (3,), 1, 1, 1)
        yield pair_case(rng, op, (2, 3), 9, 21, 100, holes=9)
        yield pair_case(rng, op, (2,), 7, 19, 128, density=0.1)
        yield pair_case(rng, op, (1,), 3, 11, 4600, density=0.9)
        yield pair_case(rng, op, (), 70, 40, 24)
        yield pair_case(rng, op, (1, 1), 130, 136, 136)
        yield pair_case(rng, op, (2,), 2, 9, 70000)
    yield "AndMatMul", {"k": 16}, [np.zeros((3, 2), np.uint8), np.full((9, 2), 255, np.uint8)]
