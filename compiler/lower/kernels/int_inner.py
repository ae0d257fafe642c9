"""Inner loops of products of 8-bit integers, by core: 16 terms of 8 channels against the rows of a few pixels.

* x86 with AVX2: ``pmaddwd`` multiplies 16-bit pairs and adds them; rows are widened to 16 bits beforehand.
* x86 with AVX-512 VNNI: ``vpdpbusd``, 4 terms of 8 channels an instruction. It multiplies unsigned numbers by signed ones, so
  weights are stored with ``Inner.shift`` added, and a row's sum starts with what that adds too much, taken away.
* Arm with the dot product extension: ``sdot``, 4 terms of 4 channels an instruction.
* Other Arm: ``smull`` and ``smlal`` keep the sum of two products of 8 bits in 16 bits, ``sadalp`` adds pairs of these to 32
  bits: 16 products in 3 instructions. Two products fit if no weight is −128: 2 · 128 · 127 < 2^15.
* Everywhere else: products of 16 bits, one term at a time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import KernelCall
from .common import Expr, Flat, broadcast, cast, intrinsic, number, scratch, shuffle, tree

CHANNELS = 8
GRAIN = 16
"""Terms of a pass of the loop; rows are padded with zeros to a multiple of it."""
PIXELS = 4
"""Pixels of a tile: with 8 channels each, their accumulators fit the registers of every target."""


@dataclass(frozen=True)
class Inner:
    """One inner loop.

    ``row_type``: how the terms of a pixel lie, ``int8`` as they are or widened to ``int16``. ``order``: how the weights of 8
    channels and 16 terms lie, as a permutation of ``[channel][term]``. ``add(weights, place, rows, at, total)`` emits 16 terms:
    weights at ``place``, rows of the pixels at ``at``, and 8 int32 sums a pixel in ``total``, ``ways`` times: they are added at
    the end, so that the next product need not wait for the last. ``shift`` is added to weights, which then are uint8; with
    ``codes`` they are codes of 2 bits, as ``lay_out_codes`` has them.
    """

    name: str
    row_type: str
    order: Callable[[np.ndarray], np.ndarray]
    add: Callable[[Flat, Expr, Flat, Sequence[Expr], Flat], None]
    shift: int = 0
    codes: bool = False
    ways: Callable[[int], int] = lambda pixels: 1

    @property
    def weights_type(self) -> str:
        """Element type of the weights that ``add`` reads."""
        return "uint8" if self.shift else "int8"

    def stored(self, weights: np.ndarray, length: int) -> np.ndarray:
        """What ``lay_out`` gives, as it is stored."""
        laid = self.lay_out(weights, length)
        if self.codes:
            return lay_out_codes(laid, _CODES)
        return (laid.astype(np.int16) + self.shift).astype(np.uint8) if self.shift else laid

    def lay_out(self, weights: np.ndarray, length: int) -> np.ndarray:
        """Weights int8 ``[8·blocks, n]`` → ``[blocks, length / 16, 128]``, zeros past ``n``."""
        padded = np.pad(weights, ((0, 0), (0, length - weights.shape[1])))
        grains = padded.reshape(-1, CHANNELS, length // GRAIN, GRAIN).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(self.order(grains).reshape(*grains.shape[:2], CHANNELS * GRAIN))


def lay_out_codes(laid: np.ndarray, lanes: int) -> np.ndarray:
    """Laid out weights of −1, 0 and +1 as codes of 2 bits (weight + 1): byte b of each ``lanes`` holds the weights b + lanes·i,
    i < 4."""
    codes = (laid.reshape(-1, 4, lanes) + 1).astype(np.uint8)
    return np.bitwise_or.reduce(codes << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=1)


def _by_terms(count: int) -> Callable[[np.ndarray], np.ndarray]:
    """``count`` terms of all channels after each other: ``[terms / count][channel][count]``."""
    return lambda grains: grains.reshape(*grains.shape[:3], GRAIN // count, count).swapaxes(2, 3)


def _add_wide(terms: int, product: Callable[[Expr, Flat, Expr], Expr]) -> Callable[..., None]:
    """Steps of ``terms`` terms with rows of 16 bits."""

    def add(weights: Flat, place: Expr, rows: Flat, at: Sequence[Expr], total: Flat) -> None:
        lanes = CHANNELS * terms
        for term in range(0, GRAIN, terms):
            w = T.Bind(cast(weights.load(place + term * CHANNELS, lanes), "int16", lanes))
            for p, row in enumerate(at):
                so_far = total.load(p * CHANNELS, CHANNELS)
                total.store(p * CHANNELS, so_far + product(w, rows, row + term), CHANNELS)

    return add


def _pair(weights: Expr, row: Flat, place: Expr) -> Expr:
    pair = tirx.reinterpret("int32", row.load(place, 2))
    both = tirx.reinterpret("int16x16", broadcast(pair, CHANNELS))
    return intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", weights, both)


def _single(weights: Expr, row: Flat, place: Expr) -> Expr:
    value = broadcast(row.load(place), CHANNELS)
    return cast(weights, "int32", CHANNELS) * cast(value, "int32", CHANNELS)


def _pairs_order(grains: np.ndarray) -> np.ndarray:
    """``[quad of terms][half of the channels][pair][channel][term]``."""
    split = grains.reshape(*grains.shape[:2], 2, 4, 4, 2, 2)  # half, channel, quad, pair, term
    return split.transpose(0, 1, 4, 2, 5, 3, 6)


def _add_long(arch: str) -> Callable[..., None]:
    """Pairs of products in 16 bits, and pairs of these in 32."""
    prefix = "llvm.aarch64.neon.smull.v8i16" if arch == "aarch64" else "llvm.arm.neon.vmulls.v8i16"
    widen = "llvm.aarch64.neon.saddlp.v4i32.v8i16" if arch == "aarch64" else "llvm.arm.neon.vpaddls.v4i32.v8i16"

    def add(weights: Flat, place: Expr, rows: Flat, at: Sequence[Expr], total: Flat) -> None:
        row_pairs = [T.Bind(tirx.reinterpret("int16x8", rows.load(row, GRAIN))) for row in at]
        for quad in range(4):
            parts = [
                T.Bind(weights.load(place + quad * 32 + part * 8, 8)) for part in range(4)
            ]  # two halves of the channels, two pairs of terms each
            for p, pairs in enumerate(row_pairs):
                given = [T.Bind(tirx.reinterpret("int8x8", shuffle([pairs], [2 * quad + i] * 4))) for i in (0, 1)]
                for half in (0, 1):
                    first, second = (intrinsic("int16x8", prefix, parts[2 * half + i], given[i]) for i in (0, 1))
                    place_of = p * CHANNELS + half * 4
                    more = intrinsic("int32x4", widen, first + second)
                    total.store(place_of, total.load(place_of, 4) + more, 4)

    return add


def _dot_order(grains: np.ndarray) -> np.ndarray:
    """``[quad of terms][channel][term]``."""
    return grains.reshape(*grains.shape[:3], 4, 4).swapaxes(2, 3)


def _add_dot(weights: Flat, place: Expr, rows: Flat, at: Sequence[Expr], total: Flat) -> None:
    row_quads = [T.Bind(tirx.reinterpret("int32x4", rows.load(row, GRAIN))) for row in at]
    for quad in range(4):
        parts = [T.Bind(weights.load(place + quad * 32 + half * 16, 16)) for half in (0, 1)]
        for p, quads in enumerate(row_quads):
            given = T.Bind(tirx.reinterpret("int8x16", shuffle([quads], [quad] * 4)))
            for half, part in enumerate(parts):
                place_of = p * CHANNELS + half * 4
                so_far = total.load(place_of, 4)
                total.store(
                    place_of, intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", so_far, part, given), 4
                )


_CODES = 32
"""Bytes of codes of 8 channels and 16 terms."""


def _vpdpbusd(total: Expr, weights: Expr, row: Flat, place: Expr) -> Expr:
    """4 terms of 8 channels more."""
    quad = broadcast(tirx.reinterpret("int32", row.load(place, 4)), CHANNELS)
    both = tirx.reinterpret("int8x32", quad)
    return intrinsic("int32x8", "llvm.x86.avx512.vpdpbusd.256", total, weights, both)


def _ways(pixels: int) -> int:
    """Two of these instructions start in a cycle and take four or five."""
    return 4 if pixels <= 2 else 2


def _add_quads(weights_of: Callable[[Flat, Expr], list[Expr]]) -> Callable[..., None]:
    """``weights_of`` gives four terms of 8 channels four times."""

    def add(weights: Flat, place: Expr, rows: Flat, at: Sequence[Expr], total: Flat) -> None:
        for quad, w in enumerate(weights_of(weights, place)):
            for p, row in enumerate(at):
                here = (quad % _ways(len(at)) * len(at) + p) * CHANNELS
                total.store(here, _vpdpbusd(total.load(here, CHANNELS), w, rows, row + quad * 4), CHANNELS)

    return add


def _bytes(weights: Flat, place: Expr) -> list[Expr]:
    return [T.Bind(weights.load(place + quad * 32, 32)) for quad in range(4)]


def _codes(weights: Flat, place: Expr) -> list[Expr]:
    codes = T.Bind(weights.load(place // 4, _CODES))
    three = number(3, "uint8", _CODES)
    return [T.Bind((codes >> number(2 * i, "uint8", _CODES)) & three) for i in range(4)]


def row_starts(inner: Inner, rows: Flat, count: Expr, most: int, length: int) -> Flat | None:
    """Emit where the sums of each of ``count`` rows start: at what ``shift`` adds too much, taken away. None: at 0."""
    if not inner.shift:
        return None
    starts = scratch(most, "int32")
    one = number(1, "uint8", GRAIN)
    with T.serial(0, count) as i:
        sums = scratch(4, "int32")
        sums.store(0, number(0, "int32", 4), 4)
        with T.serial(0, length // GRAIN) as k:
            row = rows.load(i * length + k * GRAIN, GRAIN)
            sums.store(0, intrinsic("int32x4", "llvm.x86.avx512.vpdpbusd.128", sums.load(0, 4), one, row), 4)
        total = intrinsic("int32", "llvm.vector.reduce.add.v4i32", sums.load(0, 4))
        starts.store(i, total * number(-inner.shift, "int32"))
    return starts


def select(call: KernelCall, weights: np.ndarray, rounded: bool = False, ternary: bool = False) -> Inner:
    """The inner loop for a call with these weights. ``rounded``: they change while the model runs; ``ternary``: they are −1, 0
    and +1, and may be stored in codes."""
    target = call.target
    if "avx512vnni" in target.features and call.inputs[0].dtype == np.int8 and not rounded:
        if ternary:
            return Inner("vpdpbusd", "int8", _dot_order, _add_quads(_codes), 1, True, _ways)
        return Inner("vpdpbusd", "int8", _dot_order, _add_quads(_bytes), 128, ways=_ways)
    if target.arch == "x86_64" and "avx2" in target.features:
        return Inner("pmaddwd", "int16", _by_terms(2), _add_wide(2, _pair))
    if target.is_arm and call.inputs[0].dtype == np.int8:
        if "dotprod" in target.features:
            return Inner("sdot", "int8", _dot_order, _add_dot)
        if weights.size and weights.min() > -128:
            return Inner("smull", "int8", _pairs_order, _add_long(target.arch))
    return Inner("wide", "int16", _by_terms(1), _add_wide(1, _single))


def sums(
    inner: Inner, weights: Flat, place: Expr, rows: Flat, first: Expr, pixels: int, length: int, starts: Flat | None
) -> list[Expr]:
    """The loop over a tile's terms: 8 int32 sums for each pixel, whose rows are ``length`` apart, ``first`` the tile's first.

    ``starts``: of ``row_starts``.
    """
    ways = inner.ways(pixels)
    total = scratch(CHANNELS * pixels * ways, "int32")
    for p in range(pixels * ways):
        start = number(0, "int32") if starts is None or p >= pixels else starts.load(first + p)
        total.store(p * CHANNELS, broadcast(start, CHANNELS), CHANNELS)
    base = first * length
    with T.serial(0, length // GRAIN) as i:
        at = [base + p * length + i * GRAIN for p in range(pixels)]
        inner.add(weights, place + i * (CHANNELS * GRAIN), rows, at, total)
    return [
        T.Bind(tree([total.load((way * pixels + p) * CHANNELS, CHANNELS) for way in range(ways)], operator.add))
        for p in range(pixels)
    ]
