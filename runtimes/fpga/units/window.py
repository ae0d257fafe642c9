"""The sliding-window unit: a feature map in, the window of every output pixel out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .fifo import Fifo
from .steady import later

BUFFER_BITS = 4096
"""Buffers of more bits lie in block memory."""


@dataclass(frozen=True)
class Sliding:
    """Windows of ``kernel`` (rows, columns) at ``stride`` over ``height × width`` pixels of ``channels`` elements.

    ``pads``: top, left, bottom, right, of elements whose bits are ``fill``, or of the number ``fills`` of each channel.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: int = 0
    fills: tuple[int, ...] = ()

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        (kh, kw), (sh, sw), (top, left, bottom, right) = self.kernel, self.stride, self.pads
        return (self.height + top + bottom - kh) // sh + 1, (self.width + left + right - kw) // sw + 1

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Windows ``[rows, columns, kernel rows · kernel columns · channels]`` of ``[height, width, channels]``."""
        top, left, bottom, right = self.pads
        padded = np.empty((top + self.height + bottom, left + self.width + right, self.channels), x.dtype)
        padded[:] = self.fills or self.fill
        padded[top : top + self.height, left : left + self.width] = x
        (kh, kw), (sh, sw), (rows, columns) = self.kernel, self.stride, self.out
        parts = [
            padded[i : i + (rows - 1) * sh + 1 : sh, j : j + (columns - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
        return np.concatenate(parts, axis=-1)

    def real(self, oy: int) -> tuple[int, int]:
        """First row of the map in the windows of output row ``oy``, and the one behind the last."""
        first = oy * self.stride[0] - self.pads[0]
        return min(self.height, max(0, first)), min(self.height, max(0, first + self.kernel[0]))

    def drops(self, oy: int) -> int:
        """Rows that nobody needs after output row ``oy``; after the last, all that are left."""
        if oy == self.out[0] - 1:
            return self.height - self.real(oy)[0]
        return self.real(oy + 1)[0] - self.real(oy)[0]

    def needs(self, oy: int) -> int:
        """Rows that must be there before output row ``oy``: those of its windows, and those it drops."""
        first, end = self.real(oy)
        return max(end - first, self.drops(oy))

    @property
    def kept_rows(self) -> int:
        """Rows that the buffer holds: those of one output row, and those of the next, which may begin another image."""
        return max(map(self.needs, range(self.out[0]))) + max(self.stride[0], self.needs(0))


class Window(wiring.Component):
    """Words of ``simd`` elements of ``bits`` bits: the map in raster order in, windows out, kernel position by position.

    A word a cycle on either side. The buffer is a ring of rows: an output row begins when the rows under it are there, and
    gives those back that no later one needs.
    """

    def __init__(self, sliding: Sliding, simd: int, bits: int = 1) -> None:
        if sliding.channels % simd:
            raise ValueError(f"{simd} does not divide {sliding.channels} channels")
        self.sliding, self.simd, self.bits = sliding, simd, bits
        self.words = sliding.channels // simd
        width = simd * bits
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        shape, line = self.sliding, self.sliding.width * self.words
        rows_out, columns_out = shape.out
        (kh, kw), (sh, sw), (top, left, _, _) = shape.kernel, shape.stride, shape.pads
        kept = shape.kept_rows
        depth = kept * line
        style = "block" if depth * self.simd * self.bits > BUFFER_BITS else "distributed"
        attributes: dict[str, int | str] = {"ram_style": style}
        if line > 1:
            # What is read for a result was written before: a write in the same cycle is to another word, at the soonest to
            # the first of a row whose last is being read. Synthesis need not make sure of what a collision gives.
            attributes["no_rw_check"] = 1
        m.submodules.rows = memory = Memory(shape=self.simd * self.bits, depth=depth, init=[], attrs=attributes)
        write, read = memory.write_port(), memory.read_port()
        ready_rows = Signal(range(kept + 1))
        wrote, dropped = Signal(), Signal(range(kept + 1))

        # Writing: whole rows, while there is room for one more.
        place, word = Signal(range(depth)), Signal(range(line))
        taken = Signal()
        m.d.comb += [
            self.input.ready.eq(ready_rows != kept),
            taken.eq(self.input.valid & self.input.ready),
            write.addr.eq(place), write.data.eq(self.input.payload), write.en.eq(taken),
            wrote.eq(taken & (word == line - 1)),
        ]  # fmt: skip
        with m.If(taken):
            m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
            m.d.sync += word.eq(Mux(word == line - 1, 0, word + 1))
        m.d.sync += ready_rows.eq(ready_rows + wrote - dropped)

        # Reading: output row, output column, kernel row, and a run along the row under the kernel.
        oy, ox, ky = Signal(range(rows_out)), Signal(range(columns_out)), Signal(range(kh))
        run, kx = Signal(range(self.words)), Signal(range(kw))
        base, row = Signal(range(depth)), Signal(range(depth))
        go, room = Signal(), Signal()
        started, enough = Signal(), Signal()
        m.d.comb += enough.eq(ready_rows >= _by(m, oy, rows_out, shape.needs, "needs"))
        m.d.comb += go.eq((started | enough) & room)
        skipped = _by(m, oy, rows_out, lambda y: max(0, top - y * sh), "skipped")
        below = _by(m, oy, rows_out, lambda y: max(0, top - y * sh) + shape.real(y)[1] - shape.real(y)[0], "below")
        in_row = Signal()
        m.d.comb += in_row.eq((ky >= skipped) & (ky < below))
        # The column of the map, left of which lie the pads.
        x = Signal(range(shape.width + left + shape.pads[3] + kw + sw))
        in_column = Signal()
        m.d.comb += [x.eq(ox * sw + kx), in_column.eq((x >= left) & (x < left + shape.width))]
        last_run, last_kx = run == self.words - 1, kx == kw - 1
        last_ky, last_ox, last_oy = ky == kh - 1, ox == columns_out - 1, oy == rows_out - 1
        ends_row = Signal()
        m.d.comb += ends_row.eq(go & last_run & last_kx & last_ky & last_ox)
        drops = _by(m, oy, rows_out, shape.drops, "drops")
        m.d.comb += dropped.eq(Mux(ends_row, drops, 0))
        with m.If(go):
            m.d.sync += [started.eq(~ends_row), run.eq(Mux(last_run, 0, run + 1))]
            with m.If(last_run):
                m.d.sync += kx.eq(Mux(last_kx, 0, kx + 1))
                with m.If(last_kx):
                    m.d.sync += ky.eq(Mux(last_ky, 0, ky + 1))
                    with m.If(in_row):
                        m.d.sync += row.eq(_ring(row, line, depth))
                    with m.If(last_ky):
                        m.d.sync += [ox.eq(Mux(last_ox, 0, ox + 1)), row.eq(base)]
                        with m.If(last_ox):
                            m.d.sync += oy.eq(Mux(last_oy, 0, oy + 1))
                            after = _advance(m, base, drops, line, depth)
                            m.d.sync += [base.eq(after), row.eq(after)]

        # Address, memory, result: a cycle each; what is on its way has room in the buffer behind. Block memory is slow to
        # give its data: they get a register of their own.
        late = style == "block"
        address = Signal(range(depth), reset_less=True)
        inside, there = Signal(2 + late, reset_less=True), Signal(2 + late)
        stored: Value = read.data
        if late:
            stored = Signal(len(read.data), reset_less=True)
            m.d.sync += stored.eq(read.data)
        m.d.sync += [
            address.eq(row + (x - left) * self.words + run),
            inside.eq(inside << 1 | (in_row & in_column)),
            there.eq(there << 1 | go),
        ]
        m.d.comb += read.addr.eq(address)
        m.submodules.results = fifo = Fifo(len(self.output.payload), 16 if late else 8)
        m.d.comb += [
            fifo.input.valid.eq(there[-1]),
            fifo.input.payload.eq(Mux(inside[-1], stored, self._fill(m, run, len(inside)))),
        ]
        wiring.connect(m, wiring.flipped(self.output), fifo.output)
        free = Signal(range(fifo.depth + 1), init=fifo.depth)
        m.d.sync += free.eq(free + (self.output.valid & self.output.ready) - go)
        m.d.sync += room.eq(free > 1)
        return m

    def _fill(self, m: Module, run: Signal, cycles: int) -> Value:
        """A word of padding, so many cycles after its place in the pixel was ``run``."""
        shape, width = self.sliding, self.simd * self.bits
        if not shape.fills:
            return Const(-shape.fill, width)
        ones = (1 << self.bits) - 1
        words = [
            sum(
                (int(value) & ones) << (i * self.bits) for i, value in enumerate(shape.fills[start : start + self.simd])
            )
            for start in range(0, shape.channels, self.simd)
        ]
        if len(set(words)) == 1:
            return Const(words[0], width)
        place, result = later(m, run, "fill_place", cycles), Signal(width, name="fill_word")
        with m.Switch(place):
            for k, word in enumerate(words):
                with m.Case(k):
                    m.d.comb += result.eq(Const(word, width))
        return result


def _by(m: Module, index: Signal, count: int, function: Callable[[int], int], name: str) -> Signal:
    """``function`` of a counter, as a choice: most of its values are one and the same."""
    values = [function(i) for i in range(count)]
    usual = Counter(values).most_common(1)[0][0]
    result = Signal(range(max(values) + 1), name=name)
    m.d.comb += result.eq(usual)
    with m.Switch(index):
        for i, value in enumerate(values):
            if value != usual:
                with m.Case(i):
                    m.d.comb += result.eq(value)
    return result


def _ring(place: Value, step: int, depth: int) -> Value:
    """``place + step`` in a ring of ``depth``."""
    return Mux(place >= depth - step, place - (depth - step), place + step)


def _advance(m: Module, base: Signal, rows: Signal, line: int, depth: int) -> Signal:
    """``base`` so many rows on, in the ring."""
    result = Signal.like(base, name="next_base")
    m.d.comb += result.eq(base)
    with m.Switch(rows):
        for count in range(1, min(1 << len(rows), depth // line)):
            with m.Case(count):
                m.d.comb += result.eq(_ring(base, count * line, depth))
    return result
