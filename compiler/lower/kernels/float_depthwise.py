"""``depthwise`` and averages: float32 windows over one channel for every output channel; vectors along a row.

A task takes one input channel. It copies the channel into a plane with its padding in it, one plane for each phase of the
horizontal stride: then the input of neighbouring pixels lies side by side at every tap, whatever the stride, and no
border is left. A tile is a few rows of one vector each, so that several sums are under way at once.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import (
    PER_ELEMENT,
    Expr,
    Flat,
    broadcast,
    elements,
    function,
    number,
    outer_loop,
    scratch,
    tile_start,
    tiles,
)
from .float_finish import Finish

ROWS = 4
UNROLLED_TAPS = 25
"""Windows up to this many taps become straight-line code."""


def depthwise(call: KernelCall) -> Kernel:
    """Inputs: data, weights ``[out channels, 1, ...]``, maybe a bias. There are as many groups as input channels."""
    return _window(call)


def average_pool(call: KernelCall) -> Kernel:
    """Input: data ``[N, C, ...]``. Padding, if any, counts as zeros."""
    return _window(call, average=True)


def _window(call: KernelCall, *, average: bool = False) -> Kernel:
    data = call.inputs[0].shape
    images, out_channels = call.output.shape[:2]
    height, width = data[2:] if len(data) == 4 else (1, data[2])
    out_height, out_width = call.output.shape[2:] if len(data) == 4 else (1, call.output.shape[2])
    (kh, kw), (sh, sw) = call.attrs["window"], call.attrs["strides"]
    (dh, dw), (top, left, _, _) = call.attrs["dilations"], call.attrs["pads"]
    channels = data[1]
    multiplier = out_channels // channels
    across, lanes = tiles(out_width, max(4, call.target.vector_bytes // 4))
    tile_rows = min(call.knobs.choose("rows", ROWS, (1, 2, 8)), out_height)
    # What the taps reach, which may be less than there is (rows that no window covers) or more (padding).
    plane_height = (out_height - 1) * sh + (kh - 1) * dh + 1
    phase_width = out_width + (kw - 1) * dw // sw
    phase_size = plane_height * phase_width
    taps = kh * kw
    work = elements(call.output) * taps * PER_ELEMENT

    with function(call) as fn:
        source, kernel = fn.input(0), None if average else fn.input(1)
        finish = Finish(call)
        bias = fn.input(2) if finish.inputs > 2 else None
        finish.declare(fn)
        out = fn.output()

        def fill(plane: Flat, channel: Expr, phase: int) -> None:
            """One phase: element x of a row is element ``x · stride + phase`` of the padded row."""
            # Inside are those x with 0 ≤ x·sw + phase − left < width.
            first = min(max(0, -(-(left - phase) // sw)), phase_width)
            last = min(max(first, -(-(width + left - phase) // sw)), phase_width)
            with T.serial(0, plane_height) as y:
                start = phase * phase_size + y * phase_width
                row = y - top
                with T.If((row >= 0) & (row < height)):
                    with T.Then():
                        if first:
                            with T.serial(0, first) as x:
                                plane.store(start + x, number(0, "float32"))
                        if last > first:
                            origin = (channel * height + row) * width + (first * sw + phase - left)
                            with T.serial(0, last - first) as x:
                                plane.store(start + first + x, source.load(origin + x * sw))
                        if last < phase_width:
                            with T.serial(0, phase_width - last) as x:
                                plane.store(start + last + x, number(0, "float32"))
                    with T.Else(), T.serial(0, phase_width) as x:
                        plane.store(start + x, number(0, "float32"))

        with outer_loop(images * channels, work) as channel:
            plane = scratch(min(sw, (kw - 1) * dw + 1) * phase_size, "float32")
            for phase in sorted({x * dw % sw for x in range(kw)}):
                fill(plane, channel, phase)
            with T.serial(0, multiplier) as m:
                place = (channel % channels) * multiplier + m
                rows = -(-out_height // tile_rows)
                with T.serial(0, rows) as ty, T.serial(0, across) as tx:
                    y0 = T.Bind(tile_start(ty, out_height, tile_rows))
                    x0 = T.Bind(tile_start(tx, out_width, lanes))
                    sums = scratch(tile_rows * lanes, "float32")
                    first = number(0, "float32", lanes) if bias is None else broadcast(bias.load(place), lanes)
                    for r in range(tile_rows):
                        sums.store(r * lanes, first, lanes)

                    def tap(y: Expr, x: Expr, shift: Expr) -> None:
                        weight = kernel and T.Bind(broadcast(kernel.load(place * taps + y * kw + x), lanes))
                        for r in range(tile_rows):
                            at = ((y0 + r) * sh + y * dh) * phase_width + x0 + shift
                            so_far, value = sums.load(r * lanes, lanes), plane.load(at, lanes)
                            sums.store(r * lanes, so_far + (value if weight is None else weight * value), lanes)

                    def shift_of(x: Expr) -> Expr:
                        return x * dw % sw * phase_size + x * dw // sw

                    if taps <= UNROLLED_TAPS:
                        for y in range(kh):
                            for x in range(kw):
                                tap(y, x, shift_of(x))
                    else:
                        with T.serial(0, kh) as y, T.serial(0, kw) as x:
                            tap(y, x, shift_of(x))

                    def parameter(table: Flat, place: Expr = place) -> Expr:
                        return broadcast(table.load(place), lanes)

                    for r in range(tile_rows):
                        at = ((channel * multiplier + m) * out_height + y0 + r) * out_width + x0
                        value = sums.load(r * lanes, lanes)
                        share = number(1 / taps, "float32", lanes)
                        value = value * share if average else value
                        value = finish.apply(value, parameter, lanes)
                        out.store(at, value, lanes)
    return fn.kernel()
