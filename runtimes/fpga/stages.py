"""What the FPGA computes, stage by stage, before anything is decided about hardware.

Between stages flows a stream of *elements*, a few bits each, lowest bit first: pixel after pixel in raster order, the
elements of a pixel in the order of its channels. A vector is one pixel. Each stage has a ``reference`` in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...opset._fixed import bounds
from .units.compare import Steps
from .units.matvec import Product
from .units.rescale import Rescaling
from .units.weigh import Weigh as WeighUnit
from .units.window import Sliding

INPUT = ""
"""Stands for the accelerator's input among ``Stage.inputs``."""


@dataclass(frozen=True)
class Flow:
    """A stream: ``height · width`` pixels of ``channels`` elements of ``bits`` bits, in two's complement where ``signed``.

    ``step``: what one more of an element is worth.
    """

    height: int
    width: int
    channels: int
    bits: int = 1
    signed: bool = False
    step: int = 1

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.height * self.width

    @property
    def frame_bits(self) -> int:
        """Bits of one image."""
        return self.pixels * self.channels * self.bits

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest element that its bits hold."""
        return bounds(self.bits, self.signed)


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of the pipeline. ``name``: a Verilog identifier; ``nodes``: those of the packed model that it computes.

    ``inputs``: names of the stages that it reads, ``INPUT`` for the accelerator's input; without any, the stage before it.
    """

    name: str
    nodes: tuple[str, ...]
    source: Flow
    result: Flow
    inputs: tuple[str, ...] = field(default=(), kw_only=True)

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Elements int64 ``[height, width, channels]`` to elements."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Multiply(Stage):
    """A matrix-vector product (and thresholds) for every pixel."""

    product: Product

    @property
    def macs(self) -> int:
        """Multiplications and additions of one image."""
        return self.source.pixels * self.product.rows * self.product.columns

    def reference(self, x: np.ndarray) -> np.ndarray:
        """See ``Product.reference``."""
        return self.product.reference(x)


@dataclass(frozen=True, eq=False)
class Slide(Stage):
    """The windows of a convolution: each output pixel has as channels all elements under the kernel."""

    sliding: Sliding

    def reference(self, x: np.ndarray) -> np.ndarray:
        """See ``Sliding.reference``."""
        return self.sliding.reference(x)


@dataclass(frozen=True, eq=False)
class Pool(Stage):
    """Max-pooling of bits by windows side by side; the minimum where ``flip`` (0/1 ``[channels]``) is 1."""

    kernel: tuple[int, int]
    flip: np.ndarray

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The largest of each window, in the sense of ``flip``."""
        (kh, kw), (height, width) = self.kernel, (self.result.height, self.result.width)
        cut = (x ^ self.flip)[: height * kh, : width * kw]
        return cut.reshape(height, kh, width, kw, -1).max((1, 3)) ^ self.flip


@dataclass(frozen=True, eq=False)
class Largest(Stage):
    """The largest element of each window, channel by channel; the least where ``flip`` (0/1 ``[channels]``) is 1."""

    flip: np.ndarray

    @property
    def positions(self) -> int:
        """Pixels of a window."""
        return self.source.channels // self.result.channels

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Windows ``[height, width, positions · channels]`` to ``[height, width, channels]``."""
        elements = x.reshape(*x.shape[:2], self.positions, -1)
        return np.where(self.flip, elements.min(2), elements.max(2))


@dataclass(frozen=True, eq=False)
class Depthwise(Stage):
    """Each channel of each window times its own weights, int64 ``[positions, channels]``: their sum."""

    weights: np.ndarray

    @property
    def macs(self) -> int:
        """Multiplications and additions of one image."""
        return self.source.pixels * self.weights.size

    def reference(self, x: np.ndarray) -> np.ndarray:
        """Windows ``[height, width, positions · channels]`` to sums ``[height, width, channels]``."""
        if self.source.signed:  # codes of the same bits mean the same
            half = 1 << (self.source.bits - 1)
            x = np.where(x >= half, x - 2 * half, x)
        return (x.reshape(*x.shape[:2], *self.weights.shape) * self.weights).sum(2)


@dataclass(frozen=True, eq=False)
class Weigh(Stage):
    """Each group of neighbours becomes its sum with ``coefficients``."""

    coefficients: tuple[int, ...]
    most: int
    """The largest element that comes in."""

    def reference(self, x: np.ndarray) -> np.ndarray:
        """See ``units.weigh``."""
        return WeighUnit.reference(self.coefficients, x)


@dataclass(frozen=True, eq=False)
class Compare(Stage):
    """A quantizer of each channel."""

    steps: Steps

    def reference(self, x: np.ndarray) -> np.ndarray:
        """See ``Steps.reference``."""
        return self.steps.reference(x)


@dataclass(frozen=True, eq=False)
class Rescale(Stage):
    """The fixed-point epilogue."""

    scaling: Rescaling

    def reference(self, x: np.ndarray) -> np.ndarray:
        """See ``Rescaling.reference``."""
        return self.scaling.reference(x)


@dataclass(frozen=True, eq=False)
class Join(Stage):
    """The sum of two streams, ``source`` and ``other``, each times its step."""

    other: Flow

    def reference(self, x: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """The sum of ``x`` and ``other``, both ``[height, width, channels]``."""
        assert other is not None
        return x * self.source.step + other * self.other.step


def sources_of(stages: Sequence[Stage]) -> list[tuple[int, ...]]:
    """Numbers of the stages that each one reads; −1 is the accelerator's input."""
    places = {stage.name: number for number, stage in enumerate(stages)} | {INPUT: -1}
    return [
        tuple(places[name] for name in stage.inputs) if stage.inputs else (number - 1,)
        for number, stage in enumerate(stages)
    ]


def compute(stages: Sequence[Stage], x: np.ndarray) -> np.ndarray:
    """What the stages make of the elements of one image, one behind the other."""
    results: dict[int, np.ndarray] = {-1: x.astype(np.int64)}
    for number, (stage, sources) in enumerate(zip(stages, sources_of(stages), strict=True)):
        given = [results[source] for source in sources]
        flows = [stage.source, *([stage.other] if isinstance(stage, Join) else [])]
        maps = [v.reshape(f.height, f.width, f.channels) for v, f in zip(given, flows, strict=True)]
        results[number] = found = stage.reference(*maps)
        low, high = stage.result.ends
        assert low <= found.min() and found.max() <= high, stage.name
    return results[len(stages) - 1]
