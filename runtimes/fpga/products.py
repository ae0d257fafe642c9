"""Sums of products as hardware counts them: what a count means, and thresholds on sums as thresholds on counts.

An element x is ``step · code + least`` with codes of a few bits; a weight is the sum of its planes, each ``factor`` times a bit
(0 or 1, or −1 or 1). The unit counts each plane by itself: plane j of row m is row ``m · planes + j`` of the product, and
``Weigh`` adds them up with their factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .stages import Compare, Depthwise, Flow, Multiply, Stage, Weigh
from .units.compare import Steps
from .units.depthwise import result_of
from .units.matvec import Border, Product
from .units.weigh import bits_of, span_of


class NotOnFpga(Exception):
    """Why a node cannot run on the FPGA, in a few words."""


@dataclass(frozen=True)
class Numbers:
    """What bits mean: x = ``step`` · code + ``least`` with codes of ``planes`` bits, w = Σ ``factors[j]`` · v_j.

    ``signed``: elements come in two's complement, and a code is 2^(planes − 1) more. ``masks``: v is the bit, not ±1.
    """

    planes: int
    step: int
    least: int
    factors: tuple[int, ...] = (1,)
    masks: bool = False
    signed: bool = False

    @property
    def padded(self) -> int:
        """The code of an element whose bits are 0: what padding puts there."""
        return 1 << (self.planes - 1) if self.signed else 0

    @property
    def nothing(self) -> int | None:
        """The code of padding, if that is the number 0."""
        return self.padded if self.step * self.padded + self.least == 0 else None


def numbers_of(operator: str, attrs: Mapping[str, Any]) -> Numbers:
    """What a product's operator says of its operands. Raises ``NotOnFpga`` where there is no unit for such numbers."""
    if operator.startswith("Binary"):
        return Numbers(1, 2, -1)
    if operator.startswith("Integer"):
        factors = (*(1 << i for i in range(7)), -128)
        return Numbers(8, 1, -128, factors, True, True)
    coefficients, factors = [int(c) for c in attrs["x_coeffs"]], tuple(int(c) for c in attrs["w_coeffs"])
    step, least, planes = coefficients[0], int(attrs["x_offset"]), len(coefficients)
    is_signed = planes > 1 and coefficients[-1] == -(step << (planes - 1))
    if is_signed:
        coefficients, least = [*coefficients[:-1], -coefficients[-1]], least - (step << (planes - 1))
    if step <= 0 or coefficients != [step << i for i in range(planes)]:
        raise NotOnFpga(f"the levels of its input have the coefficients {list(attrs['x_coeffs'])}, no powers of two")
    return Numbers(planes, step, least, factors, not attrs["bipolar"], is_signed)


