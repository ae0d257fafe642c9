"""Pipelines that divide and come together again: how much must wait where two branches meet.

A branch that has a window unit gives its first result only after some rows have come in; the other branch must keep them,
or the fork before both would stand still for ever. No more than one image is ever needed: a whole image comes out of any
branch without the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from .stages import Depthwise, Join, Largest, Multiply, Pool, Slide, Stage, sources_of

_SPARE_WORDS = 32
"""What a branch may hold in its registers and small buffers, so that these make no bubbles."""


def is_chain(stages: Sequence[Stage]) -> bool:
    """Whether each stage reads the one before it, and nothing else."""
    return all(sources == (number - 1,) for number, sources in enumerate(sources_of(stages)))


def shelves(stages: Sequence[Stage], simds: Sequence[int]) -> dict[tuple[int, int], int]:
    """Words that must wait in front of port 0 or 1 of each ``Join``: (number of the stage, port) → words."""
    sources = sources_of(stages)
    found: dict[tuple[int, int], int] = {}
    for number, stage in enumerate(stages):
        if not isinstance(stage, Join):
            continue
        words = stage.source.pixels * stage.source.channels // simds[number]
        branches = [_behind(sources, source) for source in sources[number]]
        fork = max(branches[0] & branches[1])
        for port in (0, 1):
            own, other = sources[number][port], sources[number][1 - port]
            wanted = _held(stages, sources, fork, other, most=True) - _held(stages, sources, fork, own, most=False)
            found[number, port] = min(words, ceil(max(0.0, wanted) * words)) + _SPARE_WORDS
    return found


def _behind(sources: Sequence[tuple[int, ...]], end: int) -> set[int]:
    """The stages that ``end`` needs, itself among them; −1 is the accelerator's input."""
    found, open_ends = {-1}, [end]
    while open_ends:
        number = open_ends.pop()
        if number not in found:
            found.add(number)
            open_ends += sources[number]
    return found


def _held(stages: Sequence[Stage], sources: Sequence[tuple[int, ...]], fork: int, end: int, *, most: bool) -> float:
    """The part of an image inside the stages behind ``fork`` up to ``end`` before a result comes out: at most what they may
    hold while they run at full speed, at least what they take while nobody takes anything from them.
    """
    found = {fork: 0.0}
    for number in range(fork + 1, end + 1):
        before = [found[source] for source in sources[number] if source in found]
        if before:
            found[number] = (max(before) if most else min(before)) + _own(stages[number], most)
    return found[end]


def _own(stage: Stage, most: bool) -> float:
    """What one stage holds, as a part of an image."""
    if isinstance(stage, Slide):
        return (stage.sliding.kept_rows + most) / stage.source.height
    if isinstance(stage, Pool) and most:
        return stage.kernel[0] / stage.source.height
    if isinstance(stage, (Multiply, Largest, Depthwise)) and most:
        return 2 / stage.source.pixels
    return 0.0
