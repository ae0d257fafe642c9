"""The inner loops of the binary product, one for each kind of machine, and the choice among them.

A micro-kernel counts, for a tile of a few pixels and 8 output channels, the bits in which a pixel's row of bytes differs
from a channel's weights. Rows are cut into steps of 16 bytes (``Micro.unit``) and, where a machine can, a last half step of 8.
Weights are laid out as they are read: ``[block of 8 channels][step][channel of the block][byte of the step]``.

Counts first pile up in narrow lanes (``Micro.part``), as wide as ``Micro.longest`` steps can fill without overflow, and
are then added to the tile's totals: one vector of 8 channels for each pixel, in channel order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from . import cortex_a7, cortex_a53
from .common import Expr, Flat, broadcast, cast, intrinsic, number, scratch, shuffle, tree

if TYPE_CHECKING:
    from ...targets import Target
    from ..knobs import Knobs

STEP = 16
WORD = 8
CHANNELS = 8


@dataclass(frozen=True)
class Tile:
    """What a micro-kernel reads. ``rows[p]`` is where pixel p's bytes start, ``place`` where the block's weights start."""

    source: Flat
    rows: list[Expr]
    weights: Flat
    masks: Flat | None
    place: Expr
    row_bytes: int
    common: bool = False
    """Count the bits that both have, in place of those that differ."""
    unit: int = STEP
    """Bytes of a step."""

    @property
    def steps(self) -> int:
        """Whole steps."""
        return self.row_bytes // self.unit

    @property
    def half(self) -> bool:
        """Whether a half step follows."""
        return self.row_bytes % self.unit != 0

    def differing(
        self, offset: Expr, lanes: int, read: Callable[[Expr], Expr] = lambda value: value
    ) -> Callable[[Expr], Expr]:
        """Loads the weights' (and masks') ``lanes`` bytes at ``offset`` once, to compare them with any pixel's bytes."""
        weight = T.Bind(read(self.weights.load(self.place + offset, lanes)))
        if self.common:
            return lambda x: x & weight
        mask = None if self.masks is None else T.Bind(read(self.masks.load(self.place + offset, lanes)))
        return lambda x: x ^ weight if mask is None else (x ^ weight) & mask


@dataclass(frozen=True)
class Micro:
    """One micro-kernel.

    ``part`` is the type of the narrow lanes and how many a pixel has, ``longest`` how many steps fit them. ``step`` and
    ``half`` emit one step; ``flush`` gives the totals of 8 channels that a pixel's narrow lanes stand for.
    """

    name: str
    pixels: int
    """Widest tile."""
    grain: int
    """Rows are padded to a multiple of this many bytes: 8 where a half step exists."""
    part: tuple[str, int]
    longest: int
    narrow_total: bool
    """Whether totals that fit 16 bits are kept in 16 bits."""
    step: Callable[[Tile, Expr, Flat], None]
    half: Callable[[Tile, Flat], None] | None
    flush: Callable[[Flat, int, str], Expr]
    whole: Callable[[Tile, Flat], None] | None = None
    """Emits all whole steps at once, for as many pixels as ``alone`` says and weights without masks: in place of ``step``
    for each."""
    alone: range = range(0)
    blocks: int = 1
    """How many blocks ``together`` counts at once for a pixel alone, on the same terms as ``whole``."""
    together: Callable[[Sequence[Tile], Flat], None] | None = None
    unrolled: int = 0
    """Up to so many steps are straight-line code: a short loop's start and end would cost more than a step."""

    unit: int = STEP
    """Bytes of a step."""
    streams: bool = False
    """Whether counting takes so much longer than reading the weights from the second-level cache that a tile meets all
    weights of its task before the next."""

    def total(self, bits: int) -> str:
        """Element type of totals of up to ``bits``."""
        return "uint16" if self.narrow_total and bits < 65535 else "uint32"


