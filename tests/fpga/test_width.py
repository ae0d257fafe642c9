"""Between streams of different widths: every bit once and in order, and no cycle lost on the way."""

from __future__ import annotations

import pytest

pytest.importorskip("amaranth")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fpga.streams import stream_through
from xnorc.runtimes.fpga.units.width import Narrow, Widen

_SHARES = st.sampled_from([0.0, 0.3, 0.8])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), _SHARES, _SHARES, st.integers(0, 1000))
def test_narrow_words_become_wide_ones(ratio: int, gaps: float, refusals: float, seed: int) -> None:
    words = [(37 * place + seed) % 256 for place in range(12 * ratio)]
    wide = [
        sum(word << (8 * k) for k, word in enumerate(words[start : start + ratio]))
        for start in range(0, len(words), ratio)
    ]
    got, cycles = stream_through(Widen(8, ratio), words, len(wide), gaps=gaps, refusals=refusals, seed=seed)
    assert got == wide
    if gaps == refusals == 0:  # a narrow word a cycle
        assert cycles[-1] - cycles[0] == len(words) - ratio


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), _SHARES, _SHARES, st.integers(0, 1000))
def test_wide_words_become_narrow_ones(ratio: int, gaps: float, refusals: float, seed: int) -> None:
    wide = [(7919 * place + seed) % (1 << (8 * ratio)) for place in range(12)]
    words = [word >> (8 * k) & 255 for word in wide for k in range(ratio)]
    got, cycles = stream_through(Narrow(8, ratio), wide, len(words), gaps=gaps, refusals=refusals, seed=seed)
    assert got == words
    if gaps == refusals == 0:
        assert cycles[-1] - cycles[0] == len(words) - 1
