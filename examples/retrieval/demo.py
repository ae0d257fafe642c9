"""Binary retrieval on real text: what each code costs and finds, and that a Raspberry Pi finds the same.

    python examples/retrieval/demo.py                  # recall and bytes of every code, on this machine
    python examples/retrieval/demo.py --target rpi4    # the same on an emulated Pi, a few queries of each

Recall@10 is the share of the ten nearest documents, by inner product of the float32 embeddings, that a code finds among its
ten best.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from corpus import Corpus, cache, embeddings, read

from xnorc import retrieval

K = 10


@dataclass(frozen=True)
class Choice:
    """A way to index: arguments of ``retrieval.build``, and the code that is trained for it (elements, bits), if any."""

    title: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trained: tuple[int, int] | None = None


CHOICES = (
    Choice("sign, Hamming distance"),
    Choice("sign, 100 nearest reranked (BPR)", {"rerank": 100}),
    Choice("BEBR 192 x 2 bits, trained", {"code": "bebr"}, (192, 2)),
    Choice("BEBR 384 x 2 bits, not trained", {"code": "bebr"}),
    Choice("BEBR 384 x 2 bits, trained", {"code": "bebr"}, (384, 2)),
    Choice("BEBR 384 x 2 bits, trained, float query", {"code": "bebr", "asymmetric": True}, (384, 2)),
)


def exact(documents: np.ndarray, queries: np.ndarray, k: int = K) -> np.ndarray:
    """The k documents with the largest inner products, ``[Q, k]``, by float32 search."""
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of ``truth`` ``[Q, k]`` in ``found`` ``[Q, k]``."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def binarizer(choice: Choice, documents: np.ndarray, key: str) -> retrieval.Binarizer | None:
    """The trained matrices, from the cache if they are there."""
    if choice.trained is None:
        return None
    size, bits = choice.trained
    path = cache() / f"bebr-{key}-{size}x{bits}.npz"
    if not path.exists():
        from train_bebr import train

        made = train(documents, size, bits)
        arrays = {name: getattr(made, name) for name in ("w", "b", "r") if getattr(made, name) is not None}
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, **arrays)
        temporary.replace(path)
    return retrieval.Binarizer.read(path)


def measure(
    choice: Choice, text: Corpus, data: tuple[np.ndarray, np.ndarray], target: str, count: int
) -> dict[str, Any]:
    """Build one index, search it for ``count`` queries, and compare with exact search."""
    documents, queries = data[0], data[1][:count]
    start = time.perf_counter()
    index = retrieval.build(
        documents, target=target, k=K, binarizer=binarizer(choice, documents, text.key()), **choice.arguments
    )
    seconds = time.perf_counter() - start
    _, found = index.search(queries, "host" if target == "host" else "qemu")
    truth = exact(documents, queries)
    return {
        "code": choice.title,
        "bytes": index.facts.code_bytes,
        "recall": recall(found, truth),
        "answered": float((found == text.answers[:count, None]).any(axis=1).mean()),
        "answered_float": float((truth == text.answers[:count, None]).any(axis=1).mean()),
        "device_bytes": index.package.device_bytes(),
        "seconds": seconds,
        "found": found.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="host", help="host, or a Pi, which is emulated (default: host)")
    parser.add_argument("--queries", type=int, help="how many (default: all on the host, 20 emulated)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = read()
    data = embeddings(text)
    count = options.queries or (len(text.queries) if options.target == "host" else 20)
    print(f"{len(text.documents)} documents, {count} of {len(text.queries)} queries, {data[0].shape[1]} numbers each")
    print(f"{'':42} {'bytes':>6} {'smaller':>8} {'recall@10':>10} {'answer in 10':>13}")
    rows = []
    for choice in CHOICES:
        row = measure(choice, text, data, options.target, count)
        rows.append(row)
        size = 4 * data[0].shape[1]
        print(
            f"{row['code']:42} {row['bytes']:6} {size / row['bytes']:7.0f}x {row['recall']:10.3f} {row['answered']:13.3f}",
            flush=True,
        )
    print(f"{'float32, exact':42} {4 * data[0].shape[1]:6} {1:7}x {1:10.3f} {rows[0]['answered_float']:13.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