class Accumulator:
    """The sums of weights 0/1 ``[q, M, K]``: each is ``slope · element + offset`` of what the stages give.

    ``border``: classes of pixels, and which columns are real in each, 0/1 ``[classes, K]``.
    """

    def __init__(self, numbers: Numbers, weights: np.ndarray, border: tuple[Border, np.ndarray] | None = None) -> None:
        self.numbers, self.weights = numbers, weights.astype(np.int64)
        self.border = None if border is None else border[0]
        self._real = np.ones((1, weights.shape[2]), np.int64) if border is None else border[1]
        self._steps: Steps | None = None
        self._fused: Product | None = None

    @property
    def slope(self) -> int:
        """What one more of an element adds to its sum."""
        return self.numbers.step * (self.numbers.factors[0] if len(self.numbers.factors) == 1 else 1)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 ``[classes, M]``.

        Over real columns the sum is Σ v · (step · code + least). Padded columns are counted too, with the code of padding,
        and where v is ±1 a column with v = −1 counts top − code.
        """
        n, real = self.numbers, self._real
        top = (1 << n.planes) - 1
        total = np.zeros((len(real), self.weights.shape[1]), np.int64)
        for factor, bits in zip(n.factors, self.weights, strict=True):
            v = bits if n.masks else 2 * bits - 1
            part = n.least * (real @ v.T) - n.step * n.padded * ((1 - real) @ v.T)
            total += factor * (part if n.masks else part - n.step * top * (1 - bits).sum(1))
        return total

    def thresholded(self, limits: np.ndarray, flip: np.ndarray, codes: tuple[int, ...], bits: int) -> Accumulator:
        """These sums behind a quantizer: codes by how many t have ``(sum >= limits[t]) xor flip``, limits ``[T, M or 1]``.

        With a negative slope ``sum >= t`` is ``element < ...``: the number of steps is then counted from the other end.
        """
        rows = self.weights.shape[1]
        limits, falls = np.broadcast_to(limits, (len(limits), rows)).T, np.broadcast_to(flip.astype(bool), rows)
        offsets = self.offsets[:, :, None]
        if self.slope > 0:
            found = -((offsets - limits) // self.slope)
        else:
            found, falls = (offsets - limits) // -self.slope + 1, ~falls
        one = len(self.weights) == 1 and not self.numbers.masks and codes == (0, 1)
        if one:
            self._fused = self._one_threshold(found[:, :, 0], falls)
        else:
            self._steps = Steps(np.sort(found, axis=2), falls.astype(np.int64), codes, bits, self.border)
        return self

    def _one_threshold(self, counts: np.ndarray, falls: np.ndarray) -> Product:
        """A comparison within the product: a row whose comparison falls is the row of opposite weights."""
        weights, numbers = self.weights[0], self.numbers
        most = weights.shape[1] * ((1 << numbers.planes) - 1)
        counts = np.clip(np.where(falls, most - counts + 1, counts), 0, most + 1)
        kept = np.where(falls[:, None], 1 - weights, weights).astype(np.uint8)
        limits = counts if self.border is not None else counts[0]
        return Product(kept, limits, numbers.planes, self.border, signed=numbers.signed)

    def meaning(self) -> dict[str, Any]:
        """What the elements of the result mean: bits behind thresholds, else sums, as a line of each channel."""
        if self._fused is not None or self._steps is not None:
            return {"kind": "bits"}
        if (self.offsets != self.offsets[0]).any():
            raise NotOnFpga("it pads with zeros, and its sums have no thresholds that could take them away again")
        is_signed = len(self.weights) > 1 and min(self.numbers.factors) < 0
        return {"kind": "sums", "scale": self.slope, "offset": self.offsets[0].tolist(), "signed": is_signed}

    def stages(self, name: str, nodes: tuple[str, ...], flow: Flow) -> list[Stage]:
        """The stages behind vectors of ``flow``."""
        n, (planes, rows, columns) = self.numbers, self.weights.shape
        if self._fused is not None:
            return [Multiply(name, nodes, flow, Flow(flow.height, flow.width, rows), self._fused)]
        interleaved = self.weights.transpose(1, 0, 2).reshape(planes * rows, columns).astype(np.uint8)
        product = Product(interleaved, None, n.planes, masks=n.masks, signed=n.signed)
        made: list[Stage] = []
        result = Flow(flow.height, flow.width, planes * rows, product.result_bits)
        made.append(Multiply(name, nodes, flow, result, product))
        if planes > 1:
            bits, is_signed = bits_of(*span_of(n.factors, product.most))
            result = Flow(flow.height, flow.width, rows, bits, is_signed)
            made.append(Weigh(f"{name}_planes", nodes[:1], made[-1].result, result, n.factors, product.most))
        if self._steps is not None:
            result = Flow(flow.height, flow.width, rows, self._steps.bits)
            made.append(Compare(f"{name}_levels", nodes[1:], made[-1].result, result, self._steps))
        return made


class DepthwiseSums(Accumulator):
    """The sums of a depthwise convolution, channel by channel, with integer weights ``[positions, C]``.

    Each is ``slope · element + offset`` of Σ w · e, where e is the number that an element's bits are by themselves, in two's
    complement or not: padding, whose bits are 0, adds nothing. ``border``: classes of pixels, and which positions are real in
    each, 0/1 ``[classes, positions]``.
    """

    def __init__(self, numbers: Numbers, weights: np.ndarray, border: tuple[Border, np.ndarray] | None = None) -> None:
        super().__init__(replace(numbers, factors=(1,), masks=True), weights.T[None], border)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 ``[classes, C]``: what the real positions add where e is 0."""
        nought = self.numbers.least + self.numbers.step * self.numbers.padded
        return nought * (self._real @ self.weights[0].T)

    def meaning(self) -> dict[str, Any]:
        """See ``Accumulator.meaning``."""
        is_signed = result_of(self.weights[0].T, self.numbers.planes, self.numbers.signed)[1]
        found = super().meaning()
        return {**found, "signed": is_signed} if found["kind"] == "sums" else found

    def stages(self, name: str, nodes: tuple[str, ...], flow: Flow) -> list[Stage]:
        """The stages behind windows of ``flow``."""
        weights = np.ascontiguousarray(self.weights[0].T)
        bits, is_signed = result_of(weights, flow.bits, flow.signed)
        sums = Flow(flow.height, flow.width, weights.shape[1], bits, is_signed)
        made: list[Stage] = [Depthwise(name, nodes, flow, sums, weights)]
        if self._steps is not None:
            result = replace(sums, bits=self._steps.bits, signed=False)
            made.append(Compare(f"{name}_levels", nodes[1:], sums, result, self._steps))
        return made
