"""Max-pooling of ±1 maps: OR over the bits of a window, AND where the threshold behind them falls."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class MaxPool(wiring.Component):
    """Windows of ``kernel`` (rows, columns) side by side over ``height × width`` pixels of ``channels`` bits.

    ``flip``: bits 0/1 ``[channels]``, 1 where the minimum is wanted. Words of ``simd`` channels. Rows and columns that do
    not fill a window are dropped. Takes a word a cycle; one row of results so far lies in distributed memory.
    """

    def __init__(self, height: int, width: int, kernel: tuple[int, int], flip: np.ndarray, simd: int) -> None:
        self.height, self.width, self.kernel, self.flip, self.simd = height, width, kernel, flip, simd
        self.words = len(flip) // simd
        super().__init__({"input": In(stream.Signature(simd)), "output": Out(stream.Signature(simd))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        kh, kw = self.kernel
        rows, columns = self.height // kh, self.width // kw
        word, q, p = Signal(range(self.words)), Signal(range(kw)), Signal(range(kh))
        # One past the last window counts what is dropped.
        ox, oy = Signal(range(columns + 1)), Signal(range(rows + 1))
        x, y = Signal(range(self.width)), Signal(range(self.height))
        m.submodules.sofar = memory = Memory(
            shape=self.simd, depth=max(2, columns * self.words), init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        taken, last = Signal(), Signal()
        masks = [
            sum(int(bit) << i for i, bit in enumerate(self.flip[k * self.simd : (k + 1) * self.simd]))
            for k in range(self.words)
        ]
        mask = Signal(self.simd)
        m.d.comb += mask.eq(masks[0])
        if len(set(masks)) > 1:
            with m.Switch(word):
                for k, value in enumerate(masks):
                    with m.Case(k):
                        m.d.comb += mask.eq(Const(value, self.simd))
        turned, merged = self.input.payload ^ mask, Signal(self.simd)
        begins, inside = (p == 0) & (q == 0), (ox != columns) & (oy != rows)
        m.d.comb += [
            self.input.ready.eq(~self.output.valid | self.output.ready),
            taken.eq(self.input.valid & self.input.ready),
            merged.eq(turned | Mux(begins, 0, read.data)),
            read.addr.eq(ox * self.words + word),
            write.addr.eq(read.addr), write.data.eq(merged), write.en.eq(taken & inside),
            last.eq(inside & (p == kh - 1) & (q == kw - 1)),
        ]  # fmt: skip
        with m.If(self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        with m.If(taken):
            with m.If(last):
                m.d.sync += [self.output.payload.eq(merged ^ mask), self.output.valid.eq(1)]
            m.d.sync += word.eq(Mux(word == self.words - 1, 0, word + 1))
            with m.If(word == self.words - 1):
                self._step(m, x, q, ox, self.width, kw, columns)
                with m.If(x == self.width - 1):
                    self._step(m, y, p, oy, self.height, kh, rows)
        return m

    @staticmethod
    def _step(m: Module, place: Signal, within: Signal, window: Signal, size: int, kernel: int, windows: int) -> None:
        """The next pixel along one axis: its place, its place within the window, the window."""
        with m.If(place == size - 1):
            m.d.sync += [place.eq(0), within.eq(0), window.eq(0)]
        with m.Else():
            m.d.sync += place.eq(place + 1)
            with m.If(within == kernel - 1):
                m.d.sync += within.eq(0)
                with m.If(window != windows):
                    m.d.sync += window.eq(window + 1)
            with m.Else():
                m.d.sync += within.eq(within + 1)
