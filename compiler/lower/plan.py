"""The static memory plan: where every tensor lies in the arena.

Two tensors may share memory when no step needs both, or when one is a residual that a kernel adds to what it writes, for
the last time: then the sum lies where the residual was (``on_top``). Placement is greedy by size (largest first, at the lowest
offset
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


def on_top(program: Program) -> dict[int, int]:
    """Tensor → the tensor whose memory it takes over: one of the same size that its kernel reads, and nothing later does."""
    alive = {life.tensor: life for life in lives(program)}
    found: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        reads = [argument.index for call in step.calls for argument in call.inputs if argument.kind == "tensor"]
        for call in step.calls:
            new = alive.get(call.outputs[0])
            for position in call.in_place:
                argument = call.inputs[position]
                old = alive.get(argument.index) if argument.kind == "tensor" else None
                if new is None or old is None or new.tensor in found or old.tensor in found.values():
                    continue
                if old.last == index == new.first and old.bytes == new.bytes and reads.count(old.tensor) == 1:
                    found[new.tensor] = old.tensor
    return found


def shared_lives(program: Program) -> list[tuple[Life, list[int]]]:
    """Lives of the places: a tensor with all that take it over, one after the other, is one. With the tensors of each."""
    follows = {old: new for new, old in on_top(program).items()}
    alive = {life.tensor: life for life in lives(program)}
    found = []
    for first in sorted(set(alive) - set(follows.values())):
        chain = [first]
        while chain[-1] in follows:
            chain.append(follows[chain[-1]])
        found.append((Life(first, alive[first].first, alive[chain[-1]].last, alive[first].bytes), chain))
    return found


def lower_bound(program: Program) -> int:
    """Bytes that the fullest step needs: no plan can use less."""
    alive = [life for life, _ in shared_lives(program)]
    return max(
        (sum(life.bytes for life in alive if life.first <= step <= life.last) for step in range(len(program.steps))),
        default=0,
    )


def plan(program: Program) -> None:
    """Set ``place`` of every arena tensor, and ``arena_bytes``."""
    placed: list[tuple[Life, int]] = []
    shared = sorted(shared_lives(program), key=lambda item: (-item[0].bytes, item[0].first, item[0].tensor))
    for life, tensors in shared:
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
        for tensor in tensors:
            program.tensors[tensor].place = offset
    program.arena_bytes = max((start + life.bytes for life, start in placed), default=0)
