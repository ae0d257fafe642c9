"""A layer whose input signs can be zero is computed on two planes of bits, x ≥ 0 and x > 0, and its sums are added.

Where no x is zero, both planes are the same and so are the sums. The second layer's kernel therefore compares, task by
task, the part of the planes that the task reads (a few KiB, once); where they are equal it takes the first layer's sums, which
its epilogue adds anyway, for its own. Signs stay exact at about the cost of one pass as long as zeros are rare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from .common import Expr, Flat, Function, cast, number, scratch

if TYPE_CHECKING:
    from .product import Gather, Product

WIDEST = 16
"""Bytes that are compared at once."""


class Twin:
    """The operand of the layer before, where this layer is the second of two (``KernelCall.twin``)."""

    def __init__(self, fn: Function, product: Product, source: Flat) -> None:
        self.gather, self.source = product.gather, source
        self.rows = product.gather.width == product.pixels and product.gather.kernel == (1, 1)
        self.other = None if fn.call.twin is None else fn.extra(fn.call.twin)

    def either(
        self, image: Expr, first: Expr, count: Expr, take: Callable[[], None], compute: Callable[[], None]
    ) -> None:
        """Emit ``take`` for tasks whose operands are equal, ``compute`` for the others.

        A task has ``count`` pixels of ``image`` from ``first`` on.
        """
        if self.other is None:
            compute()
            return
        start, size, lanes = self._span(image, first, count)
        differ = scratch(WIDEST, "uint8")
        differ.store(0, number(0, "uint8", WIDEST), WIDEST)
        with T.serial(0, size // lanes) as i:
            at = T.Bind(start + i * lanes)
            bits = self.source.load(at, lanes) ^ self.other.load(at, lanes)
            differ.store(0, differ.load(0, lanes) | bits, lanes)
        found = cast(differ.load(0), "int32")
        for i in range(1, lanes):
            found = found | cast(differ.load(i), "int32")
        with T.If(T.Bind(found) == 0):
            with T.Then():
                take()
            with T.Else():
                compute()

    def _span(self, image: Expr, first: Expr, count: Expr) -> tuple[Expr, Expr, int]:
        """First byte and number of bytes of what the pixels read (whole rows of the image), and a divisor of both."""
        gather: Gather = self.gather
        if self.rows and gather.height == 1:
            start = (image * gather.width + first) * gather.bytes
            return T.Bind(start), count * gather.bytes, math.gcd(WIDEST, gather.bytes)
        line = gather.width * gather.bytes
        reach = (gather.kernel[0] - 1) * gather.dilations[0] + 1
        stride, top = gather.strides[0], gather.pads[0]
        low = tirx.max(first // gather.out_width * stride - top, 0)
        high = tirx.min((first + (count - 1)) // gather.out_width * stride - top + reach, gather.height)
        low = T.Bind(low)
        return T.Bind((image * gather.height + low) * line), T.Bind(high - low) * line, math.gcd(WIDEST, line)
