"""Nodes of a packed model → stages: which chains of operators the FPGA knows, and what they compute there.

``READERS`` lists the chains, longest first. A layer is read without knowing what comes before it, to see whether its
attributes and constants suit the hardware; its stages follow once the stream into it is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...operations import count_macs
from ...opset import TensorType
from ...opset.bits import packed_bytes
from .stages import Flow, Multiply, Pool, Slide, Stage
from .units.matvec import Border, Product
from .units.window import Sliding

_PRODUCTS = ("BinaryConv", "BitSerialConv", "BinaryGemm", "BitSerialGemm")
READERS: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    *((f"{name}.threshold", ((f"ai.xnorc.{name}", 2), ("ai.xnorc.Pack", 3))) for name in _PRODUCTS),
    *((name, ((f"ai.xnorc.{name}", 2),)) for name in _PRODUCTS),
    ("pool", (("ai.xnorc.BinaryMaxPool", 2),)),
    ("reshape", (("onnx.Reshape", 2),)),
)
"""Chains: operators, each with its inputs besides the one from the operator before (the last is the node's number)."""


class NotOnFpga(Exception):
    """Why a node cannot run on the FPGA, in a few words."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Some nodes that become stages: they read ``source`` and make ``result``, tensors of the packed model."""

    name: str
    nodes: list[onnx.NodeProto]
    source: str
    result: str
    macs: int
    stages: Callable[[Flow | None], list[Stage]]
    """The stages behind a stream, or (None) behind the tensor itself. Raises ``NotOnFpga``."""
    meaning: dict[str, Any]
    """What the elements of the result are: ``kind`` ``bits`` (packed), or ``sums``: the accumulator is
    ``scale · element + offset``, of elements that are ``signed`` or not.
    """


def read_layer(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> Layer:
    """The layer that ``nodes``, a chain of ``READERS``, are. Raises ``NotOnFpga``."""
    reader = _Reader(nodes, constants, types)
    read = {
        "BinaryConv": reader.conv, "BitSerialConv": reader.conv, "BinaryGemm": reader.gemm, "BitSerialGemm": reader.gemm,
        "BinaryMaxPool": reader.pool, "Reshape": reader.reshape,
    }[nodes[0].op_type]  # fmt: skip
    return read()


@dataclass(frozen=True)
class _Numbers:
    """What bits mean: x = ``step`` · code + ``least`` with codes of ``planes`` bits, w = ``scale`` · (2 · bit − 1)."""

    planes: int
    step: int
    least: int
    scale: int


class _Reader:
    def __init__(
        self, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
    ) -> None:
        self.nodes, self.constants, self.types = nodes, constants, types
        self.anchor = nodes[0]
        self.attrs = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
        found = next((p.value for p in self.anchor.metadata_props if p.key == "xnorc.source"), "") or next(
            (p.value for p in self.anchor.metadata_props if p.key == "xnorc.for"), self.anchor.name
        )
        self.name = re.sub(r"\W+", "_", found).strip("_").lower() or "layer"
        if self.name[0].isdigit():
            self.name = f"layer_{self.name}"

    def _constant(self, node: onnx.NodeProto, place: int) -> np.ndarray:
        name = node.input[place]
        if name not in self.constants:
            raise NotOnFpga(f"its input '{name}' is computed at run time")
        return self.constants[name]

    def _layer(self, stages: Callable[[Flow | None], list[Stage]], meaning: dict[str, Any] | None = None) -> Layer:
        macs = count_macs(self.anchor, dict(self.types))
        return Layer(
            self.name,
            self.nodes,
            self.anchor.input[0],
            self.nodes[-1].output[0],
            macs,
            stages,
            {"kind": "bits"} if meaning is None else meaning,
        )

    def _numbers(self) -> _Numbers:
        """What the operator says of its operands. Raises ``NotOnFpga`` where there is no unit for such numbers."""
        attrs = self.attrs[0]
        if self.anchor.op_type.startswith("Binary"):
            return _Numbers(1, 2, -1, 1)
        coefficients, factors = [int(c) for c in attrs["x_coeffs"]], [int(c) for c in attrs["w_coeffs"]]
        if len(factors) != 1 or not attrs["bipolar"]:
            raise NotOnFpga(f"its weights have {len(factors)} bit planes or a level 0: there are units for ±1 alone")
        step = coefficients[0]
        if step <= 0 or coefficients != [step << i for i in range(len(coefficients))]:
            raise NotOnFpga(f"the levels of its input have the coefficients {coefficients}, no powers of two")
        return _Numbers(len(coefficients), step, int(attrs["x_offset"]), factors[0])

    def _weights(self) -> np.ndarray:
        """Bits 0/1 of the weights, ``[O, ..., bits of a row]``."""
        bits = np.unpackbits(self._constant(self.anchor, 1), axis=-1, bitorder="little")
        return bits if self.anchor.op_type.startswith("Binary") else bits[0]

    def _result(self, numbers: _Numbers, weights: np.ndarray) -> dict[str, Any]:
        """What the elements of the result mean: bits behind thresholds, else counts, as a line of each channel."""
        if len(self.nodes) > 1:
            return {"kind": "bits"}
        slope, offsets = _line(numbers, weights, np.ones((1, weights.shape[1]), np.int64))
        return {"kind": "sums", "scale": slope, "offset": offsets[0].tolist(), "signed": False}

    def _product(
        self, numbers: _Numbers, weights: np.ndarray, real: np.ndarray | None = None, border: Border | None = None
    ) -> Product:
        """The product of weights 0/1 ``[M, K]`` with the thresholds of the ``Pack`` behind it, if there is one.

        ``real``: 0/1 ``[classes, K]``, which columns are not padded, for each class of ``border``.
        """
        if len(self.nodes) == 1:
            if border is not None:
                raise NotOnFpga("it pads with zeros, and its sums have no thresholds that could take them away again")
            return Product(weights, None, numbers.planes)
        pack, attrs = self.nodes[-1], self.attrs[-1]
        if list(attrs["perm"]) != sorted(attrs["perm"]):
            raise NotOnFpga(f"'{pack.name}' moves axes")
        least, flip = self._constant(pack, 1).astype(np.int64) + int(attrs["strict"]), self._constant(pack, 2)
        real = np.ones((1, weights.shape[1]), np.int64) if real is None else real
        return thresholded(numbers, weights, least, flip, real, border)

    def gemm(self) -> Layer:
        """Rows of packed bits times packed weights, and perhaps thresholds."""
        numbers, bits, terms = self._numbers(), self._weights(), int(self.attrs[0]["k"])
        shape = self.types[self.anchor.input[0]].shape
        rows = int(np.prod(shape[:-1])) // numbers.planes
        made: dict[str, Any] = {}

        def stages(flow: Flow | None) -> list[Stage]:
            if flow is None:
                if packed_bytes(terms) != shape[-1]:
                    raise NotOnFpga("the bits of its input do not lie side by side")
                kept, flow = bits[:, :terms], Flow(1, rows, terms, numbers.planes)
            elif flow.bits != numbers.planes:
                raise NotOnFpga("its input has other bits than the layer before gives")
            elif flow.pixels == rows and flow.channels == terms:
                kept = bits[:, :terms]
            elif (
                rows == 1
                and flow.pixels * flow.channels == terms
                and flow.pixels * packed_bytes(flow.channels) == shape[-1]
            ):
                # A feature map read as one row: each pixel begins at a byte.
                kept = bits.reshape(len(bits), flow.pixels, -1)[:, :, : flow.channels].reshape(len(bits), -1)
                flow = Flow(1, 1, terms, numbers.planes)
            else:
                raise NotOnFpga("its rows are not those of the layer before")
            made.update(self._result(numbers, kept))
            product = self._product(numbers, kept)
            result = Flow(flow.height, flow.width, product.rows, product.result_bits)
            return [Multiply(self.name, tuple(node.name for node in self.nodes), flow, result, product)]

        self._product(numbers, bits[:, :terms])
        return self._layer(stages, made)

    def conv(self) -> Layer:
        """A convolution of packed bits with packed weights, and perhaps thresholds: windows, then a product."""
        numbers, attrs = self._numbers(), self.attrs[0]
        if attrs["group"] != 1 or list(attrs["dilations"]) != [1, 1]:
            raise NotOnFpga(
                f"it has {attrs['group']} groups and dilations {list(attrs['dilations'])}: only 1 and [1, 1]"
            )
        shape, channels = self.types[self.anchor.input[0]].shape[-4:], int(attrs["channels"])
        if shape[0] != 1:
            raise NotOnFpga(f"a batch of {shape[0]}: export it with a batch of 1")
        weights = self._weights()[..., :channels]
        kernel, stride = (weights.shape[1], weights.shape[2]), tuple(attrs["strides"])
        pads = tuple(int(pad) for pad in attrs["pads"])
        value = int(attrs.get("pad_value", 0))
        sliding = Sliding(shape[1], shape[2], channels, kernel, stride, pads, int(value > 0))  # type: ignore[arg-type]
        flat = weights.reshape(len(weights), -1)
        border, real = None, None
        if any(pads) and value == 0 and numbers.least != 0:
            border, real = _border(sliding)
        source = Flow(shape[1], shape[2], channels, numbers.planes)
        windows = Flow(*sliding.out, flat.shape[1], numbers.planes)
        product = self._product(numbers, flat, real, border)
        names = tuple(node.name for node in self.nodes)

        def stages(flow: Flow | None) -> list[Stage]:
            if flow not in (None, source):
                raise NotOnFpga("its input is not the map of the layer before")
            result = Flow(*sliding.out, product.rows, product.result_bits)
            multiply = Multiply(self.name, names, windows, result, product)
            if kernel == (1, 1) and stride == (1, 1) and not any(pads):
                return [multiply]
            return [Slide(f"{self.name}_window", names[:1], source, windows, sliding), multiply]

        return self._layer(stages, self._result(numbers, flat))

    def pool(self) -> Layer:
        """Max-pooling of bits."""
        attrs, flip = self.attrs[0], np.unpackbits(self._constant(self.anchor, 1), bitorder="little")
        kernel = tuple(attrs["kernel_shape"])
        if kernel != tuple(attrs["strides"]) or any(attrs["pads"]) or list(attrs["dilations"]) != [1, 1]:
            raise NotOnFpga("its windows overlap, or reach over the edge: only windows side by side")

        def stages(flow: Flow | None) -> list[Stage]:
            if flow is None:
                raise NotOnFpga("there is no layer before it")
            result = Flow(flow.height // kernel[0], flow.width // kernel[1], flow.channels)
            name = (self.nodes[0].name,)
            return [Pool(self.name, name, flow, result, kernel, flip[: flow.channels].astype(np.int64))]  # type: ignore[arg-type]

        return self._layer(stages)

    def reshape(self) -> Layer:
        """A packed map read as one row: nothing to do, the bits come in this order already."""
        given, wanted = self.types.get(self.anchor.input[0]), self.types.get(self.anchor.output[0])
        if given is None or wanted is None or given.dtype != np.uint8 or wanted.shape[:-1] != (1,):
            raise NotOnFpga("only packed maps are reshaped, to one row")

        def stages(flow: Flow | None) -> list[Stage]:
            if flow is None or flow.bits != 1:
                raise NotOnFpga("there is no layer before it")
            return []

        return self._layer(stages)


def _line(numbers: _Numbers, weights: np.ndarray, real: np.ndarray) -> tuple[int, np.ndarray]:
    """The accumulator as ``slope · count + offset``: offsets int64 ``[classes, M]``.

    Of the columns that are ``real`` the sum is of ``scale · w · (step · code + least)``, and step · Σ w · code is
    ``step · (count − top · zeros)``: a padded column has code 0 and counts like a real one of that code.
    """
    w = weights.astype(np.int64)
    top = (1 << numbers.planes) - 1
    signs = real @ (2 * w - 1).T
    zeros = (1 - w).sum(1)
    return numbers.scale * numbers.step, numbers.scale * (numbers.least * signs - numbers.step * top * zeros)


def thresholded(
    numbers: _Numbers, weights: np.ndarray, least: np.ndarray, flip: np.ndarray, real: np.ndarray, border: Border | None
) -> Product:
    """The product whose result is ``(sum >= least) xor flip``.

    With a negative slope ``sum >= least`` is ``not (−sum >= 1 − least)``; a row whose comparison is flipped is the row of
    opposite weights, whose count is the most that can be less this one's.
    """
    slope, offsets = _line(numbers, weights, real)
    flipped = np.broadcast_to(flip.astype(bool), len(weights))
    if slope < 0:
        slope, offsets, least, flipped = -slope, -offsets, 1 - least, ~flipped
    most = weights.shape[1] * ((1 << numbers.planes) - 1)
    counts = -((offsets - least) // slope)
    counts = np.clip(np.where(flipped, most - counts + 1, counts), 0, most + 1)
    kept = np.where(flipped[:, None], 1 - weights, weights).astype(np.uint8)
    return Product(kept, counts if border is not None else counts[0], numbers.planes, border)


def _border(sliding: Sliding) -> tuple[Border, np.ndarray]:
    """Classes of output pixels by which columns of their windows are real, and for each class 0/1 ``[K]``."""
    masks, numbers = [], []
    for axis in range(2):
        size, kernel = (sliding.height, sliding.width)[axis], sliding.kernel[axis]
        starts = np.arange(sliding.out[axis]) * sliding.stride[axis] - sliding.pads[axis]
        inside = [tuple(0 <= start + k < size for k in range(kernel)) for start in starts]
        found = sorted(set(inside), key=inside.count, reverse=True)
        masks.append([np.array(mask, np.int64) for mask in found])
        numbers.append(tuple(found.index(mask) for mask in inside))
    real = [np.repeat(np.outer(down, along).reshape(-1), sliding.channels) for down in masks[0] for along in masks[1]]
    return Border(*numbers), np.array(real)
