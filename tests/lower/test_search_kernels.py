"""The kernels of the retrieval operators: their other paths, the worst orders, and the instructions of their inner loops.

``test_kernels`` runs the operator's cases on every target; here are shapes that thread, a corpus that is an input, machines
without a table look-up, and what LLVM makes of the loops.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lower.kernel_calls import Job, check, make_job, run_emulated, run_here
from tests.opset.cases import Case
from tests.opset.cases_search import hamming_case, lookup_case, rerank_case
from xnorc import targets
from xnorc.errors import UnsupportedError
from xnorc.lower.kernels import micro, search
from xnorc.opset import pack_bits


def ordered(rng: np.random.Generator, documents: int, bits: int, k: int, falling: bool) -> Case:
    """Documents in the order of their distance: falling, every one of them beats all before it."""
    ones = np.sort(rng.integers(0, bits + 1, documents))
    ones = ones[::-1] if falling else ones
    corpus = pack_bits(np.arange(bits) < ones[:, None])
    return "HammingTopK", {"k": k}, [pack_bits(np.zeros((1, bits))), corpus]


def rising(documents: int, k: int) -> Case:
    """Every document beats all before it."""
    codes = np.full((documents, 1), 0x11, np.uint8)
    tables = np.ones((1, 2, 16), np.uint8)
    return "LookupTopK", {"k": k, "bias": 0, "peak": 1}, [tables, codes, np.arange(documents, dtype=np.int32)]


def extreme(sign: int) -> Case:
    """The largest scores that fit, of one sign."""
    tables = np.full((1, 3, 16), 255, np.uint8)
    scale = np.array([1, 0, 0, -1, 1]) * ((2**31 - 1) // 765) * sign
    return "LookupTopK", {"k": 5, "bias": 0, "peak": 255}, [tables, np.zeros((5, 2), np.uint8), scale.astype(np.int32)]


def more_cases() -> list[Case]:
    rng = np.random.default_rng(6)
    return [
        hamming_case(rng, queries=6, documents=2500, bits=384, k=33),  # threads
        hamming_case(rng, queries=1, documents=3000, bits=200, k=3000, alike=True),  # all of them, sorted
        hamming_case(rng, queries=2, documents=40, bits=70000, k=4),  # distances past 16 bits
        hamming_case(rng, queries=7, documents=19, bits=5, k=19),
        ordered(rng, 500, 64, 40, falling=True),
        ordered(rng, 500, 64, 40, falling=False),
        lookup_case(rng, queries=5, documents=3000, groups=24, k=33),
        lookup_case(rng, queries=2, documents=129, groups=300, peak=255),  # sums past 16 bits
        lookup_case(rng, queries=2, documents=65, groups=7, peak=36),
        rising(700, 50),
        extreme(1),
        extreme(-1),
        rerank_case(rng, queries=1, candidates=1000, documents=1200, channels=384, k=100),
    ]


def jobs(target: str) -> list[Job]:
    """All of them, and those that can with a corpus that is an input."""
    made = [make_job(f"s{i}", case, target) for i, case in enumerate(more_cases())]
    rng = np.random.default_rng(8)
    for bits in (384, 130, 64, 24, 200):
        case = hamming_case(rng, queries=3, documents=101, bits=bits, k=20)
        made.append(make_job(f"s{len(made)}", case, target, constants=()))
    return [*made, make_job(f"s{len(made)}", rerank_case(rng), target, constants=())]


def test_other_paths() -> None:
    for job in jobs("host"):
        check(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_emulated(target: str, tmp_path) -> None:
    every = jobs(target)
    for job, got in zip(every, run_emulated(every, tmp_path), strict=True):
        check(job, got)


@pytest.mark.parametrize("features", [frozenset(), frozenset({"ssse3"})], ids=["portable", "ssse3"])
def test_lesser_machines(features: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    host = targets.get("host")
    if host.arch != "x86_64" or not features <= host.features:
        pytest.skip("this machine lacks what the other has")
    lesser = dataclasses.replace(host, features=features, vector_bytes=16)
    monkeypatch.setattr(targets, "get", lambda name: lesser)
    assert micro.select(lesser) is micro.PORTABLE
    rng = np.random.default_rng(1)
    for case in (hamming_case(rng), lookup_case(rng, groups=33), lookup_case(rng, queries=1, documents=3, k=3)):
        job = make_job("kernel", case)
        check(job, run_here(job))


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_random(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 1000))
    queries, documents = draw(1, 5), draw(1, 200)
    size = {"queries": queries, "documents": documents, "k": draw(1, documents)}
    if draw(0, 1):
        case = hamming_case(rng, bits=draw(1, 300), alike=bool(draw(0, 1)), **size)
    else:
        case = lookup_case(rng, groups=draw(1, 60), peak=draw(1, 255), scaled=bool(draw(0, 1)), **size)
    job = make_job("kernel", case)
    check(job, run_here(job))


def test_scores_must_fit() -> None:
    op, attrs, (tables, codes, scale) = extreme(1)
    with pytest.raises(UnsupportedError, match="more than int32 holds"):
        make_job("kernel", (op, attrs, [tables, codes, scale * 2]))


def test_codes_must_be_constant() -> None:
    with pytest.raises(UnsupportedError, match="the codes must be a constant"):
        make_job("kernel", lookup_case(np.random.default_rng(0)), constants=())


def test_layout_of_codes() -> None:
    codes = np.array([[0x21, 0x03], [0x54, 0x06], [0x87, 0x09]], np.uint8)
    laid = search.lay_out_codes(codes, 3, 2)
    # Documents 0 and 2, then 1 and none, for each of the three numbers.
    np.testing.assert_array_equal(laid, [[[0x71, 0x04], [0x82, 0x05], [0x93, 0x06]]])


@pytest.mark.parametrize(
    ("target", "instruction", "count"),
    [("rpi4", r"\btbl\b", 8), ("rpi2", r"\bvtbl\.8\b", 8), ("host", r"\bvpshufb\b", 4)],
)
def test_the_scan_looks_up_whole_registers(target: str, instruction: str, count: int) -> None:
    """Four queries (two on x86-64) times two halves look-ups a step; table entries are never read one by one."""
    import tvm

    from xnorc.lower import tir

    if target == "host" and "avx2" not in targets.get("host").features:
        pytest.skip("this machine has no AVX2")
    case = lookup_case(np.random.default_rng(0), queries=4, documents=512, groups=192, k=10)
    job = make_job("kernel", case, target)
    text = tir.assembly(tvm.IRModule({"kernel": job.kernel.func}), job.call.target)
    found = len(re.findall(instruction, text))
    assert found >= count and found % count == 0, f"{found} look-ups"
