"""Cases of binary attention: three ways to choose keys, with and without masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xnorc.opset import pack_bits
from xnorc.opset.attention import exponentials, share_limits

from .cases import Case


def attention_case(
    rng: np.random.Generator, mode: int, lead: Sequence[int], m: int, n: int, size: int, d: int, *, margin: int = 1,
    rows: bool = False, masked: float = 0.0,
) -> Case:  # fmt: skip
    """``rows``: a bias for each query too. ``masked``: share of keys that are taken out."""
    q, k, v = (pack_bits(rng.integers(0, 2, (*lead, a, b))) for a, b in ((m, size), (n, size), (d, n)))
    shape = (*lead[:1], *[1] * (len(lead) - 1), m if rows else 1, n) if lead else (m if rows else 1, n)
    bias = rng.integers(-3, 4, shape).astype(np.int32)
    bias[rng.random(shape) < masked] = -(1 << 25)
    scale = 1 / np.sqrt(size)
    reach = 2 * size + 8
    tables = (
        [exponentials(scale, reach), share_limits(scale, reach, 1.5 / n)] if mode == 2 else [np.zeros(1, np.int64)] * 2
    )
    tables = [np.array(table) for table in tables]
    if mode == 2:
        tables[0][-1] = tables[1][-1] = 0
    return "BinaryAttention", {"size": size, "mode": mode, "margin": margin}, [q, k, v, bias, *tables]


def cases(seed: int) -> Iterator[Case]:
    """Every mode: odd sizes, one key, masks per key and per query, rows with no key left, threads."""
    rng = np.random.default_rng(seed)
    for mode in (0, 1, 2):
        yield attention_case(rng, mode, (1, 2), 16, 16, 64, 64)
        yield attention_case(rng, mode, (), 5, 3, 7, 2, margin=3)
        yield attention_case(rng, mode, (2,), 1, 1, 9, 1)
        yield attention_case(rng, mode, (2, 3), 9, 21, 100, 13, rows=True, masked=0.3, margin=11)
        yield attention_case(rng, mode, (1, 2), 7, 130, 24, 40, masked=0.5, margin=4)
        yield attention_case(rng, mode, (2, 2), 6, 10, 16, 8, masked=1.0)
        yield attention_case(rng, mode, (1, 4), 64, 136, 72, 24, margin=5)
