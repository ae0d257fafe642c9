"""``GatedSum``: reads two accumulators of 8 channels, and hands the sum to the epilogue."""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import Expr, constant_input, elements, function, number, outer_loop, pieces, shuffle, tile_start, tiles
from .outputs import CHANNELS, Finished, IntegerOutput

PIXELS = 4


def gated_sum(call: KernelCall) -> Kernel:
    """``GatedSum`` with its epilogue."""
    threshold, flip = constant_input(call, 2, "the threshold"), constant_input(call, 3, "the flip")
    shape, weight = call.inputs[0].shape, int(call.attrs["weight"])
    channels = shape[-1]
    images = shape[0] if call.epilogue.channels_first else 1
    pixels = math.prod(shape[:-1]) // images
    blocks = -(-channels // CHANNELS)
    padding = (0, blocks * CHANNELS - channels)
    _, lanes = tiles(pixels, max(PIXELS, call.target.vector_bytes // 4) if call.epilogue.channels_first else PIXELS)
    count = -(-pixels // lanes)
    with function(call) as fn:
        first, second = fn.input(0), fn.input(1)
        limits = fn.constant("limits_of_gate", np.pad(threshold, padding))
        flips = fn.constant("gate_flips", np.pad(flip.astype(np.int32), padding)) if flip.any() else None
        output = IntegerOutput(fn, blocks * CHANNELS, pixels)

        def tile(image: Expr, pixel: Expr, block: Expr, width: int) -> None:
            limit = T.Bind(limits.load(block * CHANNELS, CHANNELS))
            zero = number(0, "int32", CHANNELS)
            sums = []
            for p in range(lanes):
                place = (image * pixels + pixel + p) * channels + block * CHANNELS
                a, b = (T.Bind(_eight(source, place, width)) for source in (first, second))
                is_open = a >= limit
                if flips is not None:
                    flipped = flips.load(block * CHANNELS, CHANNELS) != zero
                    is_open = tirx.Or(tirx.And(is_open, tirx.Not(flipped)), tirx.And(tirx.Not(is_open), flipped))
                counted = tirx.Select(is_open, b, zero)
                sums.append(T.Bind(counted + a * number(weight, "int32", CHANNELS)))
            output.store(Finished(sums, [0] * lanes, image, pixel, block))

        with outer_loop(images * count, elements(call.inputs[0])) as task:
            image, pixel = task // count, T.Bind(tile_start(task % count, pixels, lanes))
            whole, rest = divmod(channels, CHANNELS)
            if whole:
                with T.serial(0, whole) as block:
                    tile(image, pixel, block, CHANNELS)
            if rest:
                tile(image, pixel, whole, rest)
    return fn.kernel()


def _eight(source: Expr, place: Expr, width: int) -> Expr:
    """8 channels from ``place`` on, zeros past ``width``: nothing is read past the tensor."""
    if width == CHANNELS:
        return source.load(place, CHANNELS)
    parts = [source.load(place + offset, lanes) for offset, lanes in pieces(width, CHANNELS)]
    parts.append(number(0, "int32", CHANNELS - width))
    return shuffle(parts, range(CHANNELS))
