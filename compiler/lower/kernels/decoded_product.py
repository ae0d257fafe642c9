"""Products of bit planes as products of 8-bit integers, where counting bits plane by plane would take longer (``costs``).

Tensors lie in planes as ever: activations are decoded once a task, weights once a task and block of 8 channels, into the
registers' order of the integer inner loop (``int_inner``). So the device holds no byte more, and the result is the same sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import TensorType
from ..costs import Work, choose, pixels_decoded_for
from ..kernel import Kernel, KernelCall
from .bit_serial import Serial, Sums
from .common import Expr, Flat, broadcast, cast, function, number, outer_loop, scratch, shuffle, tile_start, tiles
from .int_inner import GRAIN, PIXELS, Inner, row_starts, select, sums
from .outputs import Finished
from .product import (
    CHANNELS,
    FEWEST_BLOCKS,
    TASK_PIXELS,
    TASKS,
    Plan,
    Product,
    class_tables,
    emit_rows,
    rows_of_task,
    threaded,
    work,
)

_BYTE = range(-128, 128)


@dataclasses.dataclass(frozen=True)
class Digits:
    """What the planes of an operand are worth: ``bias + Σ coefficients[i] · bit i``."""

    coefficients: tuple[int, ...]
    bias: int = 0

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest number."""
        return (
            self.bias + sum(c for c in self.coefficients if c < 0),
            self.bias + sum(c for c in self.coefficients if c > 0),
        )


def digits(call: KernelCall) -> tuple[Digits, Digits]:
    """Of the activations (their offset is a correction) and of the weights."""
    x, w = (tuple(int(c) for c in call.attrs[name]) for name in ("x_coeffs", "w_coeffs"))
    return Digits(x), Digits(tuple(2 * c for c in w), -sum(w)) if call.attrs["bipolar"] else Digits(w)


def suits(call: KernelCall, product: Product, planes: tuple[int, int]) -> bool:
    """Whether the product can be computed so, and costs less."""
    x, w = digits(call)
    fits = all(end in _BYTE for end in x.ends) and min(w.ends) > -128 and max(w.ends) < 128
    layer = Work(*planes, product.bits, product.weights.shape[0], product.images * product.pixels)
    possible = fits and len(product.segments) == 1
    return possible and bool(call.knobs.choose("int8", int(choose(call.target, layer) == "int8"), (0, 1)))


