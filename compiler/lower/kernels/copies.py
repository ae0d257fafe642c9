"""Packed copies: what an epilogue makes is compared with thresholds while it is in registers, and stored as bits too.

What a residual block makes is read twice, as the next shortcut and, by its signs or levels, by the next binary layer. So the
kernel stores both, and nobody reads the floats again only to compare them. Where nobody but the next layer reads them, they
are not stored at all. The outcomes are those of ``Pack`` and ``PackLevels`` on the stored numbers, bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset import pack_bits, packed_bytes
from ..kernel import KernelCall, PackedCopy
from .common import Expr, Flat, Function, bytes_of, number, scratch
from .elementwise import FLOAT_INFINITY, FLOAT_SIGN, flushes_denormals, order_keys

CHANNELS = 8


def plane_starts(flip: np.ndarray, channels: int, codes: np.ndarray, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """The planes before any step, uint8 ``[planes, bytes]``, and which planes a step changes, bool ``[T, planes]``."""
    bits = (codes[:, None] >> np.arange(planes)) & 1
    changes = bits[1:] != bits[:-1]
    flips = np.broadcast_to(flip, (channels,)).astype(bool)
    odd = changes.sum(0) % 2 == 1
    start = np.stack([pack_bits(np.full(channels, bits[0, p], bool) ^ (flips & odd[p])) for p in range(planes)])
    return start, changes


class Values:
    """The final values of a tile on their way to the copies: eight channels of each pixel, in a register or put together."""

    def __init__(self, pixels: int, dtype: str, parts: Flat | None) -> None:
        self.pixels, self.dtype, self.parts = pixels, dtype, parts
        self.found: list[Expr] = []

    def take(self, pixel: int, first: int, lanes: int, value: Expr) -> None:
        """``lanes`` channels of ``pixel``, from channel ``first`` of the block on."""
        if self.parts is not None:
            self.parts.store(pixel * CHANNELS + first, value, lanes)
        elif lanes == CHANNELS:
            self.found.append(value)

    def of(self, pixel: int, dtype: str) -> Expr:
        """Eight channels of a pixel; as ``int32`` their bits."""
        value = self.found[pixel] if self.parts is None else self.parts.load(pixel * CHANNELS, CHANNELS)
        return value if dtype == self.dtype else T.Bind(tirx.reinterpret("int32x8", value))


class _Copy:
    """One copy: the constants that it reads."""

    def __init__(self, fn: Function, name: str, copy: PackedCopy, channels: int, width: int, as_keys: bool) -> None:
        self.as_keys, self.channels = as_keys, channels
        self.steps, self.planes = len(copy.threshold), copy.planes
        self.dtype = "int32" if as_keys else str(copy.threshold.dtype)
        never = np.iinfo(np.int32).max if copy.threshold.dtype == np.int32 else np.float32(np.nan)
        threshold = np.full((self.steps, width), never, copy.threshold.dtype)  # channels that are not there never pass
        threshold[:, :channels] = copy.threshold
        self.width = width
        uniform = channels == width and bool(((threshold == threshold[:, :1]) & np.isfinite(threshold)).all())
        if as_keys:  # −0 passes a threshold of zero, as +0 does
            threshold = order_keys(np.where(threshold == 0, np.float32(-0.0), threshold))
        self.numbers = threshold[:, 0].tolist() if uniform else None
        self.table = None if uniform else fn.constant(f"{name}_threshold", threshold)
        start, self.changes = plane_starts(copy.flip, channels, np.asarray(copy.codes, np.int64), copy.planes)
        self.starts = fn.constant(f"{name}_starts", start) if start.any() else None

    def passed(self, values: Values, pixel: int, step: int, block: Expr) -> Expr:
        """Whether eight channels of a pixel reach the thresholds of ``step``."""
        if self.numbers is not None:
            limit = number(self.numbers[step], self.dtype, CHANNELS)
        else:
            assert self.table is not None
            limit = T.Bind(self.table.load(step * self.width + block * CHANNELS, CHANNELS))
        value = values.of(pixel, self.dtype)
        if not self.as_keys:
            return value >= limit
        key = T.Bind(value ^ ((value >> number(31, "int32", CHANNELS)) & number(FLOAT_SIGN, "int32", CHANNELS)))
        return tirx.And(key >= limit, key <= number(FLOAT_INFINITY, "int32", CHANNELS))

    def store(self, out: Flat, values: Values, pixel: Expr, block: Expr, call: KernelCall, all_: int) -> None:
        """The bytes of a tile's pixels from ``pixel`` (of ``all_``) on."""
        count, row = values.pixels, packed_bytes(self.channels)
        found: list[list[Expr]] = [[] for _ in range(self.planes)]
        # Comparisons have no width of their own: "uint16" lets Arm join four.
        width = "uint16" if call.target.is_arm else "uint32"
        for step in range(self.steps):
            outcomes = [self.passed(values, p, step, block) for p in range(count)]
            bytes_ = [T.Bind(byte) for byte in bytes_of(outcomes, call.target, width)]
            for plane in np.flatnonzero(self.changes[step]).tolist():
                so_far = found[plane]
                found[plane] = [T.Bind(a ^ b) for a, b in zip(so_far, bytes_, strict=True)] if so_far else bytes_
        for plane, made in enumerate(found):
            start = None if self.starts is None else T.Bind(self.starts.load(plane * row + block))
            for p in range(count):
                byte = made[p] if made else number(0, "uint8")
                place = plane * (all_ * row) + (pixel + p) * row + block
                out.store(place, byte if start is None else byte ^ start)


class Copies:
    """All packed copies of an epilogue. ``outs`` are set once the function's parameters are complete."""

    def __init__(self, fn: Function, width: int, pixels: int) -> None:
        call = fn.call
        self.call, self.outs = call, list[Flat]()
        copies = call.epilogue.copies
        if not copies:
            self.copies: list[_Copy] = []
            return
        if call.epilogue.kind == "bits" or call.epilogue.channels_first:
            raise UnsupportedError(call.name, call.op, "packed copies are made of numbers that lie channels last")
        channels = call.output.shape[-1]
        self.all = math.prod(call.output.shape[:-1])
        as_keys = call.epilogue.kind == "float" and flushes_denormals(call)
        self.copies = [_Copy(fn, f"copy{i}", copy, channels, width, as_keys) for i, copy in enumerate(copies)]

    def gather(self, pixels: int, count: int, widest: int) -> Values:
        """Where the values of ``pixels`` times ``count`` channels are kept, which come in runs of up to ``widest``."""
        whole = not self.copies or (count == CHANNELS and widest == CHANNELS)
        dtype = "float32" if self.call.epilogue.kind == "float" else "int32"
        parts = None if whole else scratch(pixels * CHANNELS, dtype)
        if parts is not None and count < CHANNELS:
            for p in range(pixels):
                parts.store(p * CHANNELS, number(0, dtype, CHANNELS), CHANNELS)
        return Values(pixels, dtype, parts)

    def store(self, values: Values, pixel: Expr, block: Expr) -> None:
        """Store the bytes of a tile: pixels from ``pixel`` (of all images) on, eight channels of ``block``."""
        for copy, out in zip(self.copies, self.outs, strict=True):
            copy.store(out, values, pixel, block, self.call, self.all)
