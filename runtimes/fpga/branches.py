"""Pipelines that divide and come together again: which widths suit, and how much must wait where two branches meet.

A branch that has a window unit gives its first result only after some rows have come in; the other branch must keep them,
or the fork before both would stand still for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from .stages import Join, Multiply, Pool, Slide, Stage, sources_of

_SPARE_WORDS = 32


def is_chain(stages: Sequence[Stage]) -> bool:
    """Whether each stage reads the one before it, and nothing else."""
    return all(sources == (number - 1,) for number, sources in enumerate(sources_of(stages)))


def lags(stages: Sequence[Stage]) -> list[float]:
    """The part of an image that may be inside the stages up to each before its first result comes out."""
    found: dict[int, float] = {-1: 0.0}
    for number, (stage, sources) in enumerate(zip(stages, sources_of(stages), strict=True)):
        own = 0.0
        if isinstance(stage, Slide):
            own = (stage.sliding.kept_rows + 1) / stage.source.height
        elif isinstance(stage, Pool):
            own = stage.kernel[0] / stage.source.height
        elif isinstance(stage, Multiply):
            own = 2 / stage.source.pixels
        found[number] = max(found[source] for source in sources) + own
    return [found[number] for number in range(len(stages))]


def shelves(stages: Sequence[Stage], simds: Sequence[int]) -> dict[tuple[int, int], int]:
    """Words that must wait in front of port 0 or 1 of each ``Join``: (number of the stage, port) → words."""
    late = {-1: 0.0, **dict(enumerate(lags(stages)))}
    found: dict[tuple[int, int], int] = {}
    for number, (stage, sources) in enumerate(zip(stages, sources_of(stages), strict=True)):
        if isinstance(stage, Join):
            latest = max(late[source] for source in sources)
            words = stage.source.pixels * stage.source.channels // simds[number]
            for port, source in enumerate(sources):
                found[number, port] = min(words, ceil((latest - late[source]) * words)) + _SPARE_WORDS
    return found
