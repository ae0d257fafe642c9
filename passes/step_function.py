"""The pure search behind integer thresholds: is a bit a step function of the accumulator, and where is the step?

Everything here works on tables that hold one row for each reachable accumulator value, in rising order, and one column
for each channel. Nothing is assumed about the function that made the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Steps:
    """A step per channel: ``bit = (acc >= threshold) xor flip``. ``threshold``: int32 [C], ``flip``: uint8 [C]."""

    threshold: np.ndarray
    flip: np.ndarray
    rising: int
    falling: int
    constant: int

    def __str__(self) -> str:
        parts = [("rising", self.rising), ("falling", self.falling), ("constant", self.constant)]
        count = len(self.threshold)
        return f"{count} threshold{'s' if count > 1 else ''}: " + ", ".join(f"{n} {word}" for word, n in parts if n)


@dataclass(frozen=True)
class NoStep:
    """The first channel that is not a step function: its bit changes at two accumulator values, or more."""

    channel: int
    changes: tuple[int, ...]
    """The accumulator values at which the bit differs from that of the value before."""

    def __str__(self) -> str:
        where = ", ".join(str(value) for value in self.changes[:3]) + (", …" if len(self.changes) > 3 else "")
        return f"channel {self.channel} is not monotone: its sign changes at accumulator values {where}"


def find_steps(values: np.ndarray, bits: np.ndarray) -> Steps | NoStep:
    """Thresholds that reproduce ``bits``.

    ``values``: integers [V], strictly rising, V >= 1; ``bits``: bool [V, C]. A threshold is the first value with the
    new bit. A constant channel has its own at an end, so thresholds lie in ``[values[0], values[-1] + 1]``.
    """
    bits = np.asarray(bits, dtype=bool)
    changes = bits[1:] != bits[:-1]
    count = changes.sum(axis=0)
    if bits.shape[0] > 1 and count.max(initial=0) > 1:
        channel = int(np.argmax(count > 1))
        return NoStep(channel, tuple(int(v) for v in values[1:][changes[:, channel]]))
    first, last = bits[0], bits[-1]
    where = np.argmax(changes, axis=0) + 1 if bits.shape[0] > 1 else np.zeros(bits.shape[1], dtype=int)
    constant = count == 0
    step = values[np.minimum(where, len(values) - 1)]
    threshold = np.where(constant, np.where(first, values[0], values[-1] + 1), step)
    falling = ~constant & ~last
    return Steps(
        threshold.astype(np.int32), falling.astype(np.uint8),
        rising=int((~constant & last).sum()), falling=int(falling.sum()), constant=int(constant.sum()),
    )  # fmt: skip


class Order:
    """Whether a bit follows the order of a float value, per channel: fed with rows in any order and in chunks.

    It decides whether a maximum can be taken on bits. With ``bit = b(v)``, ``b(max v)`` is the OR of the bits when
    every value whose bit is 0 lies below every value whose bit is 1, and their AND when it lies above. Equal values
    with different bits (−0.0 and +0.0 told apart by a later division, say) are neither.
    """

    def __init__(self, channels: int) -> None:
        self._low = np.full((2, channels), np.inf, dtype=np.float64)
        self._high = np.full((2, channels), -np.inf, dtype=np.float64)
        self._nan = np.zeros(channels, dtype=bool)

    def feed(self, values: np.ndarray, bits: np.ndarray) -> None:
        """Add rows: ``values`` float [V, C], ``bits`` bool [V, C]."""
        values = values.astype(np.float64)
        self._nan |= np.isnan(values).any(axis=0)
        for bit in (0, 1):
            mine = bits == bool(bit)
            self._low[bit] = np.minimum(self._low[bit], np.where(mine, values, np.inf).min(axis=0))
            self._high[bit] = np.maximum(self._high[bit], np.where(mine, values, -np.inf).max(axis=0))

    def minimum(self) -> np.ndarray | int:
        """Which channels need the minimum of the bits (bool [C]), or the first channel that fits neither way."""
        rising, falling = self.ways()
        unfit = ~(rising | falling)
        return int(np.argmax(unfit)) if unfit.any() else falling & ~rising

    def ways(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [C]: in which channels the bit rises with the value, and in which it falls."""
        # A channel whose bit is constant has no value on one side: both hold, and either way is right.
        return (self._high[0] < self._low[1]) & ~self._nan, (self._high[1] < self._low[0]) & ~self._nan
