"""Cases of the retrieval operators: many ties, odd sizes, all documents wanted, the same document twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xnorc.opset import pack_bits

from .cases import Case


def hamming_case(rng: np.random.Generator, *, queries=3, documents=50, bits=96, k=10, alike=False) -> Case:
    """``alike``: codes of few ones, so that most distances are equal."""
    draw = (lambda *shape: rng.random(shape) < 0.03) if alike else (lambda *shape: rng.integers(0, 2, shape))
    return "HammingTopK", {"k": k}, [pack_bits(draw(queries, bits)), pack_bits(draw(documents, bits))]


def lookup_case(rng: np.random.Generator, *, queries=3, documents=70, groups=12, k=9, peak=36, scaled=True) -> Case:
    tables = rng.integers(0, peak + 1, (queries, groups, 16)).astype(np.uint8)
    codes = rng.integers(0, 256, (documents, (groups + 1) // 2)).astype(np.uint8)
    if groups % 2:
        codes[:, -1] &= 15
    most = (2**31 - 1) // (peak * groups)
    scale = rng.integers(-most, most + 1, documents) if scaled else np.ones(documents)
    return "LookupTopK", {"k": k, "bias": peak * groups // 2, "peak": peak}, [tables, codes, scale.astype(np.int32)]


def rerank_case(rng: np.random.Generator, *, queries=2, candidates=20, documents=40, channels=43, k=5, top=900) -> Case:
    query = rng.integers(-top, top + 1, (queries, channels)).astype(np.int32)
    chosen = np.stack([rng.permutation(documents)[:candidates] for _ in range(queries)])
    pairs = np.stack([rng.integers(0, 99, chosen.shape), chosen], axis=-1).astype(np.int32)
    return "RerankTopK", {"k": k}, [query, pairs, pack_bits(rng.integers(0, 2, (documents, channels)))]


def cases(seed: int = 0) -> Iterator[Case]:
    rng = np.random.default_rng(seed + 77)
    yield hamming_case(rng)
    yield hamming_case(rng, queries=1, documents=7, bits=8, k=7)
    yield hamming_case(rng, queries=5, documents=333, bits=384, k=100)
    yield hamming_case(rng, queries=2, documents=200, bits=130, k=20, alike=True)
    yield hamming_case(rng, queries=1, documents=1, bits=3, k=1)
    yield lookup_case(rng)
    yield lookup_case(rng, queries=1, documents=300, groups=33, k=40, peak=255)
    yield lookup_case(rng, queries=2, documents=64, groups=16, k=64, peak=1, scaled=False)
    yield lookup_case(rng, queries=5, documents=131, groups=192, k=10)
    yield lookup_case(rng, queries=1, documents=1, groups=1, k=1, peak=100)
    yield rerank_case(rng)
    yield rerank_case(rng, queries=1, candidates=40, channels=384, k=40, top=32767)
    yield rerank_case(rng, queries=3, candidates=8, channels=8, k=3, top=1)
