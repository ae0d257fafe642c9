"""The pipeline: every stage as hardware, one behind the other, between an input and an output stream."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .folding import Fold
from .stages import Compare, Multiply, Pool, Slide, Stage, Weigh
from .units import compare, weigh
from .units.fifo import Fifo
from .units.matvec import MatrixVector
from .units.pool import MaxPool
from .units.technology import Technology
from .units.unrolled import SpanningMatrixVector
from .units.width import converters
from .units.window import Window


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
        for stage, fold in zip(stages, folds, strict=True):
            unit = make_unit(stage, fold, self.technology)
            if self.units:
                between = converters(_width(self.units[-1][1].output), _width(unit.input))
                for number, converter in enumerate(between):
                    self.units.append((f"{stage.name}_width{number}", converter))
            if self.units and (depth := waiting(stage, fold)):
                self.units.append((f"{stage.name}_fifo", Fifo(_width(unit.input), depth)))
            self.units.append((stage.name, unit))
        self.frame_in_bits, self.frame_out_bits = stages[0].source.frame_bits, stages[-1].result.frame_bits
        self.input_width, self.output_width = _width(self.units[0][1].input), _width(self.units[-1][1].output)
        super().__init__(
            {
                "input": In(stream.Signature(self.input_width)),
                "output": Out(stream.Signature(self.output_width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        before = wiring.flipped(self.input)
        for name, unit in self.units:
            m.submodules[name] = unit
            wiring.connect(m, before, unit.input)
            before = unit.output
        wiring.connect(m, before, wiring.flipped(self.output))
        return m


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
    if isinstance(stage, Weigh):
        return weigh.Weigh(stage.coefficients, stage.most, fold.simd)
    if isinstance(stage, Compare):
        return compare.Compare(stage.steps, stage.source.bits, stage.source.signed, fold.simd, technology)
    raise TypeError(f"no unit for {type(stage).__name__}")


def waiting(stage: Stage, fold: Fold) -> int:
    """Words of the next vector that must wait in front of a unit while it goes over the last one again."""
    if isinstance(stage, Multiply):
        columns = stage.product.columns // fold.simd
        return columns if columns > 1 and stage.product.rows > fold.pe else 0
    return 0


def _width(port: object) -> int:
    return len(port.payload)  # type: ignore[attr-defined]
