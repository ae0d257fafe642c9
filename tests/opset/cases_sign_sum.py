"""Cases of sums of floats with run-time signs. The floats are integers, so that every order of the sum gives the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xnorc.opset import pack_bits

from .cases import Case


def sign_sum_case(rng: np.random.Generator, lead: Sequence[int], m: int, n: int, k: int, unsigned: int = 0) -> Case:
    a = pack_bits(rng.integers(0, 2, (*lead, m, k)))
    return "SignMatMul", {"unsigned": unsigned}, [a, rng.integers(-99, 99, (*lead, k, n)).astype(np.float32)]


def cases(seed: int) -> Iterator[Case]:
    """Both kinds, odd sizes, one column, several images, threads."""
    rng = np.random.default_rng(seed)
    yield sign_sum_case(rng, (1, 2), 16, 49, 32)
    yield sign_sum_case(rng, (), 3, 1, 7)
    yield sign_sum_case(rng, (2,), 1, 19, 100, unsigned=1)
    yield sign_sum_case(rng, (2, 3), 9, 40, 13, unsigned=1)
    yield sign_sum_case(rng, (1, 1), 196, 32, 196)
