"""Depthwise binary convolution into bits: counters that lie across channels, one plane for each binary digit.

A channel's sum has as many terms as the kernel has taps, each one bit: so few that counting bit by bit for all channels at
once is cheaper than counting bits of one channel. A register holds the same bit of as many channels as it has bits; taps
are added by full adders (two ``xor`` and a choice for three bits: H. S. Warren, "Hacker's Delight", 2nd edition, 5-1), and
the digits of the count are compared with those of the threshold's limit (see ``outputs.limits``) from the lowest up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import pack_bits, unpack_bits
from ..kernel import Kernel, KernelCall
from .common import Expr, bytes_of_flags, function, number, outer_loop, pieces, scratch
from .outputs import limits
from .product import MOST_PIXELS, ROWS_BYTES, Plan, Product, class_tables, emit_rows, work

WIDEST = 16
"""Bytes of channels that are counted together."""


def suits(call: KernelCall) -> bool:
    """Whether a ``BinaryConv`` is depthwise, one output channel for each of its input's, and ends in bits."""
    out = call.constants[1].shape[0] if 1 in call.constants else 0
    return call.epilogue.kind == "bits" and int(call.attrs["group"]) == int(call.attrs["channels"]) == out


def add_up(bits: Sequence[Expr], ones: Expr) -> list[Expr]:
    """The number of ``bits`` that are set, lane by lane and bit by bit: its binary digits, lowest first."""
    level, digits = list(bits), []
    while level:
        carries: list[Expr] = []
        while len(level) > 2:
            a, b, c = (level.pop(0) for _ in range(3))
            odd = T.Bind(a ^ b)
            level.append(T.Bind(odd ^ c))
            carries.append(T.Bind((odd & c) | (a & (odd ^ ones))))
        if len(level) == 2:
            a, b = level
            level = [T.Bind(a ^ b)]
            carries.append(T.Bind(a & b))
        digits.append(level[0])
        level = carries
    return digits


def below(digits: Sequence[Expr], limit: Sequence[Expr], ones: Expr) -> Expr:
    """Whether a number is less than another, both by their digits from the lowest on (``limit`` may have one more)."""
    less: Expr = None
    for i, other in enumerate(limit):
        if i >= len(digits):
            less = other | less
            continue
        differ = T.Bind(digits[i] ^ other)
        # The highest digit in which they differ decides.
        less = T.Bind(differ & other if less is None else (differ & other) | (less & (differ ^ ones)))
    return less


def make(call: KernelCall, product: Product) -> Kernel:
    """The kernel. ``product`` is the convolution as ``conv`` describes it."""
    gather, epilogue = product.gather, call.epilogue
    assert epilogue.threshold is not None and epilogue.flip is not None
    channels = len(epilogue.threshold)
    taps, size = math.prod(gather.kernel), gather.bytes
    product = dataclasses.replace(product, window=size, segments=[0])
    row_bytes = taps * size
    each = max(1, min(MOST_PIXELS, ROWS_BYTES // row_bytes, product.pixels))
    tasks = -(-product.pixels // each)
    cut = Plan(row_bytes, False, 1, each, tasks, 1, 1)
    planes = pack_bits(unpack_bits(call.constants[1].reshape(channels, taps, -1), 1)[..., 0].T)
    table = limits(product.corrections[:, :channels], epilogue.threshold, taps, "uint8")
    digits = (taps + 1).bit_length()
    limit = np.stack([pack_bits((table >> i & 1).astype(bool)) for i in range(digits)], axis=1)
    with function(call) as fn:
        source = fn.input(0)
        weights = fn.constant("weights", planes)
        border = fn.constant("limits", limit)
        flips = fn.constant("flips", bytes_of_flags(epilogue.flip)) if epilogue.flip.any() else None
        fill = None if gather.fill is None else fn.constant("fill", gather.fill)
        tables = class_tables(fn, gather, product.corrections)
        out = fn.output()
        with outer_loop(product.images * tasks, work(product)) as task:
            image, first = task // tasks, task % tasks * each
            count = each if product.pixels % each == 0 else tirx.min(each, product.pixels - first)
            rows = scratch(each * row_bytes, "uint8")
            classes = None if tables is None else scratch(each, "int32")
            emit_rows(product, cut, source, rows, fill, classes, tables, image, first, count, 0)

            def some(at: Expr, lanes: int, image: Expr = image, first: Expr = first, count: Expr = count) -> None:
                """``lanes`` bytes of channels of every pixel."""
                ones = number(255, "uint8", lanes)
                with T.serial(0, count) as i:
                    differ = [
                        T.Bind(rows.load(i * row_bytes + tap * size + at, lanes) ^ weights.load(tap * size + at, lanes))
                        for tap in range(taps)
                    ]
                    place = (0 if classes is None else classes.load(i) * (digits * size)) + at
                    known = [border.load(place + digit * size, lanes) for digit in range(digits)]
                    fires = below(add_up(differ, ones), known, ones)
                    fires = fires if flips is None else fires ^ flips.load(at, lanes)
                    out.store((image * product.pixels + first + i) * size + at, fires, lanes)

            bulk = size // WIDEST
            if bulk:
                with T.serial(0, bulk) as b:
                    some(b * WIDEST, WIDEST)
            for shift, lanes in pieces(size - bulk * WIDEST, WIDEST):
                some(bulk * WIDEST + shift, lanes)
    return fn.kernel()
