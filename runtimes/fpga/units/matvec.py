"""The matrix-vector-threshold unit: rows of ±1 weights times a vector of ±1, counted, compared, streamed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .fifo import Fifo
from .popcount import Leaves, ProcessingElement, Weights, best_tree, weighing, width_of
from .technology import Technology

Store = Literal["block", "logic"]
GROUP = 4
"""Processing elements that read one copy of the vector."""
LOGIC_DEPTH = 16
"""Weights of up to this many words are tables of logic (one LUT4 a bit); deeper ones lie in block memory."""


@dataclass(frozen=True)
class Border:
    """Which thresholds a pixel has, where windows reach over the edge: class ``rows[y] · (1 + max(columns)) + columns[x]``."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def classes(self) -> np.ndarray:
        """Class of every pixel, in raster order."""
        return (np.array(self.rows)[:, None] * (1 + max(self.columns)) + np.array(self.columns)).reshape(-1)


@dataclass(frozen=True, eq=False)
class Product:
    """What a unit computes: ``count[m] = sum over k of x[k] where w[m, k] is 1, else 2^planes − 1 − x[k]``.

    For bits that is how often x and w agree, and the sum of ±1 products is ``2 · count − K``. With ``masks`` elements
    whose weight is 0 do not count at all. ``signed`` elements are in two's complement; what counts is x + 2^(planes − 1).
    ``weights``: uint8 0/1 ``[M, K]``. ``thresholds``: int64 ``[M]`` on counts, or one row for each class of ``border``,
    ``[classes, M]``: from 0 (always reached) to one more than can be (never); the results are bits. Without them they are
    the counts.
    """

    weights: np.ndarray
    thresholds: np.ndarray | None = None
    planes: int = 1
    border: Border | None = None
    masks: bool = False
    signed: bool = False

    @property
    def rows(self) -> int:
        """M."""
        return self.weights.shape[0]

    @property
    def columns(self) -> int:
        """K."""
        return self.weights.shape[1]

    @property
    def most(self) -> int:
        """The largest count."""
        return self.columns * ((1 << self.planes) - 1)

    @property
    def result_bits(self) -> int:
        """Bits of one row's result."""
        return width_of(self.most) if self.thresholds is None else 1

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Results int64 ``[..., M]`` of elements ``x`` ``[..., K]``; all pixels of an image where there is a border."""
        x, w = x.astype(np.int64), self.weights.astype(np.int64)
        if self.signed:  # codes of the same bits mean the same
            half = 1 << (self.planes - 1)
            x = np.where(x >= half, x - 2 * half, x) + half
        top = (1 << self.planes) - 1
        count = x @ w.T
        if not self.masks:
            count = 2 * count - x.sum(-1)[..., None] + top * (self.columns - w.sum(-1))
        if self.thresholds is None:
            return count
        limits = self.thresholds
        if self.border is not None:
            limits = limits[self.border.classes()].reshape(*x.shape[:-1], self.rows)
        return (count >= limits).astype(np.int64)


def weights_of(product: Product, folds: int) -> Weights:
    """How the weights of a product enter the trees: as constants only where there is one fold of signs."""
    return "memory" if folds > 1 or product.planes > 1 or product.masks else "constant"


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
        self.weights: Weights = weights_of(product, self.folds)
        self.width = width_of(product.most) + (product.thresholds is not None)
        self._limits = 0 if product.thresholds is None else product.thresholds.size // pe
        self._limits_store: Store = "logic" if self._limits <= LOGIC_DEPTH or simd < 3 else "block"
        super().__init__(
            {
                "input": In(stream.Signature(simd * product.planes)),
                "output": Out(stream.Signature(pe * product.result_bits)),
            }
        )

    @property
    def folds(self) -> int:
        """Words of weights, and cycles a vector."""
        return self.row_folds * self.column_folds

    @property
    def _ones(self) -> int:
        """1 at the lowest bit of every element of a word."""
        return sum(1 << (place * self.product.planes) for place in range(self.simd))

    @property
    def groups(self) -> int:
        """Groups of elements that work a cycle after one another."""
        return 1 if self.weights == "constant" else -(-self.pe // GROUP)

    @cached_property
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
        x, index = self._operands(m, start, last)
        results, latency = self._elements(m, x, index, start)
        done = _line(m, start & last, latency + 1, "done")[-1]
        m.submodules.results = fifo = Fifo(len(self.output.payload), -(-(latency + 4) // self.column_folds) + 3)
        m.d.comb += [fifo.input.payload.eq(results), fifo.input.valid.eq(done)]
        wiring.connect(m, wiring.flipped(self.output), fifo.output)
        # Room that no pass has claimed yet. What is tested is a cycle old: one place more makes up for it.
        room = Signal(range(fifo.depth + 1), init=fifo.depth)
        # And what is free again is known a cycle late, so that no logic of the next unit is in front of the counter.
        claim, freed = start & self._first, Signal()
        m.d.sync += freed.eq(self.output.valid & self.output.ready)
        with m.If(claim & ~freed):
            m.d.sync += room.eq(room - 1)
        with m.Elif(freed & ~claim):
            m.d.sync += room.eq(room + 1)
        m.d.sync += self._room.eq(room > 1)
        return m

    def _operands(self, m: Module, start: Signal, last: Signal) -> tuple[Signal, Signal]:
        """The words of the vector, registered, and the fold they belong to one cycle before; control of the input."""
        rows, columns = self.row_folds, self.column_folds
        column, row, index = Signal(range(columns)), Signal(range(rows)), Signal(range(self.folds))
        # All that decides is in registers: the handshake is a table behind them, however far the neighbour is.
        self._first, self._room = Signal(init=1), Signal()
        fresh = Signal(init=1)
        x = Signal(len(self.input.payload), reset_less=True)
        given: Value = self.input.payload
        if self.product.signed:  # two's complement, and 2^(n − 1) more: the highest bit of each element turns round
            given = given ^ Const((1 << (self.product.planes - 1)) * self._ones, len(x))
        m.d.comb += [
            last.eq(column == columns - 1),
            start.eq((self._room | ~self._first) & (self.input.valid | ~fresh)),
            self.input.ready.eq(fresh & (self._room | ~self._first)),
        ]
        with m.If(start):
            m.d.sync += [column.eq(Mux(last, 0, column + 1)), self._first.eq(last)]
            m.d.sync += index.eq(Mux(index == self.folds - 1, 0, index + 1))
            with m.If(last):
                m.d.sync += [row.eq(Mux(row == rows - 1, 0, row + 1)), fresh.eq(row == rows - 1)]
        if rows == 1:
            m.d.sync += x.eq(given)
        elif columns == 1:
            with m.If(start & fresh):  # the register itself keeps the vector
                m.d.sync += x.eq(given)
        else:
            m.submodules.vector = vector = Memory(shape=len(x), depth=columns, init=[])
            write, read = vector.write_port(), vector.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(column), write.data.eq(given), write.en.eq(start & fresh), read.addr.eq(column),
            ]  # fmt: skip
            m.d.sync += x.eq(Mux(fresh, given, read.data))
        return x, index

    def _elements(self, m: Module, x: Signal, index: Signal, start: Signal) -> tuple[Value, int]:
        """The results of the processing elements as one word, and their latency after ``x``.

        Elements form groups. A group has registers of its own for what all of them read, and hands it to the next group a
        cycle later: no net of the design is long. Results wait until those of the last group are there.
        """
        tree = best_tree(self.simd, self.weights)
        late = self.folds > 1 and self.store == "block"  # the vector waits for the weights
        latency = tree.depth + weighing(self.product.planes) + 2 + late
        valid = _line(m, start, latency + self.groups, "valid")
        fresh = _line(m, start & self._first, latency + self.groups, "fresh")
        results: list[Value] = []
        row: Value | None = None
        for group in range(self.groups):
            elements = range(self.pe) if self.groups == 1 else range(group * GROUP, min(self.pe, (group + 1) * GROUP))
            m.submodules[f"group_{group}"] = part = Module()
            if self.weights == "memory":
                x, index = _later(part, x, "vector"), _later(part, index, "fold")
            words, row = self._weights(part, index, elements), self._row(m, part, row, fresh, latency)
            operands = [_later(part, x, "waited") if late else x] * len(elements)
            if self.weights == "constant":
                part.submodules.leaves = leaves = Leaves(
                    self.product.weights[elements.start : elements.stop].tolist(), tree
                )
                part.d.comb += leaves.x.eq(x)
                operands = list(leaves.rows)
            begin = self._begin(part, row, elements)
            made: list[Value] = []
            for number, pe in enumerate(elements):
                element = self.technology.place(part, self._element, f"element_{pe}", self._kind)
                part.d.comb += [
                    element.x.eq(operands[number]),
                    element.valid.eq(valid[latency + group - 1]),
                    element.fresh.eq(fresh[latency + group - 1]),
                    element.offset.eq(begin[number * self.width : (number + 1) * self.width]),
                ]
                if words is not None:
                    part.d.comb += element.w.eq(words[number * self.simd : (number + 1) * self.simd])
                made.append(element.result[-1] if self.product.thresholds is not None else element.result)
            waiting: Value = Cat(*made)
            for _ in range(self.groups - 1 - group):
                waiting = _later(part, waiting, "waiting")
            results.append(waiting)
        return Cat(*results), latency + self.groups - 1

    @property
    def _kind(self) -> str:
        planes = f"_{self.product.planes}bit" if self.product.planes > 1 else ""
        masks = "_masks" if self.product.masks else ""
        return f"element_{self.simd}x{self.width}_{self.weights}{planes}{masks}"

    def _element(self) -> ProcessingElement:
        return ProcessingElement(
            self.simd, self.width, self.weights, self.technology, self.product.planes, self.product.masks
        )

    def _weights(self, m: Module, index: Value, elements: range) -> Value | None:
        """The words of weights of some elements; None where they are constants."""
        if self.weights == "constant":
            return None
        width = len(elements) * self.simd
        words = [(word >> (elements.start * self.simd)) & ((1 << width) - 1) for word in self._weight_words]
        return rom(m, index, words, width, "weights", self.store, self.technology)

    def _row(self, m: Module, part: Module, row: Value | None, fresh: Signal, latency: int) -> Value | None:
        """Which thresholds the sums about to begin have, for the next group of elements; None where they never change."""
        if self._limits <= 1:
            return None
        if row is not None:
            return _later(part, row, "limit")
        border = self.product.border
        passed = Signal(range(self.row_folds), name="row")
        ahead = 2 if self._limits_store == "logic" else 3
        step = fresh[latency - ahead - (border is not None)]
        with m.If(step):
            m.d.sync += passed.eq(Mux(passed == self.row_folds - 1, 0, passed + 1))
        if border is None:
            return passed
        # Count the pixels as their first sums come near.
        x, y = Signal(range(len(border.columns)), name="x"), Signal(range(len(border.rows)), name="y")
        with m.If(step & (passed == self.row_folds - 1)):
            m.d.sync += x.eq(Mux(x == len(border.columns) - 1, 0, x + 1))
            with m.If(x == len(border.columns) - 1):
                m.d.sync += y.eq(Mux(y == len(border.rows) - 1, 0, y + 1))
        places = []
        for counter, classes, worth in ((x, border.columns, 1), (y, border.rows, 1 + max(border.columns))):
            place = Signal(range(self._limits), name="place")
            with m.Switch(counter):
                for index, number in enumerate(classes):
                    if number:
                        with m.Case(index):
                            m.d.comb += place.eq(number * worth * self.row_folds)
            places.append(place)
        return _later(m, (places[0] + places[1] + passed)[: len(places[0])], "limit")

    def _begin(self, m: Module, row: Value | None, elements: range) -> Value:
        """What the sums of some elements begin at: 2^n − threshold, or 0."""
        width = len(elements) * self.width
        if self.product.thresholds is None:
            return Const(0, width)
        # By class of border, then by rows of the matrix.
        offsets = ((1 << (self.width - 1)) - self.product.thresholds).reshape(-1, self.pe)
        words = [sum(int(part[pe]) << (self.width * number) for number, pe in enumerate(elements)) for part in offsets]
        if row is None:
            return Const(words[0], width)
        return rom(m, row, words, width, "limits", self._limits_store, self.technology)


def rom(
    m: Module, address: Value, words: list[int], width: int, name: str, store: Store, technology: Technology
) -> Value:
    """Word ``address`` of a table: a cycle later from logic, two from block memory.

    Block memory is slow to give its data: they get a register of their own.
    """
    if len(words) == 1:
        return Const(words[0], width)
    word = Signal(width, reset_less=True, name=name)
    if store == "logic":
        table = technology.table(m, address, words, width, name)
        if table is not None:
            m.d.sync += word.eq(table)
            return word
        with m.Switch(address):
            for number, content in enumerate(words):
                with m.Case(number):
                    m.d.sync += word.eq(Const(content, width))
        return word
    m.d.sync += word.eq(_block_memory(m, address, words, width, name, technology.port_shapes))
    return word


def _block_memory(
    m: Module, address: Value, words: list[int], width: int, name: str, shapes: tuple[tuple[int, int], ...]
) -> Value:
    """Word ``address`` a cycle later, from block memory.

    ``shapes``: bits and words of a port of a block, widest first, where each port has a register of its own behind it; none
    where it is left to synthesis. Memories are cut so that such a register is all that lies behind a block:

    * of words that are wider than a port and half as many as a block holds, the halves lie behind one another, and each
      port reads one: as many blocks as of whole words, which have no such registers;
    * of words that are more than the widest port's, each block holds a few bits of all: no multiplexer chooses between blocks.
    """
    span = 1 << (len(words) - 1).bit_length()
    bits, depth = shapes[0] if shapes else (0, span)
    halves = 0 < bits < width and 2 * span <= depth
    step = bits if halves else width if span <= depth else next((b for b, deep in shapes if deep >= span), width)
    padded = [*words, *[0] * (span - len(words))]
    data: list[Value] = []
    for number, start in enumerate(range(0, width, 2 * step if halves else step)):
        starts = (start, start + step) if halves else (start,)
        ports = [(first, min(step, width - first)) for first in starts if first < width]
        wide, low = max(bits for _, bits in ports), address[: span.bit_length() - 1]
        if len(ports) > 1:
            content = [word >> first & ((1 << bits) - 1) for first, bits in ports for word in padded]
            places = [Cat(low, Const(half, 1)) for half in range(2)]
        else:
            content, places = [word >> start & ((1 << wide) - 1) for word in words], [address]
        memory = Memory(shape=wide, depth=len(content), init=content, attrs={"rom_style": "block"})
        m.submodules[f"{name}_memory{number or ''}"] = memory
        for place, (_, bits) in zip(places, ports, strict=True):
            port = memory.read_port()
            m.d.comb += port.addr.eq(place)
            data.append(port.data[:bits])
    return Cat(*data)


def _later(m: Module, value: Value, name: str) -> Signal:
    """``value`` a cycle later."""
    register = Signal(len(value), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register


def _line(m: Module, value: Value, cycles: int, name: str) -> Signal:
    """``value`` in each of the last cycles: bit 0 one cycle ago; false after reset."""
    line = Signal(cycles, name=name)
    m.d.sync += line.eq(Cat(value, line[:-1]))
    return line
