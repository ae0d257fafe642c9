"""``Binarize``, ``Pack`` and ``Unpack``: between real values and bits.

Both packing directions come in two shapes. Where the channels lie side by side in the unpacked tensor, eight lanes of a
vector are the eight bits of one byte. Where they do not (NCHW), a vector runs along whatever axis is contiguous there,
and the eight channels of a byte are eight such vectors: no transposed copy is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset import packed_bytes
from ..kernel import Kernel, KernelCall
from .common import (
    PER_ELEMENT,
    Expr,
    bit_weights,
    broadcast,
    byte_of,
    bytes_of,
    bytes_of_flags,
    cast,
    constant_input,
    elements,
    function,
    number,
    outer_loop,
    pieces,
    tile_start,
    tiles,
    typed,
)

VECTOR = 16
"""Elements of a vector along a contiguous axis: 16 bytes of bits once packed."""


@dataclass(frozen=True)
class Axis:
    """One loop over both tensors: ``real`` and ``packed`` are its strides, in elements and in bytes."""

    size: int
    real: int
    packed: int


def strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def merge(axes: Sequence[Axis]) -> list[Axis]:
    """The same elements in as few loops as possible: axes of size 1 dropped, neighbours that lie end to end joined."""
    merged: list[Axis] = []
    for axis in sorted((axis for axis in axes if axis.size > 1), key=lambda axis: -axis.packed):
        last = merged[-1] if merged else None
        if last and last.real == axis.real * axis.size and last.packed == axis.packed * axis.size:
            merged[-1] = Axis(last.size * axis.size, axis.real, axis.packed)
        else:
            merged.append(axis)
    return merged


def places(index: Expr, axes: Sequence[Axis]) -> tuple[Expr, Expr]:
    """Offsets in both tensors of iteration ``index`` of the nest ``axes``."""
    real: Expr = 0
    packed: Expr = 0
    for axis in reversed(axes):
        step = index % axis.size
        real, packed, index = real + step * axis.real, packed + step * axis.packed, index // axis.size
    return real, packed


@dataclass(frozen=True)
class Nest:
    """How ``Pack`` and ``Unpack`` walk: ``outer`` loops, ``channels`` with their stride, the contiguous axis if not them."""

    outer: list[Axis]
    channels: int
    channel_stride: int
    inner: Axis | None

    @staticmethod
    def of(rows: Sequence[Axis], channels: int, channel_stride: int) -> Nest:
        """Choose the vector axis: the rows' contiguous one, unless the channels themselves are contiguous."""
        merged = merge(rows)
        inner = next((axis for axis in merged if axis.real == 1), None)
        if channel_stride == 1 and channels > 1:
            inner = None
        return Nest([axis for axis in merged if axis is not inner], channels, channel_stride, inner)

    @property
    def count(self) -> int:
        """Iterations of the outer loops."""
        return math.prod(axis.size for axis in self.outer)


