"""What a kernel's template leaves open: tile sizes and the like, each with the value that ships.

A template asks ``call.knobs.choose("pixels", 64, (16, 32, 128))`` where it decides. A plain compilation gets the shipped
value; one with tuned choices gets theirs; the tuner learns from the same question what else there is. A knob changes how fast
a kernel is and nothing else: the tuner refuses a choice whose kernel does not compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Pick = Callable[[str, tuple[int, ...]], int]
"""Chooses one of a knob's candidates, whose first is the shipped value."""


class Knobs:
    """The answers to one template's questions, kept: ``asked`` has the candidates by name, ``values`` the answers."""

    def __init__(self, choices: Mapping[str, int] | None = None, pick: Pick | None = None) -> None:
        self.choices = dict(choices or {})
        self.pick = pick
        self.asked: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, int] = {}

    def choose(self, name: str, shipped: int, others: Iterable[int]) -> int:
        """The value of the knob ``name``. A choice that is not among the candidates (of an older xnorc, say) does not count.

        Asked again under one name, the answer is the same.
        """
        if name not in self.values:
            candidates = tuple(dict.fromkeys((shipped, *others)))
            self.asked[name] = candidates
            wanted = self.pick(name, candidates) if self.pick is not None else self.choices.get(name, shipped)
            self.values[name] = wanted if wanted in candidates else shipped
        return self.values[name]

    def changed(self) -> dict[str, int]:
        """The answers that are not the shipped ones."""
        return {name: value for name, value in self.values.items() if value != self.asked[name][0]}
