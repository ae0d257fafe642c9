"""Indexes: what they find is what NumPy finds, here and on the emulated Pi; what does not fit is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from xnorc import package, retrieval
from xnorc.cli import app
from xnorc.errors import InputError, ModelError, PackageError, XnorcError
from xnorc.retrieval import codes

RNG = np.random.default_rng(3)
CORPUS = RNG.standard_normal((150, 40)).astype(np.float32)
CORPUS[10:30] = CORPUS[0]  # ties
CORPUS[5, :7] = 0  # and zeros
QUERIES = RNG.standard_normal((5, 40)).astype(np.float32)
QUERIES[2, 3:9] = 0
K = 9
TRAINED = retrieval.Binarizer(
    *(RNG.standard_normal(shape).astype(np.float32) / 6 for shape in ((24, 40), (40, 24), (24, 40)))
)


def best(score: np.ndarray, k: int = K) -> np.ndarray:
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


def signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, 1, -1)


def expected_hamming() -> np.ndarray:
    return best(signs(QUERIES > 0) @ signs(CORPUS >= 0).T)


def expected_rerank(count: int) -> np.ndarray:
    """BPR: candidates by Hamming distance, ordered by float query · ±1 document."""
    documents = signs(CORPUS >= 0)
    near = best(signs(QUERIES > 0) @ documents.T, count)
    score = np.full((len(QUERIES), len(CORPUS)), -np.inf)
    exact = QUERIES.astype(np.float64) @ documents.T
    np.put_along_axis(score, near, np.take_along_axis(exact, near, 1), 1)
    return best(score)


def expected_bebr(binarizer: retrieval.Binarizer | None = None) -> np.ndarray:
    binarizer = binarizer or codes.Binarizer()
    documents = binarizer.two_bits(codes.as_unit(CORPUS, "document")) - 1.5
    coded = binarizer.two_bits(codes.as_unit(QUERIES, "query")) - 1.5
    return best(np.round(coded @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T, 9))


class Built(dict[str, retrieval.Index]):
    """Indexes, each built when it is first asked for."""

    def __missing__(self, kind: str) -> retrieval.Index:
        choices = {"hamming": {}, "rerank": {"rerank": 40, "batch": 2}, "bebr": {"code": "bebr"}}
        self[kind] = retrieval.build(CORPUS, k=K, **choices[kind])
        return self[kind]


@pytest.fixture(scope="module")
def built() -> Built:
    return Built()


def test_hamming(built) -> None:
    distances, documents = built["hamming"].search(QUERIES)
    np.testing.assert_array_equal(documents, expected_hamming())
    found = (signs(QUERIES > 0)[:, None] != signs(CORPUS >= 0)[documents]).sum(axis=2)
    np.testing.assert_array_equal(distances, found)
    assert built["hamming"].facts.code_bytes == 5


def test_rerank_and_a_batch_that_is_not_full(built) -> None:
    np.testing.assert_array_equal(built["rerank"].search(QUERIES)[1], expected_rerank(40))


def test_bebr_is_the_inner_product_of_codes_whatever_the_query_s_length(built) -> None:
    values, documents = built["bebr"].search(QUERIES * np.float32(3))
    np.testing.assert_array_equal(documents, expected_bebr())
    assert (np.diff(values) <= 0).all()
    np.testing.assert_array_equal(built["bebr"].search(QUERIES[0])[1], documents[:1])


@pytest.mark.parametrize("kind", ["hamming", "rerank", "bebr"])
def test_validates(built, kind: str) -> None:
    result = built[kind].package.validate("host")
    assert result.ok and all(layer.differing == 0 for layer in result.layers if layer.kind == "integer")


def test_the_emulated_pi_finds_the_same(built) -> None:
    for code, choices in (("hamming", {"rerank": 40}), ("bebr", {})):
        found = retrieval.build(CORPUS, k=K, code=code, target="rpi4", **choices).search(QUERIES, "qemu")
        here = built["rerank" if choices else code].search(QUERIES)
        np.testing.assert_array_equal(found, here)


def test_asymmetric_tables_follow_the_float_query() -> None:
    documents = codes.Binarizer().two_bits(codes.as_unit(CORPUS, "document")) - 1.5
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    index = retrieval.build(CORPUS, k=K, code="bebr", asymmetric=True)
    _, found = index.search(QUERIES)
    score = codes.as_unit(QUERIES, "query") @ unit.T
    worst = np.take_along_axis(score, best(score), 1)[:, -1:]
    # An entry is off by at most half of 1/127 of the largest, in each of 20 tables.
    reach = 1.5 * np.abs(codes.as_unit(QUERIES, "query").reshape(len(QUERIES), -1, 2)).sum(axis=2).max(axis=1)
    slack = 2 * 20 * 0.5 / 127 * reach[:, None] / np.linalg.norm(documents, axis=1).min()
    assert (np.take_along_axis(score, found, 1) >= worst - slack).all()
    assert index.package.validate("host").ok


def test_trained_binarizer(tmp_path: Path) -> None:
    np.savez(tmp_path / "trained.npz", w=TRAINED.w, b=TRAINED.b, r=TRAINED.r)
    binarizer = retrieval.Binarizer.read(tmp_path / "trained.npz")
    index = retrieval.build(CORPUS, k=K, code="bebr", binarizer=binarizer)
    assert index.facts.size == 24 and index.facts.code_bytes == 6 + 4
    np.testing.assert_array_equal(index.search(QUERIES)[1], expected_bebr(TRAINED))


def test_packed_queries_and_documents(built) -> None:
    corpus, queries = (np.packbits(x, axis=1, bitorder="little") for x in (CORPUS >= 0, QUERIES > 0))
    index = retrieval.build(corpus, k=K, packed_queries=True)
    np.testing.assert_array_equal(index.search(queries), built["hamming"].search(QUERIES))


def test_saved_and_loaded(built, tmp_path: Path) -> None:
    built["bebr"].save(tmp_path / "corpus.xnorc")
    loaded = retrieval.load(tmp_path / "corpus.xnorc")
    assert loaded.facts == built["bebr"].facts
    np.testing.assert_array_equal(loaded.search(QUERIES), built["bebr"].search(QUERIES))


def test_the_package_says_what_it_is(built, tmp_path: Path) -> None:
    plain = built["rerank"].package
    assert {node["status"] for node in plain.report()["nodes"]} == {"packed", "float"}
    manifest = {key: value for key, value in plain.manifest.items() if key != "index"}
    members = {name: plain.member(name) for name in plain.members}
    path = tmp_path / "p.xnorc"
    package.write(path, members, manifest)
    with pytest.raises(PackageError, match="is no index"):
        retrieval.load(path)
    for wrong in ({"k": -1}, {"k": 3}, {"packed_queries": 0}, {"code": 7}):
        package.write(path, members, {**plain.manifest, "index": {**plain.manifest["index"], **wrong}})
        with pytest.raises(PackageError, match="index"):
            retrieval.load(path)
    package.write(path, members, {**manifest, "index": []})
    with pytest.raises(PackageError, match="damaged"):
        retrieval.load(path)


NOT_FINITE = np.where(np.arange(40) == 3, np.float32(np.nan), CORPUS[:4])


@pytest.mark.parametrize(
    ("embeddings", "choices", "message"),
    [
        (CORPUS.astype(np.float64), {}, "float64"),
        (CORPUS[0], {}, "must be float32"),
        (CORPUS[:0], {}, "must be float32"),
        (NOT_FINITE, {"k": 1}, "document 0 has values that are not finite"),
        (CORPUS, {"k": 151}, "k is 151"),
        (CORPUS, {"code": "pq"}, "the codes are hamming and bebr"),
        (CORPUS, {"rerank": 5}, "rerank is 5"),
        (CORPUS, {"rerank": 151}, "rerank is 151"),
        (CORPUS, {"batch": 0}, "batch is 0"),
        (CORPUS, {"asymmetric": True}, "no use for asymmetric"),
        (CORPUS, {"code": "bebr", "rerank": 20}, "no use for rerank"),
        (CORPUS, {"packed_queries": True, "rerank": 20}, "cannot be ranked again"),
        (CORPUS, {"packed_queries": True, "binarizer": retrieval.Binarizer(TRAINED.w)}, "leave one of the two out"),
        (np.zeros((20, 5), np.uint8), {"code": "bebr"}, "for code hamming"),
        (np.zeros((20, 4), np.float32), {"code": "bebr"}, "document 0 is all zero"),
        (CORPUS[:, :39], {"code": "bebr"}, "must be even"),
        (CORPUS, {"binarizer": TRAINED}, "no use for"),
        (CORPUS, {"code": "bebr", "binarizer": retrieval.Binarizer(TRAINED.w)}, "all of w, b and r"),
        (CORPUS[:, :30], {"binarizer": retrieval.Binarizer(TRAINED.w)}, r"float32 \[24, 30\]"),
        (CORPUS, {"binarizer": retrieval.Binarizer(np.full((8, 40), np.inf, np.float32))}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(embeddings: np.ndarray, choices: dict[str, Any], message: str, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        retrieval.build(embeddings, output=tmp_path / "out.xnorc", **choices)
    assert not list(tmp_path.iterdir())


def test_more_than_an_index_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval.index, "MAX_BITS", 5999)
    with pytest.raises(InputError, match="an index holds at most 5999 bits"):
        retrieval.build(CORPUS)


def test_bad_names() -> None:
    with pytest.raises(ModelError, match="C identifier"):
        retrieval.build(CORPUS, name="a b")
    with pytest.raises(XnorcError, match="unknown target"):
        retrieval.build(CORPUS, target="rpi9")


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (QUERIES[:, :9], "the index wants float32"),
        (QUERIES.astype(np.float64), "float64"),
        (QUERIES[:0], "wants"),
        (np.full((1, 40), np.nan, np.float32), "query 0 has values that are not finite"),
        (np.zeros((1, 40), np.float32), "query 0 is all zero"),
    ],
)
def test_queries_that_do_not_fit(built, queries: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        built["bebr"].search(queries)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_command_line(built, tmp_path: Path) -> None:
    np.save(tmp_path / "corpus.npy", CORPUS)
    np.save(tmp_path / "queries.npy", QUERIES)
    code, text = run(
        "index", "build", tmp_path / "corpus.npy", "-k", K, "--code", "bebr", "--json", tmp_path / "f.json"
    )
    assert code == 0 and "14 bytes a document" in text, text
    code, text = run("index", "search", tmp_path / "corpus.xnorc", "--input", tmp_path / "queries.npy",
                     "-o", tmp_path / "hits.npz")  # fmt: skip
    assert code == 0 and "5 queries, 9 hits each" in text, text
    with np.load(tmp_path / "hits.npz") as hits:
        np.testing.assert_array_equal(hits["documents"], expected_bebr())
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in (
        (("build", tmp_path / "none.npy"), "cannot read"),
        (("build", tmp_path / "corpus.npy", "-o", tmp_path / "no" / "x.xnorc"), "there is no folder"),
        (("build", tmp_path / "corpus.npy", "-k", 999, "-o", tmp_path / "x.xnorc"), "k is 999"),
        (("build", tmp_path / "corpus.npy", "--binarizer", tmp_path / "queries.npy"), "is no binarizer"),
        (("search", tmp_path / "corpus.xnorc", "--input", tmp_path / "f.json", "-o", tmp_path / "y.npz"), "neither"),
    ):
        code, text = run("index", *arguments)
        assert code == 2 and message in text and text.count("\n") == 1, text
    assert sorted(path.name for path in tmp_path.iterdir()) == before
