"""The pure search behind quantizers: the exact float32 numbers at which a step function steps.

A function of one float32 number is given as something that evaluates it on arrays. Floats are looked at in their order, as
integers (``to_keys``), so that a bisection ends at the very number whose value is new: ties, rounding and subnormal
numbers need no thought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..floats import LARGEST, from_keys, to_keys

MAX_LEVELS = 256
"""Most levels of a quantizer: 8 bits."""
_WORK = 4 * MAX_LEVELS
"""Most intervals that are searched at a time: more means more levels than a quantizer has."""

Evaluate = Callable[[np.ndarray], np.ndarray]
"""float32 [M] → float32 [M], element by element."""


@dataclass(frozen=True)
class FloatSteps:
    """A step function: ``value[number of t with (x >= threshold[t]) xor flip]``.

    ``value``: float32 [T + 1], rising; ``threshold``: float32 [T], rising, or falling where ``flip`` is 1 (the function
    falls).
    """

    threshold: np.ndarray
    value: np.ndarray
    flip: int


def find_float_steps(evaluate: Evaluate) -> FloatSteps | str:
    """All steps of a monotone step function, or why it is none with 2 to 256 levels.

    The function must rise or fall throughout; what was evaluated on the way (every power of two and three numbers between
    neighbours, the search itself, the neighbours of each step, random numbers) is checked to.
    """
    exponents = np.arange(-149, 128)
    grid = np.ldexp(np.repeat([1.0, 1.25, 1.5, 1.75], len(exponents)), np.tile(exponents, 4)).astype(np.float32)
    grid = grid[np.isfinite(grid) & (grid > 0)]
    keys = np.unique(np.concatenate([to_keys(grid), -to_keys(grid), [0, LARGEST, -LARGEST]]))
    values = evaluate(from_keys(keys))
    if len(np.unique(values)) > MAX_LEVELS:
        return f"it has more than {MAX_LEVELS} levels"
    if not np.isfinite(values).all():
        return "it gives values that are not finite"
    known_keys, known_values = [keys], [values]
    low, high = keys[:-1], keys[1:]
    low_value, high_value = values[:-1], values[1:]
    found: list[np.ndarray] = []
    while True:
        differs = low_value != high_value
        low, high, low_value, high_value = low[differs], high[differs], low_value[differs], high_value[differs]
        done = high - low == 1
        found.append(high[done])
        low, high, low_value, high_value = low[~done], high[~done], low_value[~done], high_value[~done]
        if not len(low):
            break
        if len(low) > _WORK:
            return f"it has more than {MAX_LEVELS} levels"
        middle = (low + high) // 2
        value = evaluate(from_keys(middle))
        known_keys.append(middle)
        known_values.append(value)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        low_value, high_value = np.concatenate([low_value, value]), np.concatenate([value, high_value])
    steps = np.sort(np.concatenate(found))
    if not len(steps):
        return "it is constant"
    if len(steps) >= MAX_LEVELS:
        return f"it has more than {MAX_LEVELS} levels"
    levels = evaluate(from_keys(np.concatenate([[steps[0] - 1], steps])))
    if not ((np.diff(levels) > 0).all() or (np.diff(levels) < 0).all()):
        return "it neither rises nor falls throughout"
    rising = bool(levels[-1] > levels[0])
    threshold = from_keys(steps)
    made = FloatSteps(threshold, levels, 0) if rising else FloatSteps(threshold[::-1].copy(), levels[::-1].copy(), 1)
    rng = np.random.default_rng(0)
    near = np.concatenate([steps + shift for shift in (-2, -1, 0, 1, 2)])
    around = rng.integers(steps[0] - 1000, steps[-1] + 1000, 4096)
    anywhere = np.clip(np.concatenate([near, around, rng.integers(-LARGEST, LARGEST, 2048)]), -LARGEST, LARGEST)
    known_keys.append(anywhere)
    known_values.append(evaluate(from_keys(anywhere)))
    special = np.array([-np.inf, -0.0, 0.0, np.inf], np.float32)
    at = np.concatenate([from_keys(np.concatenate(known_keys)), special])
    expected = np.concatenate([*known_values, evaluate(special)])
    wrong = step_values(at, made) != expected
    if wrong.any():
        return f"it neither rises nor falls throughout: its value at {at[np.argmax(wrong)]:g} is out of order"
    return made


def step_values(x: np.ndarray, steps: FloatSteps) -> np.ndarray:
    """The step function on an array."""
    if steps.flip:
        passed = len(steps.threshold) - np.searchsorted(steps.threshold[::-1], x, side="right")
    else:
        passed = np.searchsorted(steps.threshold, x, side="right")
    return steps.value[passed]
