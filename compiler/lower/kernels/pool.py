"""``BinaryMaxPool``: OR over the bits of a window; ``LevelMaxPool``: the largest code, plane by plane.

Vectors lie along the channels' bytes.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, Flat, constant_input, elements, function, number, outer_loop, scratch, tile_start, tiles

VECTOR = 16
UNROLLED_TAPS = 16
"""Windows up to this many taps become straight-line code."""


def binary_max_pool(call: KernelCall) -> Kernel:
    """``BinaryMaxPool``. A place whose window lies inside the input tests nothing; one at the border tests every tap."""
    return _max_pool(call, 1)


def level_max_pool(call: KernelCall) -> Kernel:
    """``LevelMaxPool``: as ``binary_max_pool``. From the highest plane down a code is larger where its bit is 1, the other's 0
    and all bits above are equal.
    """
    return _max_pool(call, call.inputs[0].shape[0])


def _max_pool(call: KernelCall, planes: int) -> Kernel:
    images_in, height, width, size = call.inputs[0].shape[-4:]
    images, out_height, out_width, _ = call.output.shape[-4:]
    plane_in, plane_out = images_in * height * width * size, images * out_height * out_width * size
    kernel, stride, dilation = (list(call.attrs[key]) for key in ("kernel_shape", "strides", "dilations"))
    top, left, _, _ = pads = list(call.attrs["pads"])
    flip = constant_input(call, 1, "the flip")
    tile_count, lanes = tiles(size, VECTOR)
    taps = kernel[0] * kernel[1]
    loop = T.unroll if taps <= UNROLLED_TAPS else T.serial

    with function(call) as fn:
        data = fn.input(0)
        flips = fn.constant("flip", flip) if flip.any() else None
        out = fn.output()

        def flipped(value: Expr, start: Expr) -> Expr:
            return value if flips is None else value ^ flips.load(start, lanes)

        def tap(best: Flat, image: Expr, start: Expr, row: Expr, column: Expr) -> None:
            place = ((image * height + row) * width + column) * size + start
            if planes == 1:
                best.store(0, best.load(0, lanes) | flipped(data.load(place, lanes), start), lanes)
                return
            values = [flipped(data.load(place + plane * plane_in, lanes), start) for plane in range(planes)]
            larger, equal = scratch(lanes, "uint8"), scratch(lanes, "uint8")
            larger.store(0, number(0, "uint8", lanes), lanes)
            equal.store(0, number(255, "uint8", lanes), lanes)
            for plane in reversed(range(planes)):
                differs = values[plane] ^ best.load(plane * lanes, lanes)
                larger.store(0, larger.load(0, lanes) | (equal.load(0, lanes) & differs & values[plane]), lanes)
                if plane:
                    equal.store(0, equal.load(0, lanes) & ~differs, lanes)
            for plane in range(planes):
                old = best.load(plane * lanes, lanes)
                best.store(plane * lanes, old ^ ((old ^ values[plane]) & larger.load(0, lanes)), lanes)

        def loops(best: Flat, image: Expr, start: Expr, first_row: Expr, first_column: Expr, test: bool) -> None:
            with loop(0, kernel[0]) as i, loop(0, kernel[1]) as j:
                row, column = first_row + i * dilation[0], first_column + j * dilation[1]
                if test:
                    within = tirx.all(row >= 0, row < height, column >= 0, column < width)
                    with T.If(within), T.Then():
                        tap(best, image, start, row, column)
                else:
                    tap(best, image, start, row, column)

        with outer_loop(images * out_height, elements(call.output) * taps) as task:
            image, out_row = task // out_height, task % out_height
            with T.serial(0, out_width) as out_column, T.serial(0, tile_count) as tile:
                first_row, first_column = out_row * stride[0] - top, out_column * stride[1] - left
                start = tile_start(tile, size, lanes)
                best = scratch(planes * lanes, "uint8")
                for plane in range(planes):
                    best.store(plane * lanes, number(0, "uint8", lanes), lanes)
                window = partial(loops, best, image, start, first_row, first_column)
                if any(pads):
                    last_row = first_row + (kernel[0] - 1) * dilation[0]
                    last_column = first_column + (kernel[1] - 1) * dilation[1]
                    inside = tirx.all(first_row >= 0, first_column >= 0, last_row < height, last_column < width)
                    with T.If(inside):
                        with T.Then():
                            window(False)
                        with T.Else():
                            window(True)
                else:
                    window(False)
                place = ((image * out_height + out_row) * out_width + out_column) * size + start
                for plane in range(planes):
                    out.store(place + plane * plane_out, flipped(best.load(plane * lanes, lanes), start), lanes)
    return fn.kernel()
