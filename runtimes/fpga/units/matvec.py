"""The matrix-vector-threshold unit: rows of ±1 weights times a vector of ±1, counted, compared, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .fifo import Fifo
from .popcount import Leaves, ProcessingElement, Weights, best_tree, width_of
from .technology import Technology

Store = Literal["block", "logic"]
LOGIC_DEPTH = 16
"""Weights of up to this many words are tables of logic (one LUT4 a bit); deeper ones lie in block memory."""


@dataclass(frozen=True, eq=False)
class Product:
    """What a unit computes: ``count[m] = number of k with x[k] == w[m, k]``, then ``count >= threshold``.

    ``weights``: uint8 0/1 ``[M, K]``; ``thresholds``: int64 ``[M]`` on counts, 0 (always) to K + 1 (never), or None: the
    unit then gives the counts. The sum of ±1 products is ``2 · count − K``.
    """

    weights: np.ndarray
    thresholds: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """M."""
        return self.weights.shape[0]

    @property
    def columns(self) -> int:
        """K."""
        return self.weights.shape[1]

    @property
    def result_bits(self) -> int:
        """Bits of one row's result."""
        return width_of(self.columns) if self.thresholds is None else 1

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Results int64 ``[..., M]`` of bits ``x`` 0/1 ``[..., K]``."""
        x, w = x.astype(np.int64), self.weights.astype(np.int64)
        count = self.columns - x.sum(-1)[..., None] - w.sum(-1) + 2 * (x @ w.T)
        return count if self.thresholds is None else (count >= self.thresholds).astype(np.int64)


class MatrixVector(wiring.Component):
    """A ``Product`` folded to ``pe`` rows × ``simd`` columns a cycle.

    Reads a vector as ``K / simd`` words, column 0 in bit 0 of the first, and gives ``M / pe`` words of ``pe`` results, row 0
    lowest in the first. It takes ``(M / pe) · (K / simd)`` cycles a vector, without a gap between vectors. The vector is
    kept for the passes after the first.

    The datapath never stalls: a pass begins only when the buffer behind the datapath has room for its result.
    """

    def __init__(
        self, product: Product, pe: int, simd: int, store: Store | None = None, technology: Technology | None = None
    ) -> None:
        if product.rows % pe or product.columns % simd:
            raise ValueError(f"{pe} × {simd} does not divide {product.rows} × {product.columns}")
        self.product, self.pe, self.simd, self.technology = product, pe, simd, technology or Technology()
        self.row_folds, self.column_folds = product.rows // pe, product.columns // simd
        self.store: Store = store or ("logic" if self.folds <= LOGIC_DEPTH else "block")
        """Where the weights lie."""
        super().__init__(
            {
                "input": In(stream.Signature(simd)),
                "output": Out(stream.Signature(pe * product.result_bits)),
            }
        )

    @property
    def folds(self) -> int:
        """Words of weights, and cycles a vector."""
        return self.row_folds * self.column_folds

    def _weight_words(self) -> list[int]:
        """One word of ``pe · simd`` bits for each cycle, PE 0 lowest."""
        tiles = self.product.weights.reshape(self.row_folds, self.pe, self.column_folds, self.simd)
        rows = tiles.transpose(0, 2, 1, 3).reshape(self.folds, self.pe * self.simd)
        packed = np.packbits(rows, axis=1, bitorder="little")
        return [int.from_bytes(row.tobytes(), "little") for row in packed]

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        start, last = Signal(), Signal()
        x, index, row = self._operands(m, start, last)
        results, latency = self._elements(m, x, index, row, start)
        done = _shifted(m, start & last, latency + 1, "done")
        m.submodules.results = fifo = Fifo(len(self.output.payload), -(-(latency + 2) // self.column_folds) + 2)
        m.d.comb += [fifo.input.payload.eq(results), fifo.input.valid.eq(done)]
        wiring.connect(m, wiring.flipped(self.output), fifo.output)
        # Room that no pass has claimed yet.
        room = Signal(range(fifo.depth + 1), init=fifo.depth)
        claim, freed = start & self._first, self.output.valid & self.output.ready
        with m.If(claim & ~freed):
            m.d.sync += room.eq(room - 1)
        with m.Elif(freed & ~claim):
            m.d.sync += room.eq(room + 1)
        m.d.comb += self._room.eq(room != 0)
        return m

    def _operands(self, m: Module, start: Signal, last: Signal) -> tuple[Signal, Signal, Signal]:
        """The words of the vector, registered, and the fold they belong to one cycle before; control of the input."""
        rows, columns = self.row_folds, self.column_folds
        column, row, index = Signal(range(columns)), Signal(range(rows)), Signal(range(self.folds))
        self._first, self._room = Signal(), Signal()
        fresh = Signal()
        x = Signal(self.simd, reset_less=True)
        m.d.comb += [
            self._first.eq(column == 0),
            last.eq(column == columns - 1),
            fresh.eq(row == 0),
            start.eq((self._room | ~self._first) & (self.input.valid | ~fresh)),
            self.input.ready.eq(fresh & (self._room | ~self._first)),
        ]
        with m.If(start):
            m.d.sync += column.eq(Mux(last, 0, column + 1))
            m.d.sync += index.eq(Mux(index == self.folds - 1, 0, index + 1))
            with m.If(last):
                m.d.sync += row.eq(Mux(row == rows - 1, 0, row + 1))
        if rows == 1:
            m.d.sync += x.eq(self.input.payload)
        elif columns == 1:
            with m.If(start & fresh):  # the register itself keeps the vector
                m.d.sync += x.eq(self.input.payload)
        else:
            m.submodules.vector = vector = Memory(shape=self.simd, depth=columns, init=[])
            write, read = vector.write_port(), vector.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(column), write.data.eq(self.input.payload), write.en.eq(start & fresh), read.addr.eq(column),
            ]  # fmt: skip
            m.d.sync += x.eq(Mux(fresh, self.input.payload, read.data))
        return x, index, row

    def _elements(self, m: Module, x: Signal, index: Signal, row: Signal, start: Signal) -> tuple[Value, int]:
        """The results of the processing elements as one word, and their latency after ``x``."""
        product, wide = self.product, width_of(self.product.columns)
        compares = product.thresholds is not None
        width = wide + compares
        weights: Weights = "memory" if self.folds > 1 else "constant"

        def make() -> ProcessingElement:
            return ProcessingElement(self.simd, width, weights, self.technology)

        kind = f"element_{self.simd}x{width}_{weights}"
        elements = [self.technology.place(m, make, f"element_{pe}", kind) for pe in range(self.pe)]
        tree = best_tree(self.simd, weights)
        early = 0
        if weights == "memory":
            words, late = self._rom(m, index, self._weight_words(), self.pe * self.simd, "weights", self.store)
            if late > 1:  # the vector waits for the weights
                early, waited = 1, Signal.like(x, reset_less=True)
                m.d.sync += waited.eq(x)
                x = waited
            for pe, element in enumerate(elements):
                m.d.comb += [element.x.eq(x), element.w.eq(words[pe * self.simd : (pe + 1) * self.simd])]
        else:
            early = 1
            m.submodules.leaves = leaves = Leaves(product.weights.tolist(), tree)
            m.d.comb += leaves.x.eq(x)
            m.d.comb += [element.x.eq(part) for element, part in zip(elements, leaves.rows, strict=True)]
        latency = tree.depth + 1 + early
        valid = _shifted(m, start, latency, "valid")
        fresh = _shifted(m, start & self._first, latency, "fresh")
        begin: Value = Const(0, self.pe * width)
        if product.thresholds is not None:
            offsets = ((1 << wide) - product.thresholds).reshape(-1, self.pe)
            limits = [sum(int(value) << (width * pe) for pe, value in enumerate(part)) for part in offsets]
            begin = Const(limits[0], self.pe * width)
            if self.row_folds > 1:
                passed = Signal(range(self.row_folds))
                limits_store: Store = "logic" if self.row_folds <= LOGIC_DEPTH else "block"
                coming = _shifted(m, start & self._first, latency - (1 if limits_store == "logic" else 2), "coming")
                with m.If(coming):
                    m.d.sync += passed.eq(Mux(passed == self.row_folds - 1, 0, passed + 1))
                begin, _ = self._rom(m, passed, limits, self.pe * width, "limits", limits_store)
        for pe, element in enumerate(elements):
            m.d.comb += [element.valid.eq(valid), element.fresh.eq(fresh)]
            m.d.comb += [element.offset.eq(begin[pe * width : (pe + 1) * width])]
        return Cat(*(element.result[wide] if compares else element.result for element in elements)), latency

    def _rom(
        self, m: Module, address: Value, words: list[int], width: int, name: str, store: Store
    ) -> tuple[Signal, int]:
        """Word ``address`` of a table, registered, and how many cycles later.

        Block memory is slow to give its data: they get a register of their own.
        """
        word = Signal(width, reset_less=True, name=name)
        if store == "logic":
            with m.Switch(address):
                for number, content in enumerate(words):
                    with m.Case(number):
                        m.d.sync += word.eq(Const(content, width))
            return word, 1
        memory = Memory(shape=width, depth=len(words), init=words, attrs={"rom_style": "block"})
        m.submodules[f"{name}_memory"] = memory
        port = memory.read_port()
        m.d.comb += port.addr.eq(address)
        m.d.sync += word.eq(port.data)
        return word, 2


def _shifted(m: Module, value: Value, cycles: int, name: str) -> Signal:
    """``value`` so many cycles later; false after reset."""
    line = Signal(max(1, cycles), name=name)
    m.d.sync += line.eq(Cat(value, line[:-1]))
    return line[-1]
