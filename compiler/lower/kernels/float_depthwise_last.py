"""``depthwise_last`` and pools: a window over each channel by itself, on float32 maps that lie channels last.

A task takes a row of the output. A tile is a few neighbouring pixels of one vector of channels: its weights are read once
for all of them. Only tiles whose windows leave the input ask, tap by tap, what is inside.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import PER_ELEMENT, Expr, Flat, elements, function, number, outer_loop, scratch, tile_start, tiles
from .float_finish import Finish

PIXELS = 4
UNROLLED_TAPS = 9
"""Windows up to this many taps become straight-line code."""


def depthwise_last(call: KernelCall) -> Kernel:
    """Inputs: data ``[N, H, W, C]``, weights ``[taps, C]``, maybe a bias ``[C]``. The sum runs over taps in row order."""
    return _window(call)


def max_pool_last(call: KernelCall) -> Kernel:
    """Input: data ``[N, H, W, C]``. Every window holds at least one element of it."""
    return _window(call, "max")


def average_pool_last(call: KernelCall) -> Kernel:
    """Input: data ``[N, H, W, C]``. Padding, if any, counts as zeros."""
    return _window(call, "average")


def _window(call: KernelCall, pool: str = "") -> Kernel:
    images, height, width, channels = call.inputs[0].shape
    _, out_height, out_width, _ = call.output.shape
    (kh, kw), (sh, sw) = call.attrs["window"], call.attrs["strides"]
    (dh, dw), (top, left, _, _) = call.attrs["dilations"], call.attrs["pads"]
    groups, lanes = tiles(channels, max(4, call.target.vector_bytes // 4))
    across, pixels = tiles(out_width, call.knobs.choose("pixels", PIXELS, (1, 2, 8)))
    work = elements(call.output) * kh * kw * PER_ELEMENT

    with function(call) as fn:
        source, kernel = fn.input(0), None if pool else fn.input(1)
        finish = Finish(call)
        bias = fn.input(2) if finish.inputs > 2 else None
        finish.declare(fn)
        out = fn.output()
        with outer_loop(images * out_height, work) as task:
            image, y = T.Bind(task // out_height), T.Bind(task % out_height)
            with T.serial(0, across) as tx, T.serial(0, groups) as group:
                x0 = T.Bind(tile_start(tx, out_width, pixels))
                channel = T.Bind(tile_start(group, channels, lanes))
                sums = scratch(pixels * lanes, "float32")
                first = (
                    number(-np.inf if pool == "max" else 0, "float32", lanes)
                    if bias is None
                    else bias.load(channel, lanes)
                )
                for p in range(pixels):
                    sums.store(p * lanes, first, lanes)
                row, column = T.Bind(y * sh - top), T.Bind(x0 * sw - left)

                def tap(ky: Expr, kx: Expr, ask: bool, image: Expr = image, channel: Expr = channel, row: Expr = row,
                        column: Expr = column, sums: Flat = sums) -> None:  # fmt: skip
                    weight = kernel and T.Bind(kernel.load((ky * kw + kx) * channels + channel, lanes))
                    at_row = row + ky * dh
                    for p in range(pixels):
                        at_column = column + p * sw + kx * dw

                        def add(p: int = p, at_column: Expr = at_column) -> None:
                            at = ((image * height + at_row) * width + at_column) * channels + channel
                            value, so_far = source.load(at, lanes), sums.load(p * lanes, lanes)
                            if pool == "max":
                                more = tirx.max(so_far, value)
                            else:
                                more = so_far + (value if weight is None else weight * value)
                            sums.store(p * lanes, more, lanes)

                        if not ask:
                            add()
                            continue
                        inside = tirx.all(at_row >= 0, at_row < height, at_column >= 0, at_column < width)
                        with T.If(inside), T.Then():
                            add()

                def every(ask: bool) -> None:
                    if kh * kw <= UNROLLED_TAPS and not ask:
                        for ky in range(kh):
                            for kx in range(kw):
                                tap(ky, kx, ask)
                    else:
                        with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
                            tap(ky, kx, ask)

                if any(call.attrs["pads"]):
                    last_row, last_column = row + (kh - 1) * dh, column + (pixels - 1) * sw + (kw - 1) * dw
                    with T.If(tirx.all(row >= 0, column >= 0, last_row < height, last_column < width)):
                        with T.Then():
                            every(False)
                        with T.Else():
                            every(True)
                else:
                    every(False)

                def parameter(table: Flat, channel: Expr = channel) -> Expr:
                    return table.load(channel, lanes)

                for p in range(pixels):
                    at = ((image * out_height + y) * out_width + x0 + p) * channels + channel
                    value = sums.load(p * lanes, lanes)
                    share = number(1 / (kh * kw), "float32", lanes)
                    value = value * share if pool == "average" else value
                    value = finish.apply(value, parameter, lanes)
                    out.store(at, value, lanes)
    return fn.kernel()
