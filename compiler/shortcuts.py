"""Shortcuts of residual blocks in float16, by choice: which they are (the pass ``half_shortcuts`` says what is done)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from .errors import InputError
from .passes import Int8Input, Options
from .passes import optimize as run_passes
from .passes.fixed.half_shortcuts import candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHOICES = ("float32", "float16")
"""What ``shortcuts`` may be."""


def choose(
    model: onnx.ModelProto, shortcuts: str, sign_zero: int | None, int8: Mapping[str, Int8Input] | None,
    say: Callable[[str], None],
) -> dict[str, int] | None:  # fmt: skip
    """What ``Options.shortcuts`` has to be for a model as the passes read it; None where all shortcuts stay float32.

    Raises ``InputError`` for a choice that there is not.
    """
    if shortcuts not in CHOICES:
        raise InputError(f"shortcuts must be {' or '.join(CHOICES)}, is {shortcuts!r}")
    if shortcuts == "float32":
        return None
    say("looking for shortcuts")
    return candidates(run_passes(model, Options(sign_zero, int8)).model, model)
