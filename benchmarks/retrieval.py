"""Binary search: xnorc (target ``host``) against faiss, side by side on one thread, on the same codes.

    python benchmarks/retrieval.py [--documents 100000] [--rounds 7] [--json FILE]      # needs faiss-cpu: the extra [bench]

Both sides search all queries in turns, so that what else the machine does hits both; the best round of each counts.
Distances must be equal: faiss's binary index is also a check. Documents are random: only their number matters for time.

* Hamming: ``IndexBinaryFlat`` and ``HammingTopK`` on the same bits, queries packed already.
* 4-bit tables: ``IndexPQFastScan`` (as many 4-bit numbers a document) and ``LookupTopK``. faiss makes its tables of float
  queries and adds a correction; so does xnorc (``asymmetric``), and the symmetric form besides.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xnorc import retrieval

CHANNELS, QUERIES, K = 384, 512, 10


def best_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the best of ``rounds`` turns of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def searcher(index: retrieval.Index, queries: np.ndarray) -> Callable[[], np.ndarray]:
    """Searches by a session that stays open, as a server would."""
    from xnorc.runtimes.device import parse_device

    session = parse_device("host").open(index.package, 1)
    shaped = queries.reshape(-1, index.facts.batch, queries.shape[1])
    return lambda: session.run({"query": shaped})["hits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[6693, 100000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    try:
        import faiss
    except ImportError:
        raise SystemExit("faiss is missing: pip install 'xnorc[bench]'") from None
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    for count in options.documents:
        corpus = rng.standard_normal((count, CHANNELS)).astype(np.float32)
        corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
        queries = corpus[rng.permutation(count)[:QUERIES]] + 0.02 * rng.standard_normal((QUERIES, CHANNELS))
        queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        bits, query_bits = (np.packbits(x >= 0, axis=1, bitorder="little") for x in (corpus, queries))
        binary = faiss.IndexBinaryFlat(CHANNELS)
        binary.add(bits)
        calls: dict[str, Callable[[], object]] = {
            "faiss IndexBinaryFlat": lambda i=binary, q=query_bits: i.search(q, K)
        }
        for batch in (1, 64):
            index = retrieval.build(bits, k=K, packed_queries=True, batch=batch)
            calls[f"xnorc hamming, batch {batch}"] = searcher(index, query_bits)
        distances, _ = binary.search(query_bits, K)
        ours = calls["xnorc hamming, batch 64"]()
        np.testing.assert_array_equal(ours.reshape(QUERIES, K, 2)[..., 0], distances)
        calls["faiss IndexBinaryFlat, one by one"] = lambda i=binary, q=query_bits: [
            i.search(row[None], K) for row in q
        ]
        fast = faiss.IndexPQFastScan(CHANNELS, CHANNELS // 2, 4, faiss.METRIC_INNER_PRODUCT)
        fast.train(corpus[:5000])
        fast.add(corpus)
        calls["faiss IndexPQFastScan 192x4"] = lambda i=fast, q=queries: i.search(q, K)
        for asymmetric in (False, True):
            index = retrieval.build(corpus, k=K, code="bebr", asymmetric=asymmetric, batch=64)
            calls[f"xnorc bebr 192x4, {'float query' if asymmetric else 'coded query'}"] = searcher(index, queries)
        for name, seconds in best_times(calls, options.rounds).items():
            rows.append({"documents": count, "name": name, "queries_per_second": QUERIES / seconds})
            per = seconds / QUERIES / count * 1e9
            print(
                f"{count:8} documents  {name:36} {QUERIES / seconds:10,.0f} queries/s  {per:7.3f} ns a document",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
