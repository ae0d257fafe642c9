"""The memory plan: tensors that are alive together never overlap, and the arena is close to the lower bound."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnorc import targets
from xnorc.lower.build import MAX_THREADS, lower
from xnorc.lower.plan import lives, lower_bound, on_top, plan
from xnorc.lower.program import ALIGNMENT, Argument, Call, Program, Step, Tensor
from xnorc.lower.tir import build
from xnorc.model import read_model
from xnorc.opset import TensorType
from xnorc.passes import optimize


def program_of(edges: list[tuple[list[int], int]], sizes: list[int]) -> Program:
    """Step i reads the tensors of ``edges[i][0]`` and writes tensor ``edges[i][1]``."""
    tensors = [Tensor(f"t{i}", TensorType((size,), np.dtype(np.uint8))) for i, size in enumerate(sizes)]
    steps = [
        Step(f"s{i}", "Op", [], [Call("k", [Argument("tensor", r) for r in reads], [write], tuple(range(len(reads))))])
        for i, (reads, write) in enumerate(edges)
    ]
    return Program("m", tensors, [], [], steps, [], None)


@st.composite
def programs(draw):
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count))
    edges = []
    for i in range(count):
        reads = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        edges.append((reads, i))
    return program_of(edges, sizes)


@settings(deadline=None, max_examples=200)
@given(programs())
def test_tensors_alive_together_do_not_overlap(program):
    plan(program)
    alive, top = lives(program), on_top(program)
    for a, b in itertools.combinations(alive, 2):
        if a.first <= b.last and b.first <= a.last and top.get(b.tensor) != a.tensor and top.get(a.tensor) != b.tensor:
            start_a, start_b = program.tensors[a.tensor].place, program.tensors[b.tensor].place
            assert start_a + a.bytes <= start_b or start_b + b.bytes <= start_a
    assert all(program.tensors[life.tensor].place % ALIGNMENT == 0 for life in alive)
    assert program.arena_bytes >= lower_bound(program)


@settings(deadline=None, max_examples=200)
@given(programs())
def test_what_lies_on_top_of_another_is_as_large_and_its_last_reader(program):
    plan(program)
    alive = {life.tensor: life for life in lives(program)}
    for new, old in on_top(program).items():
        assert alive[new].bytes == alive[old].bytes and alive[old].last == alive[new].first
        assert program.tensors[new].place == program.tensors[old].place


def test_a_residual_is_overwritten_by_its_last_sum_only():
    # 1 = f(0), 2 = g(1) + 1, 3 = h(2) + 1, 4 = k(3, 2)
    program = program_of([([], 0), ([0], 1), ([1], 2), ([2, 1], 3), ([3, 2], 4)], [64, 4096, 4096, 4096, 4096])
    assert on_top(program) == {3: 2, 4: 3} or on_top(program) == {3: 1, 4: 3}
    plan(program)
    assert program.arena_bytes == lower_bound(program) <= 3 * 4096


def test_a_chain_reaches_the_lower_bound():
    sizes = [4096, 1024, 8192, 64, 2048]
    program = program_of([([i - 1] if i else [], i) for i in range(5)], sizes)
    plan(program)
    assert program.arena_bytes == lower_bound(program) == 1024 + 8192


def test_inputs_and_outputs_are_not_in_the_arena():
    program = program_of([([], 0), ([0], 1)], [100, 100])
    program.tensors[1].space = "output"
    plan(program)
    assert program.arena_bytes == 128


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rpi4", "host"])
def test_a_network_is_within_a_tenth_of_the_lower_bound(target, tmp_path, monkeypatch):
    """Tensors and the scratch memory of all threads together, for Bi-Real-18 at 224x224."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "systems"))
    import torch

    import xnorc

    network = __import__("react_shapes").BiRealNet18()
    xnorc.export(network, torch.zeros(1, 3, 224, 224), tmp_path / "net.onnx", check=False)
    packed = optimize(read_model(tmp_path / "net.onnx")).model
    program = lower(packed, targets.get(target), "net")
    scratch = MAX_THREADS * max(build(program.kernels, targets.get(target)).workspace.values())
    assert program.arena_bytes + scratch <= 1.1 * lower_bound(program)