def _plan(call: KernelCall, product: Product, row_bytes: int) -> Plan:
    """As ``int_product.plan``, but with more pixels a task: each decodes all weights that it uses."""
    widest = max(PIXELS, call.target.vector_bytes // 4) if call.epilogue.channels_first else PIXELS
    _, lanes = tiles(product.pixels, widest)
    most = call.knobs.choose("pixels", pixels_decoded_for(8 * row_bytes), TASK_PIXELS)
    rows = rows_of_task(product.pixels, lanes, most)
    row_tasks = -(-product.pixels // rows)
    blocks, others = product.weights.shape[0] // CHANNELS, product.images * row_tasks
    each = blocks
    if work(product) >= threaded() and others < TASKS:
        each = max(-(-blocks // -(-TASKS // others)), min(blocks, FEWEST_BLOCKS))
    return Plan(row_bytes, False, lanes, rows, row_tasks, each, -(-blocks // each))


def _decode(source: Flat, starts: Sequence[Expr], what: Digits, target: Flat, count: Expr) -> None:
    """``target[:16·count]``: the numbers whose planes begin at ``starts``, 16 bits of each at a time; bytes modulo 256."""
    dtype = "uint8" if target.dtype == "uint8" else "int8"

    def constant(value: int) -> Expr:
        return number(value % 256 if dtype == "uint8" else value, dtype, 16)

    bit = number(1, "uint8", 16) << (cast(T.ramp(0, 1, 16), "uint8", 16) & number(7, "uint8", 16))
    with T.serial(0, count) as i:
        value: Expr = constant(what.bias)
        for start, coefficient in zip(starts, what.coefficients, strict=True):
            halves = [broadcast(source.load(start + 2 * i + half), 8) for half in (0, 1)]
            chosen = (shuffle(halves, range(16)) & bit) != number(0, "uint8", 16)
            value = T.Bind(value + tirx.Select(chosen, constant(coefficient), constant(0)))
        target.store(i * 16, value if target.dtype == dtype else cast(value, target.dtype, 16), 16)


def _lay_out(planes: np.ndarray, inner: Inner, length: int) -> np.ndarray:
    """Weights uint8 ``[m, 8·blocks, bytes]`` → ``[m, blocks, length]``: bits in the order in which the loop reads terms."""
    bits = np.unpackbits(planes, axis=-1, bitorder="little").astype(np.int8)
    laid = [np.packbits(inner.lay_out(plane, length).astype(np.uint8), axis=-1, bitorder="little") for plane in bits]
    return np.stack([plane.reshape(len(plane), -1) for plane in laid])


def make(call: KernelCall, serial: Serial, corrections: np.ndarray) -> Kernel:
    """The kernel of a product that ``suits``. ``corrections``: int ``[classes, 8·blocks]``, what to add to the sum."""
    product, (x_digits, w_digits) = serial.product, digits(call)
    n, gather = len(x_digits.coefficients), product.gather
    row_bytes = -(-product.weights.shape[1] // 2) * 2
    length = 8 * row_bytes
    signed = dataclasses.replace(call, inputs=(TensorType(call.inputs[0].shape, np.dtype(np.int8)), *call.inputs[1:]))
    inner = select(signed, np.zeros(0, np.int8) + 1)
    w_digits = dataclasses.replace(w_digits, bias=w_digits.bias + inner.shift)
    wide = dataclasses.replace(product, bits=product.bits * serial.factors.size)
    cut = _plan(call, wide, row_bytes)
    blocks = product.weights.shape[0] // CHANNELS
    most = min(cut.rows, product.pixels)
    with function(call) as fn:
        source = fn.input(0)
        stored = fn.constant("weights", _lay_out(serial.weights, inner, length))
        tables = class_tables(fn, gather, corrections)
        output = Sums(fn, corrections.astype(np.int32), product.bits, "uint32", product.pixels)

        spans = product.images * cut.row_tasks
        with outer_loop(cut.block_tasks * spans, work(wide)) as task:
            span, share = task % spans, task // spans
            image, row_task = span // cut.row_tasks, span % cut.row_tasks
            first = row_task * cut.rows
            count = cut.rows if product.pixels % cut.rows == 0 else tirx.min(cut.rows, product.pixels - first)
            tile_count = (count + (cut.lanes - 1)) // cut.lanes

            planes = scratch(n * most * row_bytes, "uint8")
            classes = None if tables is None else scratch(most, "int32")
            with T.serial(0, n) as i:
                emit_rows(
                    product, cut, source, planes, None, classes, tables, image + i * product.images, first, count,
                    product.segments[0], i * (most * row_bytes),
                )  # fmt: skip
            rows = scratch(most * length, inner.row_type)
            _decode(planes, [i * most * row_bytes for i in range(n)], x_digits, rows, count * (row_bytes // 2))

            starts_of = row_starts(inner, rows, count, most, length)
            weights = scratch(CHANNELS * length, inner.weights_type)
            first_block = share * cut.blocks
            share_blocks = cut.blocks if blocks % cut.blocks == 0 else tirx.min(cut.blocks, blocks - first_block)
            with T.serial(0, share_blocks) as b:
                block = T.Bind(first_block + b)
                starts = [(j * blocks + block) * length for j in range(len(w_digits.coefficients))]
                _decode(stored, starts, w_digits, weights, length // 2)
                with T.serial(0, tile_count) as t:
                    pixel = T.Bind(tile_start(row_task * (cut.rows // cut.lanes) + t, product.pixels, cut.lanes))
                    found: list[Expr] = []
                    for p in range(0, cut.lanes, PIXELS):
                        many = min(PIXELS, cut.lanes - p)
                        found += sums(inner, weights, 0, rows, pixel - first + p, many, length, starts_of)
                    at = [0 if classes is None else classes.load(pixel - first + p) for p in range(cut.lanes)]
                    output.store(Finished(found, at, image, pixel, block))
    assert length % GRAIN == 0
    return fn.kernel()
