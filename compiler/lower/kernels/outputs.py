"""What is done with finished counts: accumulators, packed bits, or float32 after a chain of operations.

A count is the number of differing bits; the accumulator is ``correction − 2·count`` (see ``product``). For bits, the
comparison with the threshold is turned into one with the count itself at compile time: nothing is computed per element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset import Lies
from ..kernel import EpilogueStep, KernelCall
from .common import (
    Expr,
    Flat,
    Function,
    apart,
    broadcast,
    bytes_of,
    bytes_of_flags,
    cast,
    elements,
    number,
    pieces,
    shuffle,
)
from .copies import CHANNELS, Copies


@dataclass(frozen=True)
class Finished:
    """A finished tile: ``counts[p]`` holds 8 channels of pixel ``pixel + p`` of ``image``; ``block`` counts 8 channels.

    ``classes[p]`` is the pixel's border class. ``counts`` of None: the accumulators are what the first step adds.
    """

    counts: list[Expr]
    classes: list[Expr]
    image: Expr
    pixel: Expr
    block: Expr


class Spot(NamedTuple):
    """The place of a value in the output."""

    image: Expr
    channel: Expr
    pixel: Expr


def limits(corrections: np.ndarray, threshold: np.ndarray, bits: int, dtype: str) -> np.ndarray:
    """``correction − 2·count >= threshold`` is the same as ``count < limit``, for every count from 0 to ``bits``."""
    limit = (corrections.astype(np.int64) - threshold.astype(np.int64)) // 2 + 1
    return np.clip(limit, 0, bits + 1).astype(dtype)


def centred(corrections: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """``base [classes]`` and int8 ``rest`` with ``corrections = base[:, None] + 2·rest``, or None where a byte is too short.

    The corrections of a border class differ by twice the ones among the padded weights, about half of all: a table of
    bytes is half as large as one of int16.
    """
    low, high = corrections.min(1).astype(np.int64), corrections.max(1).astype(np.int64)
    base = low + (high - low + 2) // 4 * 2
    rest, odd = np.divmod(corrections - base[:, None], 2)
    ends = np.iinfo(np.int8)
    if odd.any() or rest.min() < ends.min or rest.max() > ends.max:
        return None
    return base.astype(np.int32), rest.astype(np.int8)


class Output:
    """Declares the parameters that an epilogue reads (before the loops), then stores tiles."""

    def __init__(self, fn: Function, corrections: np.ndarray, bits: int, total: str, pixels: int) -> None:
        self.call: KernelCall = fn.call
        self.pixels, self.total = pixels, total
        epilogue = fn.call.epilogue
        shape = fn.call.output.shape
        self.width = corrections.shape[1]
        """Channels rounded up to whole blocks."""
        self.steps: list[tuple[EpilogueStep, Any, Any]] = []
        self.flips: Flat | None = None
        self.bases: Flat | None = None
        """For each border class, what all its corrections have in common; the table then holds the rest, halved."""
        self.arithmetic = "int32"
        if epilogue.kind == "bits":
            threshold, flip = epilogue.threshold, epilogue.flip
            if threshold is None or flip is None:
                raise UnsupportedError(fn.call.name, fn.call.op, "an epilogue of bits needs a threshold and a flip")
            self.channels = len(threshold)
            self.table = fn.constant("limits", self._limits(corrections, threshold, bits))
            if flip.any():
                self.flips = fn.constant("flips", bytes_of_flags(flip))
        else:
            self.channels = shape[1] if epilogue.channels_first else shape[-1]
            narrow = corrections.min() >= -(2**15) and corrections.max() < 2**15
            largest = int(np.abs(corrections).max()) + 2 * bits
            if total == "uint16" and largest < 2**15:  # sums of this size stay in 16 bits until they are converted
                self.arithmetic = "int16"
            halves = centred(corrections) if len(corrections) > 1 else None
            if halves is None:
                self.table = fn.constant("corrections", corrections.astype(np.int16 if narrow else np.int32))
            else:
                self.bases = fn.constant("bases", halves[0].astype(self.arithmetic))
                self.table = fn.constant("corrections", halves[1])
        if epilogue.kind == "float":
            self.steps = [
                (s, self._parameter(fn, f"p{i}", s.p, s.lies), self._parameter(fn, f"q{i}", s.q))
                for i, s in enumerate(epilogue.steps)
            ]
        self.copies = Copies(fn, self.width, pixels)
        outs = fn.outputs()
        self.stored = epilogue.kept
        self.out: Flat = outs[0]
        self.copies.outs = outs[self.stored :]

    def _limits(self, corrections: np.ndarray, threshold: np.ndarray, bits: int) -> np.ndarray:
        """What counts are compared with, ``[classes, width]``; channels past the last never fire."""
        table = limits(corrections[:, : self.channels], threshold, bits, self.total)
        return np.pad(table, ((0, 0), (0, self.width - self.channels)))  # limit 0: the tail bits stay zero

    def _fires(self, count: Expr, limit: Expr) -> Expr:
        """Whether the accumulators that ``count`` stands for reach their thresholds."""
        return count < limit

    def _parameter(
        self, fn: Function, name: str, value: np.ndarray | int | None, lies: Lies | None = None
    ) -> Flat | float | None:
        """What the steps read: a table or a tensor, or the number where it is the same everywhere."""
        if value is None:
            return None
        if isinstance(value, (int, np.integer)):
            if lies is None and elements(fn.call.extra[int(value)]) != elements(fn.call.output):
                raise UnsupportedError(fn.call.name, fn.call.op, "a residual must have as many elements as the output")
            return fn.extra(int(value))
        if value.size and np.isfinite(value).all() and value.any() and (value == value.flat[0]).all():
            return float(value.flat[0])
        if lies is not None:
            return fn.constant(name, value.astype(np.float32).reshape(-1))
        padded = np.zeros(self.width, np.float32)
        padded[: self.channels] = value
        return fn.constant(name, padded)

    def residuals(self) -> list[int]:
        """Extra tensors of the output's shape and layout: element i is read for element i of the output, and only then."""
        if not self.stored:
            return []
        whole = [int(s.p) for s, _, _ in self.steps if isinstance(s.p, (int, np.integer)) and s.lies is None]
        return [index for index in whole if whole.count(index) == 1]

    def store(self, tile: Finished) -> None:
        """Store a tile; channels past the last are left out."""
        kind = self.call.epilogue.kind
        if kind == "bits":
            self._bits(tile)
            return
        write = self._float if kind == "float" else self._integers
        full, rest = divmod(self.channels, CHANNELS)
        if not rest or not full:
            write(tile, rest or CHANNELS)
            return
        with T.If(tile.block < full):
            with T.Then():
                write(tile, CHANNELS)
            with T.Else():
                write(tile, rest)

    def _entry(self, tile: Finished, p: int) -> Expr:
        """The table's 8 entries of a pixel."""
        return self.table.load(tile.classes[p] * self.width + tile.block * CHANNELS, CHANNELS)

    def _bits(self, tile: Finished) -> None:
        row = math.ceil(self.channels / CHANNELS)
        flip = None if self.flips is None else T.Bind(self.flips.load(tile.block))
        outcomes = [self._fires(count, self._entry(tile, p)) for p, count in enumerate(tile.counts)]
        for p, byte in enumerate(bytes_of(outcomes, self.call.target, self.total)):
            place = (tile.image * self.pixels + tile.pixel + p) * row + tile.block
            self.out.store(place, byte if flip is None else byte ^ flip)

    def _accumulators(self, tile: Finished) -> list[Expr]:
        """int32, 8 channels of each pixel."""
        two = number(2, self.arithmetic, CHANNELS)
        return [
            T.Bind(
                cast(
                    T.Bind(self._correction(tile, p) - two * cast(count, self.arithmetic, CHANNELS)), "int32", CHANNELS
                )
            )
            for p, count in enumerate(tile.counts)
        ]

    def _correction(self, tile: Finished, p: int) -> Expr:
        """The corrections of a pixel's 8 channels, in the type that sums are made in."""
        entry = cast(self._entry(tile, p), self.arithmetic, CHANNELS)
        if self.bases is None:
            return entry
        return broadcast(self.bases.load(tile.classes[p]), CHANNELS) + number(2, self.arithmetic, CHANNELS) * entry

    def _integers(self, tile: Finished, count: int) -> None:
        accs = self._accumulators(tile)
        made = self.copies.gather(len(accs), count, CHANNELS)
        for p, acc in enumerate(accs):
            place = (tile.image * self.pixels + tile.pixel + p) * self.channels + tile.block * CHANNELS
            for first, lanes in pieces(count, CHANNELS):
                made.take(p, first, lanes, part(acc, first, lanes))
                if self.stored:
                    self.out.store(place + first, part(acc, first, lanes), lanes)
        self.copies.store(made, tile.image * self.pixels + tile.pixel, tile.block)

    def _float(self, tile: Finished, count: int) -> None:
        known = tile.counts[0] is None
        accs = tile.counts if known else self._accumulators(tile)
        channel = tile.block * CHANNELS
        # NEON of 32-bit Arm flushes denormals to zero; its scalar unit does not.
        widest = 1 if self.call.target.arch == "arm" else CHANNELS
        if self.call.epilogue.channels_first:
            for c in range(count):
                row = [p * CHANNELS + c for p in range(len(accs))]
                place = (tile.image * self.channels + channel + c) * self.pixels + tile.pixel
                for first, lanes in pieces(len(accs), widest):
                    value = None if known else cast(shuffle(accs, row[first : first + lanes]), "float32", lanes)
                    self._run(value, lanes, place + first, Spot(tile.image, channel + c, tile.pixel + first), True)
            return
        made = self.copies.gather(len(accs), count, widest)
        for p, acc in enumerate(accs):
            place = (tile.image * self.pixels + tile.pixel + p) * self.channels + channel
            for first, lanes in pieces(count, widest):
                value = None if known else cast(part(acc, first, lanes), "float32", lanes)
                spot = Spot(tile.image, channel + first, tile.pixel + p)
                made.take(p, first, lanes, self._run(value, lanes, place + first, spot, False))
        self.copies.store(made, tile.image * self.pixels + tile.pixel, tile.block)

    def _run(self, value: Expr, lanes: int, place: Expr, spot: Spot, same_channel: bool) -> Expr:
        """All steps on ``lanes`` values that are stored side by side at ``place``: the first is that of ``spot``.

        Gives the final values. ``value`` of None: it is what the first step adds.
        """

        def read(parameter: Flat | float | None, source: np.ndarray | int | None, lies: Lies | None = None) -> Expr:
            if parameter is None:
                return None
            if isinstance(parameter, float):
                return number(parameter, "float32", lanes)
            if lies is not None:
                one = not (lies.pixel if same_channel else lies.channel)
                at = self._offset(lies, spot, same_channel)
                return broadcast(parameter.load(at), lanes) if one else parameter.load(at, lanes)
            if not isinstance(source, np.ndarray):
                return cast(parameter.load(place, lanes), "float32", lanes)
            at = spot.channel
            return broadcast(parameter.load(at), lanes) if same_channel else parameter.load(at, lanes)

        if value is None:
            value = T.Bind(self.steps[0][1].load(place, lanes))
        for step, p, q in self.steps:
            value = T.Bind(apart(apply(step.op, value, read(p, step.p, step.lies), read(q, step.q), lanes), lanes))
        if self.stored:
            self.out.store(place, cast(value, "float16", lanes) if self.call.epilogue.half else value, lanes)
        return value

    def _offset(self, lies: Lies, spot: Spot, channels_first: bool) -> Expr:
        """Where an operand has its element for ``spot``; see ``Lies``."""
        at: Expr = 0
        if channels_first:
            for varies, size, index in (
                (lies.image, 1, spot.image),
                (lies.channel, self.channels, spot.channel),
                (lies.pixel, self.pixels, spot.pixel),
            ):
                at = at * size + index if varies else at
            return at
        at = spot.image * self.pixels + spot.pixel if lies.pixel else at
        return at * self.channels + spot.channel if lies.channel else at


