"""Inner loops of products of 8-bit integers, by core: 16 terms of 8 channels against the rows of a few pixels.

* x86 with AVX2: ``pmaddwd`` multiplies 16-bit pairs and adds them; rows are widened to 16 bits beforehand.
* Arm with the dot product extension: ``sdot``, 4 terms of 4 channels an instruction.
* Other Arm: ``smull`` and ``smlal`` keep the sum of two products of 8 bits in 16 bits, ``sadalp`` adds pairs of these to 32
  bits: 16 products in 3 instructions. Two products fit if no weight is −128: 2 · 128 · 127 < 2^15.
* Everywhere else: products of 16 bits, one term at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import KernelCall
from .common import Expr, Flat, broadcast, cast, intrinsic, number, scratch, shuffle

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
    weights at ``place``, rows of the pixels at ``at``, and 8 int32 sums a pixel in ``total``.
    """

    name: str
    row_type: str
    order: Callable[[np.ndarray], np.ndarray]
    add: Callable[[Flat, Expr, Flat, Sequence[Expr], Flat], None]

    def lay_out(self, weights: np.ndarray, length: int) -> np.ndarray:
        """Weights int8 ``[8·blocks, n]`` → ``[blocks, length / 16, 128]``, zeros past ``n``."""
        padded = np.pad(weights, ((0, 0), (0, length - weights.shape[1])))
        grains = padded.reshape(-1, CHANNELS, length // GRAIN, GRAIN).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(self.order(grains).reshape(*grains.shape[:2], CHANNELS * GRAIN))


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


def select(call: KernelCall, weights: np.ndarray) -> Inner:
    """The inner loop for a call with these weights."""
    target = call.target
    if target.arch == "x86_64" and "avx2" in target.features:
        return Inner("pmaddwd", "int16", _by_terms(2), _add_wide(2, _pair))
    if target.is_arm and call.inputs[0].dtype == np.int8:
        if "dotprod" in target.features:
            return Inner("sdot", "int8", _dot_order, _add_dot)
        if weights.size and weights.min() > -128:
            return Inner("smull", "int8", _pairs_order, _add_long(target.arch))
    return Inner("wide", "int16", _by_terms(1), _add_wide(1, _single))


def sums(inner: Inner, weights: Flat, place: Expr, rows: Flat, base: Expr, pixels: int, length: int) -> list[Expr]:
    """The loop over a tile's terms: 8 int32 sums for each pixel, whose rows begin at ``base`` and are ``length`` apart."""
    total = scratch(CHANNELS * pixels, "int32")
    for p in range(pixels):
        total.store(p * CHANNELS, number(0, "int32", CHANNELS), CHANNELS)
    with T.serial(0, length // GRAIN) as i:
        at = [base + p * length + i * GRAIN for p in range(pixels)]
        inner.add(weights, place + i * (CHANNELS * GRAIN), rows, at, total)
    return [T.Bind(total.load(p * CHANNELS, CHANNELS)) for p in range(pixels)]
