"""``Quantize`` and ``PackLevels``: comparison with the thresholds of a quantizer, step by step.

A level's code changes from step to step in a few bits only, so a plane is the XOR of the outcomes of the steps at which its
bit changes: eight channels of one step are compared into a byte, which is XORed into those planes. What does not depend
on the input (the code of level 0, flipped channels, tail bits) is where the planes start.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import packed_bytes
from ..kernel import Kernel, KernelCall
from .common import (
    Expr,
    Flat,
    Function,
    broadcast,
    byte_of,
    constant_input,
    elements,
    function,
    number,
    outer_loop,
    scratch,
    tile_start,
    tiles,
    typed,
)
from .copies import plane_starts
from .elementwise import (
    FLOAT_INFINITY,
    FLOAT_SIGN,
    VECTOR,
    Axis,
    Nest,
    flushes_denormals,
    order_keys,
    strides,
    walk,
)

UNROLLED_STEPS = 16
"""Quantizers of up to this many steps are straight-line code."""


class Limits:
    """The thresholds as a kernel reads them: ``[T, C]``, or one a step."""

    def __init__(self, fn: Function, call: KernelCall, threshold: np.ndarray) -> None:
        self.as_keys = threshold.dtype == np.float32 and flushes_denormals(call)
        if self.as_keys:  # −0 passes a threshold of zero, as +0 does
            threshold = order_keys(np.where(threshold == 0, np.float32(-0.0), threshold))
        self.width = threshold.shape[1]
        self.table = fn.constant("threshold", threshold)

    def load(self, step: Expr, channel: Expr, lanes: int, along_channels: bool = False) -> Expr:
        """The threshold of ``step``: of ``channel`` in every lane, or of ``lanes`` channels from there on."""
        if self.width == 1:
            return broadcast(self.table.load(step), lanes)
        if along_channels:
            return self.table.load(step * self.width + channel, lanes)
        return broadcast(self.table.load(step * self.width + channel), lanes)

    def key(self, value: Expr, lanes: int) -> Expr:
        """What is compared: the value, or an integer that is ordered as the floats are."""
        if not self.as_keys:
            return value
        bits = T.Bind(tirx.reinterpret(typed("int32", lanes), value))
        return T.Bind(bits ^ ((bits >> number(31, "int32", lanes)) & number(FLOAT_SIGN, "int32", lanes)))

    def passed(self, key: Expr, limit: Expr, lanes: int) -> Expr:
        """Whether the value is at least the threshold; NaN is not."""
        outcome = key >= limit
        return tirx.And(outcome, key <= number(FLOAT_INFINITY, "int32", lanes)) if self.as_keys else outcome


def pack_levels(call: KernelCall) -> Kernel:
    """``PackLevels``: comparison, code and transposition in one pass over the input."""
    x, perm, planes = call.inputs[0], list(call.attrs["perm"]), int(call.attrs["planes"])
    threshold = constant_input(call, 1, "the threshold")
    flip = constant_input(call, 2, "the flip")
    source = strides(x.shape)
    shape = [x.shape[axis] for axis in perm]
    channels, count = shape[-1], threshold.shape[0]
    start, changes = plane_starts(flip, channels, np.asarray(call.attrs["codes"], np.int64), planes)
    plane_bytes = math.prod(shape[:-1]) * packed_bytes(channels)
    rows = [
        Axis(size, source[perm[j]], step)
        for j, (size, step) in enumerate(zip(shape[:-1], strides([*shape[:-1], packed_bytes(channels)]), strict=False))
    ]
    nest = Nest.of(rows, channels, source[perm[-1]])
    unrolled = count <= UNROLLED_STEPS

    with function(call) as fn:
        data = fn.input(0)
        limits = Limits(fn, call, threshold)
        starts = fn.constant("starts", start)
        masks = None if unrolled else fn.constant("changes", np.where(changes, 255, 0).astype(np.uint8))
        out = fn.output()

        def bytes_of_step(real: Expr, group: Expr, used: int, lanes: int, step: Expr) -> Expr:
            """The outcomes of one step: a byte for each of ``lanes`` places, channel by channel."""
            byte: Expr = number(0, "uint8", lanes)
            for c in range(used):
                key = limits.key(data.load(real + c * nest.channel_stride, lanes), lanes)
                outcome = limits.passed(key, limits.load(step, group * 8 + c, lanes), lanes)
                byte = byte | tirx.Select(outcome, number(1 << c, "uint8", lanes), number(0, "uint8", lanes))
            return T.Bind(byte)

        def body(real: Expr, packed: Expr, group: Expr, used: int) -> None:
            inner = nest.inner
            tile_count, lanes = (1, 1) if inner is None else tiles(inner.size, VECTOR)
            step_bytes = 1 if inner is None else inner.packed
            contiguous = inner is None and used == 8 and nest.channel_stride == 1

            def outcomes(at: Expr, step: Expr) -> Expr:
                if not contiguous:
                    return bytes_of_step(at, group, used, lanes, step)
                key = limits.key(data.load(at, 8), 8)
                outcome = limits.passed(key, limits.load(step, group * 8, 8, True), 8)
                return T.Bind(byte_of(outcome, call.target, "uint32"))

            def tile(first: Expr) -> None:
                found = scratch(planes * lanes, "uint8")
                for p in range(planes):
                    value = broadcast(starts.load(p * packed_bytes(channels) + group), lanes)
                    found.store(p * lanes, value, lanes)

                def toggle(p: int, value: Expr) -> None:
                    found.store(p * lanes, found.load(p * lanes, lanes) ^ value, lanes)

                if masks is None:
                    for step in range(count):
                        value = outcomes(real + first, step)
                        for plane in np.flatnonzero(changes[step]):
                            toggle(int(plane), value)
                else:
                    with T.serial(0, count) as step:
                        value = outcomes(real + first, step)
                        for p in range(planes):
                            toggle(p, value & broadcast(masks.load(step * planes + p), lanes))
                for p in range(planes):
                    place = packed + p * plane_bytes + first * step_bytes
                    out.store(place, found.load(p * lanes, lanes), lanes, stride=step_bytes)

            if inner is None:
                tile(0)
            else:
                with T.serial(0, tile_count) as index:
                    tile(T.Bind(tile_start(index, inner.size, lanes)))

        walk(nest, elements(x) * count, body)
    return fn.kernel()


def quantize(call: KernelCall) -> Kernel:
    """``Quantize``: of nested outcomes the last that holds gives the value."""
    x, axis = call.inputs[0], int(call.attrs["axis"]) % len(call.inputs[0].shape)
    threshold = constant_input(call, 1, "the threshold")
    flip = constant_input(call, 2, "the flip")
    value = constant_input(call, 3, "the values")
    count = threshold.shape[0]
    per_channel = threshold.shape[1] > 1
    channels = x.shape[axis] if per_channel else 1
    inner = math.prod(x.shape[axis + 1 :]) if per_channel else elements(x)
    outer = elements(x) // (channels * inner)
    tile_count, lanes = tiles(inner, VECTOR)
    flips = np.broadcast_to(flip, (channels,))

    with function(call) as fn:
        data = fn.input(0)
        limits = Limits(fn, call, threshold)
        values = fn.constant("values", value)
        # A flipped channel walks its steps from the last level down: then an outcome takes a level away.
        turned = fn.constant("turned", flips.astype(np.int32)) if flips.any() else None
        out = fn.output()

        def run(place: Expr, channel: Expr) -> None:
            key = T.Bind(limits.key(data.load(place, lanes), lanes))
            best: Flat = scratch(lanes, "float32")
            if turned is None:
                first, step_of, value_of = 0, lambda t: t, lambda t: t + 1
            else:
                turn = T.Bind(turned.load(channel))
                first = turn * count

                def step_of(t: Expr) -> Expr:
                    return t + turn * (count - 1 - 2 * t)

                def value_of(t: Expr) -> Expr:
                    return t + 1 + turn * (count - 2 - 2 * t)

            best.store(0, broadcast(values.load(first), lanes), lanes)
            with T.serial(0, count) as t:
                outcome = limits.passed(key, limits.load(step_of(t), channel, lanes), lanes)
                better = broadcast(values.load(value_of(t)), lanes)
                best.store(0, tirx.Select(outcome, better, best.load(0, lanes)), lanes)
            out.store(place, best.load(0, lanes), lanes)

        with outer_loop(outer * channels * tile_count, elements(x) * count) as task:
            index, row = task % tile_count, task // tile_count
            run(T.Bind(row * inner + tile_start(index, inner, lanes)), row % channels)
    return fn.kernel()
