"""``QuantizeMap``: scale, round and clamp to 8 bits, in one pass over a tensor.

A vector runs along whatever axis is contiguous in the input. From NCHW to channels last these are the pixels of one channel,
and their codes are written a pixel apart.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, apart, cast, constant_input, elements, function, number, outer_loop, pieces
from .elementwise import Axis, merge, places, strides
from .fixed import RUN, VECTOR
from .quantize_rows import ROUND

SCALAR_FACTOR = 2.0**100
"""From this factor on a denormal may be more than half a code: NEON of 32-bit Arm, which takes it for zero, is not used."""


def quantize_map(call: KernelCall) -> Kernel:
    """The kernel. Clamping first is the same, as the limits are integers, and keeps the sum in range."""
    factor = float(np.float32(constant_input(call, 1, "the factor").reshape(())))
    scalar = call.target.arch == "arm" and not abs(factor) < SCALAR_FACTOR
    shape, perm = call.inputs[0].shape, list(call.attrs["perm"])
    source = strides(shape)
    sizes = [shape[axis] for axis in perm]
    axes = merge([Axis(s, source[perm[j]], t) for j, (s, t) in enumerate(zip(sizes, strides(sizes), strict=True))])
    inner = next((axis for axis in axes if axis.real == 1), Axis(1, 1, 1))
    outer = [axis for axis in axes if axis is not inner]
    run = RUN if inner.size >= RUN else inner.size  # a task
    widest = 1 if scalar else VECTOR

    with function(call) as fn:
        x, out = fn.input(0), fn.output()

        def convert(real: Expr, packed: Expr, count: int) -> None:
            """``count`` elements along the inner axis."""

            def at(shift: Expr, lanes: int) -> None:
                scaled = x.load(real + shift, lanes) * number(factor, "float32", lanes)
                low, high = (number(call.attrs[key], "float32", lanes) for key in ("low", "high"))
                clamped = tirx.min(tirx.max(scaled, low), high)
                lifted = T.Bind(apart(clamped + number(ROUND, "float32", lanes), lanes))
                code = cast(cast(lifted - number(ROUND, "float32", lanes), "int32", lanes), "int8", lanes)
                out.store(packed + shift * inner.packed, code, lanes, stride=inner.packed)

            if count >= widest:
                with T.serial(0, count // widest) as i:
                    at(i * widest, widest)
            for shift, lanes in pieces(count % widest, widest):
                at(count - count % widest + shift, lanes)

        rows, work = math.prod(axis.size for axis in outer), elements(call.inputs[0])
        runs, rest = divmod(inner.size, run)
        for first, count, each in ((0, runs, run), (runs * run, 1, rest)):
            if count and each:
                with outer_loop(rows * count, work) as task:
                    real, packed = places(task // count, outer)
                    start = task % count * run + first
                    convert(T.Bind(real + start), T.Bind(packed + start * inner.packed), each)
    return fn.kernel()
