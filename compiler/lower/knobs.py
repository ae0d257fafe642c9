"""What a kernel's template leaves open: tile sizes and the like, each with a default.

A template asks ``call.knobs.choose("pixels", 64, (16, 32, 128))`` where it decides. A layer of a size that others tuned
before gets the choices that ship (``shipped``), one that the user tuned gets theirs, any other the default; the tuner learns
from the same question what else there is. A knob changes how fast a kernel is and nothing else: the tuner refuses a choice
whose kernel does not compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

Pick = Callable[[str, tuple[int, ...]], int]
"""Chooses one of a knob's candidates, whose first is the default."""


class Knobs:
    """The answers to one template's questions, kept: ``asked`` has the candidates by name, ``values`` the answers.

    ``source``: whose the ``choices`` are, ``shipped`` or ``tuned``.
    """

    def __init__(
        self, choices: Mapping[str, int] | None = None, pick: Pick | None = None, source: str = "tuned"
    ) -> None:
        self.source = source
        self.choices = dict(choices or {})
        self.pick = pick
        self.asked: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, int] = {}

    def choose(self, name: str, default: int, others: Iterable[int]) -> int:
        """The value of the knob ``name``. A choice that is not among the candidates (of an older xnorc, say) does not count.

        Asked again under one name, the answer is the same.
        """
        if name not in self.values:
            candidates = tuple(dict.fromkeys((default, *others)))
            self.asked[name] = candidates
            wanted = self.pick(name, candidates) if self.pick is not None else self.choices.get(name, default)
            self.values[name] = wanted if wanted in candidates else default
        return self.values[name]

    def changed(self) -> dict[str, int]:
        """The answers that are not the defaults."""
        return {name: value for name, value in self.values.items() if value != self.asked[name][0]}