def part(vector: Expr, first: int, lanes: int) -> Expr:
    """Lanes ``first`` to ``first + lanes`` of a vector of 8."""
    return vector if lanes == CHANNELS else shuffle([vector], range(first, first + lanes))


def apply(op: str, v: Expr, p: Expr, q: Expr, lanes: int) -> Expr:
    """One step of an epilogue; see ``EpilogueStep``."""
    zero = number(0.0, "float32", lanes)
    if op == "mul":
        return v * p
    if op == "add":
        return v + p
    if op == "sub":
        return v - p
    if op == "rsub":
        return p - v
    if op == "div":
        return v / p
    if op == "relu":
        return tirx.max(v, zero)
    if op == "prelu":
        return tirx.Select(v >= zero, v, v * p)
    if op == "cut":
        return tirx.Select(v > p, v, zero)
    if op == "clip":
        return tirx.min(tirx.max(v, p), q)
    raise ValueError(f"unknown epilogue step '{op}'")


class IntegerOutput(Output):
    """For kernels whose tiles hold accumulators (int32) in place of counts."""

    def __init__(self, fn: Function, width: int, pixels: int) -> None:
        super().__init__(fn, np.zeros((1, width), np.int32), 0, "uint32", pixels)

    def _limits(self, corrections: np.ndarray, threshold: np.ndarray, bits: int) -> np.ndarray:
        never = np.iinfo(np.int32).max
        return np.pad(threshold.astype(np.int32), (0, self.width - self.channels), constant_values=never)[None]

    def _fires(self, count: Expr, limit: Expr) -> Expr:
        return count >= limit

    def _accumulators(self, tile: Finished) -> list[Expr]:
        return tile.counts