def count(micro: Micro, tile: Tile, bits: int) -> list[Expr]:
    """Emit the loops over a tile's rows; gives a vector of 8 counts for each pixel."""
    tile = dataclasses.replace(tile, unit=micro.unit)
    dtype, lanes = micro.part
    pixels = range(len(tile.rows))
    part = scratch(lanes * len(pixels), dtype)

    def clear() -> None:
        for p in pixels:
            part.store(p * lanes, number(0, dtype, lanes), lanes)

    def half() -> None:
        if tile.half:
            assert micro.half is not None
            micro.half(tile, part)

    rounds = -(-(tile.steps + tile.half) // micro.longest)
    if rounds <= 1:
        if micro.whole is not None and len(tile.rows) in micro.alone and tile.masks is None and tile.steps:
            micro.whole(tile, part)
            half()
            return [micro.flush(part, p, micro.total(bits)) for p in pixels]
        clear()
        if tile.steps:
            with (T.unroll if tile.steps <= micro.unrolled else T.serial)(0, tile.steps) as k:
                micro.step(tile, k, part)
        half()
        return [micro.flush(part, p, micro.total(bits)) for p in pixels]

    each = -(-tile.steps // rounds)
    total = scratch(CHANNELS * len(pixels), micro.total(bits))

    def add(p: int) -> None:
        total.store(p * 8, total.load(p * 8, 8) + micro.flush(part, p, total.dtype), 8)

    for p in pixels:
        total.store(p * 8, number(0, total.dtype, 8), 8)
    with T.serial(0, -(-tile.steps // each)) as r:
        clear()
        extent = each if tile.steps % each == 0 else tirx.min(each, tile.steps - r * each)
        with T.serial(0, extent) as k:
            micro.step(tile, r * each + k, part)
        for p in pixels:
            add(p)
    if tile.half:
        clear()
        half()
        for p in pixels:
            add(p)
    return [total.load(p * 8, 8) for p in pixels]


class _Shifted(Flat):
    """A part of a buffer, from an element on."""

    def __init__(self, whole: Flat, start: int) -> None:
        super().__init__(whole.buffer, whole.dtype)
        self.start = start

    def load(self, offset: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        return super().load(self.start + offset, lanes, stride)

    def store(self, offset: Expr, value: Expr, lanes: int = 1, stride: int = 1) -> None:
        super().store(self.start + offset, value, lanes, stride)


def count_blocks(micro: Micro, tiles: Sequence[Tile], bits: int) -> list[Expr]:
    """The same for several blocks of one pixel: a vector of 8 counts for each block."""
    first = tiles[0]
    if (
        micro.together is None
        or len(tiles) != micro.blocks
        or first.masks is not None
        or not 0 < first.steps < micro.longest
    ):
        return [counted for tile in tiles for counted in count(micro, tile, bits)]
    dtype, lanes = micro.part
    part = scratch(lanes * len(tiles), dtype)
    micro.together(tiles, part)
    if first.half:
        assert micro.half is not None
        for i, tile in enumerate(tiles):
            micro.half(tile, _Shifted(part, i * lanes))
    return [micro.flush(part, i, micro.total(bits)) for i in range(len(tiles))]


def _accumulate(part: Flat, p: int, more: Expr) -> None:
    part.store(p * 8, part.load(p * 8, 8) + more, 8)


def _pairs(tile: Tile, p: Expr) -> Expr:
    """The last 8 bytes of a row twice: against the weights of two channels at once."""
    once = T.Bind(tile.source.load(p + tile.steps * STEP, 8))
    return T.Bind(shuffle([once, once], range(16)))


def _flush_sums(part: Flat, p: int, dtype: str) -> Expr:
    return cast(part.load(p * 8, 8), dtype, 8)


# --- 64-bit Arm: cnt gives a count a byte; three rounds of addp over 8 channels leave two bytes (at most 64 each) a channel,
# in channel order, which uadalp adds to 16-bit lanes: at most 128 a step, so 511 steps fit.


def _addp(a: Expr, b: Expr) -> Expr:
    return intrinsic("uint8x16", "llvm.aarch64.neon.addp.v16i8", a, b)


def _uaddlp(value: Expr) -> Expr:
    return intrinsic("uint16x8", "llvm.aarch64.neon.uaddlp.v8i16.v16i8", value)


def _step_aarch64(tile: Tile, k: Expr, part: Flat) -> None:
    xs = [T.Bind(tile.source.load(row + k * STEP, 16)) for row in tile.rows]
    channels = [tile.differing((k * CHANNELS + c) * STEP, 16) for c in range(CHANNELS)]
    for p, x in enumerate(xs):
        _accumulate(part, p, _uaddlp(tree([tirx.popcount(differ(x)) for differ in channels], _addp)))


def _half_aarch64(tile: Tile, part: Flat) -> None:
    for first in range(0, len(tile.rows), 4):  # the counts of more pixels would not fit the registers
        xs = [_pairs(tile, row) for row in tile.rows[first : first + 4]]
        pairs = [tile.differing(tile.steps * CHANNELS * STEP + c * 16, 16) for c in range(CHANNELS // 2)]
        for p, x in enumerate(xs):
            _accumulate(part, first + p, _uaddlp(tree([tirx.popcount(differ(x)) for differ in pairs], _addp)))


def _whole_aarch64(tile: Tile, part: Flat) -> None:
    last = (tile.steps - 1) * STEP
    rows = [tile.source.address(row + last) for row in tile.rows]
    loop = cortex_a53.function(len(rows), tile.common, tile.steps)
    loop.call(part, tile.weights.address(tile.place), rows, -last)


def _together_aarch64(tiles: Sequence[Tile], part: Flat) -> None:
    first, last = tiles[0], (tiles[0].steps - 1) * STEP
    row = first.source.address(first.rows[0] + last)
    others = [tile.weights.address(tile.place) for tile in tiles[1:]]
    loop = cortex_a53.function_of_blocks(len(tiles), first.common, first.steps)
    loop.call(part, first.weights.address(first.place), [row, *others], -last)


AARCH64 = Micro(
    "aarch64", 4, 8, ("uint16", 8), 511, True, _step_aarch64, _half_aarch64, _flush_sums, _whole_aarch64, range(1, 2),
    4, _together_aarch64,
)  # fmt: skip
"""A pixel alone gets our own assembly: LLVM unrolls its loop until it spills, and short queues of instructions cannot see
past the end of a block."""

AARCH64_WIDE = dataclasses.replace(AARCH64, name="aarch64-wide", pixels=8, alone=range(1, 9))
"""Whole steps of up to 8 pixels are assembly too. A loop of one or two steps is unrolled by LLVM together with what is around
it, until it spills: there the assembly is a tenth faster."""

CORTEX_A53 = dataclasses.replace(AARCH64, name="cortex-a53", pixels=8, alone=range(2, 9))
"""Whole steps of up to 8 pixels are assembly of our own, in the order of this core; all else as above."""


# --- 32-bit Arm: vpadd exists for 8-byte registers only. A channel's 16 counts are added to 8 (at most 16 each), then three
# rounds of vpadd leave one byte (at most 128) a channel, which vaddw adds to 16-bit lanes.


def _vpadd(a: Expr, b: Expr) -> Expr:
    return intrinsic("uint8x8", "llvm.arm.neon.vpadd.v8i8", a, b)


def _lower(value: Expr) -> Expr:
    return shuffle([value], range(8))


def _upper(value: Expr) -> Expr:
    return shuffle([value], range(8, 16))


def _step_armv7(tile: Tile, k: Expr, part: Flat) -> None:
    xs = [T.Bind(tile.source.load(row + k * STEP, 16)) for row in tile.rows]
    sums: list[list[Expr]] = [[] for _ in xs]
    for c in range(CHANNELS):
        differ = tile.differing((k * CHANNELS + c) * STEP, 16)
        for p, x in enumerate(xs):
            counts = T.Bind(tirx.popcount(differ(x)))
            sums[p].append(T.Bind(_lower(counts) + _upper(counts)))
    for p, found in enumerate(sums):
        _accumulate(part, p, cast(tree(found, _vpadd), "uint16", 8))


def _half_armv7(tile: Tile, part: Flat) -> None:
    for p, row in enumerate(tile.rows):
        x = _pairs(tile, row)
        found = []
        for c in range(CHANNELS // 2):
            differ = tile.differing(tile.steps * CHANNELS * STEP + c * 16, 16)
            counts = T.Bind(tirx.popcount(differ(x)))
            found += [_lower(counts), _upper(counts)]
        _accumulate(part, p, cast(tree(found, _vpadd), "uint16", 8))


def _whole_armv7(tile: Tile, part: Flat) -> None:
    rows = [tile.source.address(row) for row in tile.rows]
    cortex_a7.function(tile.common).call(part, tile.weights.address(tile.place), rows, tile.steps)


ARMV7 = Micro("armv7", 2, 8, ("uint16", 8), 511, True, _step_armv7, _half_armv7, _flush_sums, _whole_armv7, range(2, 3))
"""Whole steps of two pixels are assembly of our own (``cortex_a7``)."""


# --- x86-64 with AVX2: a 32-byte register holds the same step of two channels, against a pixel's 16 bytes twice. Counts pile
# up in byte lanes: at most 8 a step, so 31 steps fit (248); psadbw then adds 8 lanes at a time.


def _step_avx2(tile: Tile, k: Expr, part: Flat) -> None:
    once = [T.Bind(tile.source.load(row + k * STEP, 16)) for row in tile.rows]
    xs = [T.Bind(shuffle([x, x], range(32))) for x in once]
    for c in range(CHANNELS // 2):
        differ = tile.differing((k * CHANNELS + 2 * c) * STEP, 32)
        for p, x in enumerate(xs):
            lane = (p * CHANNELS + 2 * c) * STEP
            part.store(lane, part.load(lane, 32) + tirx.popcount(differ(x)), 32)


def _flush_avx2(part: Flat, p: int, dtype: str) -> Expr:
    sums = []
    for c in range(CHANNELS // 2):
        lanes = part.load((p * CHANNELS + 2 * c) * STEP, 32)
        found = intrinsic("uint64x4", "llvm.x86.avx2.psad.bw", lanes, number(0, "uint8", 32))
        sums.append(T.Bind(tirx.reinterpret("uint32x8", found)))
    first = shuffle(sums, [8 * (c // 2) + 4 * (c % 2) for c in range(CHANNELS)])
    second = shuffle(sums, [8 * (c // 2) + 4 * (c % 2) + 2 for c in range(CHANNELS)])
    return T.Bind(cast(first + second, dtype, 8))


AVX2 = Micro("avx2", 2, 16, ("uint8", 128), 31, False, _step_avx2, None, _flush_avx2)


# --- x86-64 with AVX-512: vpopcntq counts 64 bits a lane. A register holds 8 bytes of eight channels, against a pixel's 8 bytes
# eight times (vpxorq repeats them while it reads them), so that counts lie in channel order from the beginning.


def _words(value: Expr) -> Expr:
    return tirx.reinterpret("uint64x8", value)


def _step_avx512(tile: Tile, k: Expr, part: Flat) -> None:
    differ = tile.differing(k * (CHANNELS * WORD), CHANNELS * WORD, _words)
    for p, row in enumerate(tile.rows):
        x = broadcast(tirx.reinterpret("uint64", tile.source.load(row + k * WORD, WORD)), CHANNELS)
        _accumulate(part, p, tirx.popcount(differ(x)))


AVX512 = Micro(
    "avx512", 8, WORD, ("uint64", 8), 1 << 24, False, _step_avx512, None, _flush_sums, unit=WORD, streams=True
)


# --- Anything else: 64-bit words, one count each, in 32-bit lanes (at most 128 a step).


def _step_portable(tile: Tile, k: Expr, part: Flat) -> None:
    def word(value: Expr) -> Expr:
        return tirx.reinterpret("uint64", value)

    for word_offset in (0, 8):
        xs = [T.Bind(word(tile.source.load(row + k * STEP + word_offset, 8))) for row in tile.rows]
        for c in range(CHANNELS):
            differ = tile.differing((k * CHANNELS + c) * STEP + word_offset, 8, word)
            for p, x in enumerate(xs):
                lane = p * 8 + c
                part.store(lane, part.load(lane) + cast(tirx.popcount(differ(x)), "uint32"))


PORTABLE = Micro("portable", 2, 16, ("uint32", 8), 1 << 24, False, _step_portable, None, _flush_sums)


def select(target: Target) -> Micro:
    """The micro-kernel of a target.

    Each gives the same counts on every input whose rows are padded to its ``grain``: the choice is only about speed, and
    ``PORTABLE`` asks nothing of the machine.
    """
    if target.arch == "aarch64":
        return CORTEX_A53 if target.llvm.get("mcpu") == "cortex-a53" else AARCH64
    if target.arch == "arm":
        return ARMV7
    if target.arch == "x86_64" and "avx512vpopcntdq" in target.features:
        return AVX512
    if target.arch == "x86_64" and "avx2" in target.features:
        return AVX2
    return PORTABLE


def select_for(target: Target, steps: int, bits: bool, knobs: Knobs) -> Micro:
    """The micro-kernel of a binary product with rows of ``steps`` whole steps. ``bits``: its epilogue stores bits, which leaves
    registers for eight pixels."""
    chosen = select(target)
    if chosen is AARCH64 and knobs.choose("wide", int(bits and 1 <= steps <= 2), (0, 1)):
        return AARCH64_WIDE
    return chosen


def lay_out(rows: np.ndarray, row_bytes: int, unit: int) -> np.ndarray:
    """Rows of bytes ``[8·blocks, n]`` (n ≤ ``row_bytes``), padded with zeros, in the order of micro-kernels with steps of
    ``unit`` bytes."""
    padded = np.zeros((rows.shape[0] // CHANNELS, CHANNELS, row_bytes), np.uint8)
    padded[..., : rows.shape[1]] = rows.reshape(*padded.shape[:2], -1)
    whole = row_bytes // unit * unit
    steps = padded[..., :whole].reshape(*padded.shape[:2], -1, unit).transpose(0, 2, 1, 3)
    return np.concatenate(
        [steps.reshape(padded.shape[0], -1), padded[..., whole:].reshape(padded.shape[0], -1)], axis=1
    )
