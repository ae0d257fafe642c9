"""Cases of sums of table entries. The entries are integers, so that every order of the sum gives the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .cases import Case


def lookup_case(rng: np.random.Generator, queries: int, documents: int, groups: int, entries: int) -> Case:
    tables = rng.integers(-999, 999, (queries, groups, entries)).astype(np.float32)
    return "LookupSum", {}, [tables, rng.integers(0, entries, (documents, groups)).astype(np.uint8)]


def cases(seed: int) -> Iterator[Case]:
    """One and several queries, tables of every size, documents that fill no block, threads."""
    rng = np.random.default_rng(seed)
    yield lookup_case(rng, 1, 100, 8, 256)
    yield lookup_case(rng, 3, 13, 5, 16)
    yield lookup_case(rng, 2, 1, 1, 1)
    yield lookup_case(rng, 1, 3001, 24, 200)
