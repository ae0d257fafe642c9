"""What the FPGA computes, stage by stage, before anything is decided about hardware.

Between stages flows a stream of *elements*, a few bits each, lowest bit first: pixel after pixel in raster order, the
elements of a pixel in the order of its channels. A vector is one pixel. Each stage has a ``reference`` in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .units.compare import Steps
from .units.matvec import Product
from .units.weigh import Weigh as WeighUnit
from .units.window import Sliding


@dataclass(frozen=True)
class Flow:
    """A stream: ``height · width`` pixels of ``channels`` elements of ``bits`` bits, in two's complement where ``signed``."""

    height: int
    width: int
    channels: int
    bits: int = 1
    signed: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.height * self.width

    @property
    def frame_bits(self) -> int:
        """Bits of one image."""
        return self.pixels * self.channels * self.bits


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of the pipeline. ``name``: a Verilog identifier; ``nodes``: those of the packed model that it computes."""

    name: str
    nodes: tuple[str, ...]
    source: Flow
    result: Flow

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