def walk(nest: Nest, work: int, body: Callable[[Expr, Expr, Expr, int], None]) -> None:
    """Call ``body(real, packed, group, count)`` in loops over everything: once a byte of ``count`` channels.

    ``real`` and ``packed`` are the offsets of the byte's first channel and of the byte, at the start of the inner axis.
    """
    full, rest = divmod(nest.channels, 8)
    for groups, first, count in ((full, 0, 8), (1, full, rest)):
        if groups and count:
            with outer_loop(nest.count * groups, work) as task:
                group = task % groups + first
                real, packed = places(task // groups, nest.outer)
                body(real + group * 8 * nest.channel_stride, packed + group, group, count)


FLOAT_SIGN = 0x7FFFFFFF
FLOAT_INFINITY = 0x7F800000


def order_keys(values: np.ndarray) -> np.ndarray:
    """float32 → int32 that compare as the floats do, but −0 is below +0, and NaN outside the infinities."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    return bits ^ ((bits >> 31) & FLOAT_SIGN)


def flushes_denormals(call: KernelCall) -> bool:
    """Whether vector instructions of the target see denormal floats as zero: NEON of 32-bit Arm does."""
    return call.target.arch == "arm"


def pack(call: KernelCall) -> Kernel:
    """``Pack``: the comparison and the transposition in one pass over the input."""
    x, perm = call.inputs[0], list(call.attrs["perm"])
    threshold = constant_input(call, 1, "the threshold")
    flip = constant_input(call, 2, "the flip")
    strict = bool(call.attrs["strict"])
    as_keys = str(x.dtype) == "float32" and flushes_denormals(call)
    if as_keys:  # both zeros are on the same side of a threshold of zero
        threshold = order_keys(np.where(threshold == 0, np.float32(0 if strict else -0.0), threshold))
    source = strides(x.shape)
    shape = [x.shape[axis] for axis in perm]
    rows = [
        Axis(size, source[perm[j]], step)
        for j, (size, step) in enumerate(zip(shape[:-1], strides([*shape[:-1], packed_bytes(shape[-1])]), strict=False))
    ]
    nest = Nest.of(rows, shape[-1], source[perm[-1]])

    with function(call) as fn:
        data = fn.input(0)
        same = bool((threshold == threshold[0]).all()) and bool(np.isfinite(threshold[0]))
        limits = None if same else fn.constant("threshold", threshold)
        flips = fn.constant("flips", bytes_of_flags(flip)) if flip.any() else None
        out = fn.output()

        def limit_of(channel: Expr, lanes: int) -> Expr:
            """The thresholds of ``lanes`` channels; one number serves all where they are equal."""
            return (
                number(threshold[0].item(), str(threshold.dtype), lanes)
                if limits is None
                else limits.load(channel, lanes)
            )

        def compare(real: Expr, limit: Expr, lanes: int) -> Expr:
            value = data.load(real, lanes)
            if as_keys:
                bits = T.Bind(tirx.reinterpret(typed("int32", lanes), value))
                flipped = (bits >> number(31, "int32", lanes)) & number(FLOAT_SIGN, "int32", lanes)
                value = T.Bind(bits ^ flipped)
            outcome = value > limit if strict else value >= limit
            return tirx.And(outcome, value <= number(FLOAT_INFINITY, "int32", lanes)) if as_keys else outcome

        def vertical(real: Expr, group: Expr, count: int, lanes: int) -> Expr:
            """One byte for each of ``lanes`` places: channel by channel."""
            byte: Expr = number(0, "uint8", lanes)
            for c in range(count):
                limit = broadcast(limit_of(group * 8 + c, 1), lanes)
                outcome = compare(real + c * nest.channel_stride, limit, lanes)
                byte = byte | tirx.Select(outcome, number(1 << c, "uint8", lanes), number(0, "uint8", lanes))
            return byte

        def body(real: Expr, packed: Expr, group: Expr, count: int) -> None:
            flipped = None if flips is None else flips.load(group)
            if nest.inner is None:
                if count == 8 and nest.channel_stride == 1:
                    byte = byte_of(compare(real, limit_of(group * 8, 8), 8), call.target, "uint32")
                else:
                    byte = vertical(real, group, count, 1)
                out.store(packed, byte if flipped is None else byte ^ flipped)
                return
            size, step = nest.inner.size, nest.inner.packed
            tile_count, lanes = tiles(size, VECTOR)
            with T.serial(0, tile_count) as tile:
                start = tile_start(tile, size, lanes)
                byte = vertical(real + start, group, count, lanes)
                byte = byte if flipped is None else byte ^ broadcast(flipped, lanes)
                out.store(packed + start * step, byte, lanes, stride=step)

        def four(real: Expr, packed: Expr, group: Expr) -> None:
            """Four bytes of channels that lie side by side."""
            outcomes = [compare(real + i * 8, limit_of((group + i) * 8, 8), 8) for i in range(4)]
            # Comparisons have no width of their own: "uint16" lets Arm join four.
            width = "uint16" if call.target.is_arm else "uint32"
            for i, byte in enumerate(bytes_of(outcomes, call.target, width)):
                out.store(packed + i, byte if flips is None else byte ^ flips.load(group + i))

        if nest.inner is None and nest.channel_stride == 1 and nest.channels % 32 == 0:
            groups = nest.channels // 32
            with outer_loop(nest.count * groups, elements(x) * PER_ELEMENT) as task:
                real, packed = places(task // groups, nest.outer)
                group = task % groups * 4
                four(real + group * 8, packed + group, group)
        else:
            walk(nest, elements(x) * PER_ELEMENT, body)
    return fn.kernel()


def unpack(call: KernelCall) -> Kernel:
    """``Unpack``: bits to −1 and +1, transposed on the way."""
    x, perm, channels = call.inputs[0], list(call.attrs["perm"]), call.attrs["channels"]
    target = strides(call.output.shape)
    steps = strides(x.shape)
    moved = {axis: target[j] for j, axis in enumerate(perm)}
    rows = [Axis(size, moved[axis], steps[axis]) for axis, size in enumerate(x.shape[:-1])]
    nest = Nest.of(rows, channels, moved[len(x.shape) - 1])

    with function(call) as fn:
        data, out = fn.input(0), fn.output()

        def signs(bits: Expr, lanes: int) -> Expr:
            one, minus_one = number(1, "float32", lanes), number(-1, "float32", lanes)
            return tirx.Select(bits != number(0, "uint8", lanes), one, minus_one)

        def vertical(real: Expr, bytes_: Expr, count: int, lanes: int) -> None:
            for c in range(count):
                bits = bytes_ & number(1 << c, "uint8", lanes)
                out.store(real + c * nest.channel_stride, signs(bits, lanes), lanes)

        def body(real: Expr, packed: Expr, group: Expr, count: int) -> None:
            if nest.inner is None:
                byte = T.Bind(data.load(packed))
                if count == 8 and nest.channel_stride == 1:
                    out.store(real, signs(broadcast(byte, 8) & cast(bit_weights("uint16"), "uint8", 8), 8), 8)
                else:
                    vertical(real, byte, count, 1)
                return
            size, step = nest.inner.size, nest.inner.packed
            tile_count, lanes = tiles(size, VECTOR)
            with T.serial(0, tile_count) as tile:
                start = tile_start(tile, size, lanes)
                vertical(real + start, T.Bind(data.load(packed + start * step, lanes, stride=step)), count, lanes)

        walk(nest, elements(call.output) * PER_ELEMENT, body)
    return fn.kernel()


def binarize(call: KernelCall) -> Kernel:
    """``Binarize``: two comparisons an element."""
    x = call.inputs[0]
    dtype = str(x.dtype)
    if dtype not in ("float32", "int32", "int8"):
        raise UnsupportedError(call.name, call.op, f"x is {dtype}; only float32, int32 and int8 have a kernel")
    size = elements(x)
    run = 1024
    with function(call) as fn:
        data, out = fn.input(0), fn.output()

        def sign(start: Expr, lanes: int) -> None:
            value = data.load(start, lanes)
            if dtype == "float32" and flushes_denormals(call):  # as integers, floats have the same sign
                bits = T.Bind(tirx.reinterpret(typed("int32", lanes), value))
                nothing = number(0, "int32", lanes)
                is_zero = bits << number(1, "int32", lanes) == nothing
                signed = tirx.Select(bits > nothing, number(1, dtype, lanes), number(-1, dtype, lanes))
                out.store(start, tirx.Select(is_zero, number(call.attrs["zero"], dtype, lanes), signed), lanes)
                return
            value = T.Bind(value)
            zero, one, minus_one = (number(n, dtype, lanes) for n in (0, 1, -1))
            at_zero = number(int(call.attrs["zero"]), dtype, lanes)
            out.store(start, tirx.Select(value > zero, one, tirx.Select(value < zero, minus_one, at_zero)), lanes)

        if size >= run:
            with outer_loop(size // run, size) as task, T.serial(0, run // VECTOR) as i:
                sign(task * run + i * VECTOR, VECTOR)
        rest = size % run
        if rest >= VECTOR:
            with T.serial(0, rest // VECTOR) as i:
                sign(size - rest + i * VECTOR, VECTOR)
        for start, lanes in pieces(rest % VECTOR, VECTOR):
            sign(size - rest % VECTOR + start, lanes)
    return fn.kernel()
