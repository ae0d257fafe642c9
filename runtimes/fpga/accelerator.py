"""The pipeline: every stage as hardware, one behind the other, between an input and an output stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .branches import shelves
from .costs import Fold
from .stages import Compare, Depthwise, Join, Largest, Multiply, Pool, Rescale, Slide, Stage, Weigh, sources_of
from .units import branch, compare, depthwise, largest, rescale, weigh
from .units.branch import Fork, Shelf
from .units.fifo import Fifo
from .units.matvec import MatrixVector
from .units.pool import MaxPool
from .units.technology import Technology
from .units.unrolled import SpanningMatrixVector
from .units.width import converters
from .units.window import BUFFER_BITS, Window


class Accelerator(wiring.Component):
    """A partition's stages as one component.

    ``input`` takes an image as words of its first unit's width, element 0 in the lowest bits of the first word;
    ``output`` gives a result likewise. ``frame_in_bits`` and ``frame_out_bits`` are the bits of one image and one result;
    the last word of each is padded with zeros.
    """

    def __init__(self, stages: Sequence[Stage], folds: Sequence[Fold], technology: Technology | None = None) -> None:
        self.technology = technology or Technology()
        self.stages, self.folds = list(stages), list(folds)
        self.units: list[tuple[str, wiring.Component]] = []
        self._wires: list[tuple[Any, Any]] = []
        made = [make_unit(stage, fold, self.technology) for stage, fold in zip(stages, folds, strict=True)]
        sources, waits = sources_of(stages), shelves(stages, [fold.simd for fold in folds])
        readers = [(n, port) for n, those in enumerate(sources) for port, source in enumerate(those) if source == -1]
        first = made[readers[0][0]]
        self.frame_in_bits, self.frame_out_bits = stages[0].source.frame_bits, stages[-1].result.frame_bits
        self.input_width, self.output_width = _width(first.input), _width(made[-1].output)
        super().__init__(
            {
                "input": In(stream.Signature(self.input_width)),
                "output": Out(stream.Signature(self.output_width)),
            }
        )
        taps = {-1: self._taps("input", wiring.flipped(self.input), self.input_width, len(readers))}
        for number, (stage, fold, unit) in enumerate(zip(stages, folds, made, strict=True)):
            for port, source in enumerate(sources[number]):
                wanted = unit.other if port else unit.input
                name = f"{stage.name}_other" if port else stage.name
                tail, width = taps[source].pop(0)
                between = converters(width, _width(wanted))
                for index, converter in enumerate(between):
                    tail = self._behind(tail, f"{name}_width{index}", converter)
                depth = waits.get((number, port)) or (waiting(stage, fold) if source >= 0 else 0)
                if depth:
                    tail = self._behind(tail, f"{name}_fifo", buffer(_width(wanted), depth))
                self._wires.append((tail, wanted))
            self.units.append((stage.name, unit))
            count = sum(those.count(number) for those in sources)
            taps[number] = self._taps(stage.name, unit.output, _width(unit.output), count)
        self._wires.append((made[-1].output, None))

    def _behind(self, tail: Any, name: str, unit: Any) -> Any:
        self._wires.append((tail, unit.input))
        self.units.append((name, unit))
        return unit.output

    def _taps(self, name: str, tail: Any, width: int, count: int) -> list[tuple[Any, int]]:
        """A stream for each of ``count`` readers."""
        if count < 2:
            return [(tail, width)]
        fork = Fork(width, count)
        self._wires.append((tail, fork.input))
        self.units.append((f"{name}_fork", fork))
        return [(getattr(fork, f"output_{number}"), width) for number in range(count)]

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        for name, unit in self.units:
            m.submodules[name] = unit
        for tail, port in self._wires:
            wiring.connect(m, tail, wiring.flipped(self.output) if port is None else port)
        return m


def buffer(width: int, depth: int) -> wiring.Component:
    """A buffer in distributed memory, or in block memory where it is large."""
    return Shelf(width, depth) if width * depth > BUFFER_BITS else Fifo(width, depth)


def make_unit(stage: Stage, fold: Fold, technology: Technology) -> wiring.Component:
    """The hardware of one stage."""
    if isinstance(stage, Multiply) and fold.spanning:
        return SpanningMatrixVector(stage.product, fold.pe, fold.simd, fold.store, technology)
    if isinstance(stage, Multiply):
        return MatrixVector(stage.product, fold.pe, fold.simd, fold.store, technology)
    if isinstance(stage, Slide):
        return Window(stage.sliding, fold.simd, stage.source.bits)
    if isinstance(stage, Pool):
        return MaxPool(stage.source.height, stage.source.width, stage.kernel, stage.flip, fold.simd)
    if isinstance(stage, Largest):
        return largest.Largest(stage.positions, stage.flip, fold.simd, stage.source.bits, stage.source.signed)
    if isinstance(stage, Depthwise):
        source = stage.source
        return depthwise.Depthwise(stage.weights, fold.simd, source.bits, source.signed, technology)
    if isinstance(stage, Weigh):
        return weigh.Weigh(stage.coefficients, stage.most, fold.simd)
    if isinstance(stage, Compare):
        return compare.Compare(stage.steps, stage.source.bits, stage.source.signed, fold.simd, technology)
    if isinstance(stage, Rescale):
        return rescale.Rescale(stage.scaling, stage.source.bits, stage.source.signed, fold.simd, technology)
    if isinstance(stage, Join):
        left, right = stage.source, stage.other
        sizes, factors = ((left.bits, left.signed), (right.bits, right.signed)), (left.step, right.step)
        return branch.Join(sizes, factors, stage.result.bits, fold.simd)
    raise TypeError(f"no unit for {type(stage).__name__}")


def waiting(stage: Stage, fold: Fold) -> int:
    """Words of the next vector that must wait in front of a unit while it goes over the last one again."""
    if isinstance(stage, Multiply):
        columns = stage.product.columns // fold.simd
        return columns if columns > 1 and stage.product.rows > fold.pe else 0
    return 0


def _width(port: object) -> int:
    return len(port.payload)  # type: ignore[attr-defined]
