"""The static memory plan: where every tensor lies in the arena.

Two tensors may share memory when no step needs both. Placement is greedy by size (largest first, at the lowest offset
that is free over the tensor's whole life), which comes close to the lower bound for the chains that networks are
(Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from .program import ALIGNMENT, Program


@dataclass(frozen=True)
class Life:
    """First and last step that needs a tensor, and its size."""

    tensor: int
    first: int
    last: int
    bytes: int


def aligned(size: int) -> int:
    """``size`` rounded up to ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def lives(program: Program) -> list[Life]:
    """Life of every tensor of the arena."""
    spans: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(program.steps):
        for call in step.calls:
            for argument in call.arguments:
                if argument.kind == "tensor":
                    first, _ = spans.get(argument.index, (index, index))
                    spans[argument.index] = (first, index)
    return [
        Life(tensor, first, last, aligned(program.tensors[tensor].bytes))
        for tensor, (first, last) in sorted(spans.items())
        if program.tensors[tensor].space == "arena"
    ]


def lower_bound(program: Program) -> int:
    """Bytes that the fullest step needs: no plan can use less."""
    alive = lives(program)
    return max(
        (sum(life.bytes for life in alive if life.first <= step <= life.last) for step in range(len(program.steps))),
        default=0,
    )


def plan(program: Program) -> None:
    """Set ``place`` of every arena tensor, and ``arena_bytes``."""
    placed: list[tuple[Life, int]] = []
    for life in sorted(lives(program), key=lambda life: (-life.bytes, life.first, life.tensor)):
        offset = 0
        neighbours = sorted(
            (start, start + other.bytes)
            for other, start in placed
            if other.first <= life.last and life.first <= other.last
        )
        for start, end in neighbours:
            if offset + life.bytes <= start:
                break
            offset = max(offset, end)
        placed.append((life, offset))
        program.tensors[life.tensor].place = offset
    program.arena_bytes = max((start + life.bytes for life, start in placed), default=0)
