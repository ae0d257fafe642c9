"""Buffers between units: every word once and in order, a word a cycle, as many as they say that they hold."""

from __future__ import annotations

import pytest

pytest.importorskip("amaranth")

from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fpga.streams import stream_through
from xnorc.runtimes.fpga.units.fifo import Fifo


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.sampled_from([0.0, 0.3, 0.8]), st.sampled_from([0.0, 0.3, 0.8]), st.integers(0, 1000))
def test_words_come_out_as_they_went_in(depth: int, gaps: float, refusals: float, seed: int) -> None:
    words = [(37 * place + seed) % 256 for place in range(80)]
    got, cycles = stream_through(Fifo(8, depth), words, len(words), gaps=gaps, refusals=refusals, seed=seed)
    assert got == words
    if gaps == refusals == 0 and depth > 2:
        assert cycles[-1] - cycles[0] == len(words) - 1


@pytest.mark.parametrize("depth", [2, 3, 8])
def test_it_holds_its_depth_and_a_word_more(depth: int) -> None:
    fifo = Fifo(8, depth)
    taken: list[int] = []

    async def bench(context):
        context.set(fifo.input.valid, 1)
        for word in range(40):
            context.set(fifo.input.payload, word)
            _, _, ready = await context.tick().sample(fifo.input.ready)
            taken.append(ready)

    simulator = Simulator(fifo)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert sum(taken) == fifo.depth + 1 and not any(taken[-10:])
