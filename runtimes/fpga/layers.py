"""Nodes of a packed model → stages: which chains of operators the FPGA knows, and what they compute there.

``READERS`` lists the chains, longest first. A layer is read without knowing what comes before it, to see whether its
attributes and constants suit the hardware; its stages follow once the stream into it is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...operations import count_macs
from ...opset import TensorType
from ...opset.bits import packed_bytes
from . import integer_layers
from .products import Accumulator, DepthwiseSums, NotOnFpga, numbers_of
from .stages import Flow, Largest, Pool, Slide, Stage
from .units.matvec import Border
from .units.window import Sliding

_PRODUCTS = ("BinaryConv", "BitSerialConv", "BinaryGemm", "BitSerialGemm")
_INTEGER_GEMM, _RESCALE = (("ai.xnorc.IntegerGemm", 2),), (("ai.xnorc.FixedRescale", 3),)
READERS: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    *((f"{name}.threshold", ((f"ai.xnorc.{name}", 2), ("ai.xnorc.Pack", 3))) for name in _PRODUCTS),
    *((f"{name}.levels", ((f"ai.xnorc.{name}", 2), ("ai.xnorc.PackLevels", 3))) for name in _PRODUCTS),
    *((name, ((f"ai.xnorc.{name}", 2),)) for name in _PRODUCTS),
    ("IntegerGemm.flat.rescale", (("onnx.Transpose", 1), ("onnx.Reshape", 2), *_INTEGER_GEMM, *_RESCALE)),
    ("IntegerGemm.flat", (("onnx.Transpose", 1), ("onnx.Reshape", 2), *_INTEGER_GEMM)),
    ("IntegerGemm.rescale", (*_INTEGER_GEMM, *_RESCALE)),
    ("IntegerConv.rescale", (("ai.xnorc.IntegerConv", 2), *_RESCALE)),
    ("integer.pool", (("onnx.Transpose", 1), ("onnx.MaxPool", 1), ("onnx.Transpose", 1))),
    ("IntegerGemm", _INTEGER_GEMM),
    ("IntegerConv", (("ai.xnorc.IntegerConv", 2),)),
    ("pool", (("ai.xnorc.BinaryMaxPool", 2),)),
    ("levels.pool", (("ai.xnorc.LevelMaxPool", 2),)),
    ("reshape", (("onnx.Reshape", 2),)),
    ("sum", (("onnx.Add", 2), *_RESCALE)),
    ("scaled", (("onnx.Cast", 1), ("onnx.Mul", 2))),
    ("cast", (("onnx.Cast", 1),)),
)
"""Chains: operators, each with its inputs besides the one from the operator before (the last is the node's number)."""

Staged = tuple[list[Stage], Flow]
"""Stages, one behind the other, and the stream that leaves the last of them."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Some nodes that become stages: they read ``sources`` and make ``result``, tensors of the packed model."""

    name: str
    nodes: list[onnx.NodeProto]
    sources: tuple[str, ...]
    result: str
    macs: int
    stages: Callable[..., Staged]
    """The stages behind streams, one for each source, or (None) behind the tensor itself. Raises ``NotOnFpga``."""
    meaning: dict[str, Any]
    """What the elements of the result are: ``kind`` ``bits`` (packed), or ``sums``: the accumulator is
    ``scale · element + offset``, of elements that are ``signed`` or not.
    """


def read_layer(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> Layer:
    """The layer that ``nodes``, a chain of ``READERS``, are. Raises ``NotOnFpga``."""
    reader = Reader(nodes, constants, types)
    read = {
        "BinaryConv": reader.conv, "BitSerialConv": reader.conv, "BinaryGemm": reader.gemm, "BitSerialGemm": reader.gemm,
        "BinaryMaxPool": reader.pool, "LevelMaxPool": reader.pool, "Reshape": reader.reshape,
    }.get(nodes[0].op_type)  # fmt: skip
    if read is not None:
        return read()
    integer = {
        "IntegerConv": integer_layers.conv, "IntegerGemm": integer_layers.gemm, "Transpose": integer_layers.gemm,
        "Cast": integer_layers.same, "Add": integer_layers.join,
    }  # fmt: skip
    if any(node.op_type == "MaxPool" for node in nodes):
        return integer_layers.pool(reader)
    return integer[nodes[0].op_type](reader)


class Reader:
    """The nodes of one layer, and what is known of their operands."""

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

    def constant(self, node: onnx.NodeProto, place: int) -> np.ndarray:
        """A constant input. Raises ``NotOnFpga`` where it is none."""
        name = node.input[place]
        if name not in self.constants:
            raise NotOnFpga(f"its input '{name}' is computed at run time")
        return self.constants[name]

    def layer(
        self,
        stages: Callable[..., Staged],
        meaning: dict[str, Any] | None = None,
        sources: tuple[str, ...] = (),
        macs_of: onnx.NodeProto | None = None,
    ) -> Layer:
        """The layer with these stages; it reads the first input of its first node unless ``sources`` are given."""
        return Layer(
            self.name,
            self.nodes,
            sources or (self.anchor.input[0],),
            self.nodes[-1].output[0],
            count_macs(macs_of or self.anchor, dict(self.types)),
            stages,
            {"kind": "bits"} if meaning is None else meaning,
        )

    def plain(self, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Raise ``NotOnFpga`` unless a convolution of ``shape`` ``[N, H, W, ...]`` is one of those that there are units for."""
        if list(attrs["dilations"]) != [1, 1]:
            raise NotOnFpga(f"it has the dilations {list(attrs['dilations'])}: only [1, 1]")
        group, channels = int(attrs["group"]), self.types[self.anchor.output[0]].shape[-1]
        if group not in (1, channels) or (group > 1 and group != int(attrs.get("channels", shape[-1]))):
            raise NotOnFpga(f"it has {group} groups: only 1, or one for each channel that comes in and goes out")
        if shape[0] != 1:
            raise NotOnFpga(f"a batch of {shape[0]}: export it with a batch of 1")

    def _weights(self) -> np.ndarray:
        """Bits 0/1 of the weights by planes, ``[q, O, ..., bits of a row]``."""
        bits = np.unpackbits(self.constant(self.anchor, 1), axis=-1, bitorder="little")
        return bits[None] if self.anchor.op_type.startswith("Binary") else bits

    def _accumulator(
        self, weights: np.ndarray, border: tuple[Border, np.ndarray] | None = None, is_depthwise: bool = False
    ) -> Accumulator:
        """The sums of weights 0/1 ``[q, M, K]``, and what the node behind them makes of them."""
        numbers = numbers_of(self.anchor.op_type, self.attrs[0])
        if is_depthwise:
            values = weights.astype(np.int64) if numbers.masks else 2 * weights.astype(np.int64) - 1
            real = (
                None
                if border is None
                else (border[0], border[1].reshape(len(border[1]), weights.shape[2], -1)[:, :, 0])
            )
            sums: Accumulator = DepthwiseSums(numbers, np.tensordot(numbers.factors, values, 1).T, real)
        else:
            sums = Accumulator(numbers, weights, border)
        if len(self.nodes) == 1:
            return sums
        pack, attrs = self.nodes[-1], self.attrs[-1]
        if list(attrs["perm"]) != sorted(attrs["perm"]):
            raise NotOnFpga(f"'{pack.name}' moves axes")
        limits, flip = self.constant(pack, 1).astype(np.int64), self.constant(pack, 2)
        if pack.op_type == "Pack":
            return sums.thresholded((limits + int(attrs["strict"]))[None], flip, (0, 1), 1)
        return sums.thresholded(limits, flip, tuple(int(code) for code in attrs["codes"]), int(attrs["planes"]))

    def gemm(self) -> Layer:
        """Rows of packed bits times packed weights, and perhaps thresholds."""
        bits, terms = self._weights(), int(self.attrs[0]["k"])
        planes = numbers_of(self.anchor.op_type, self.attrs[0]).planes
        shape = self.types[self.anchor.input[0]].shape
        rows = int(np.prod(shape[:-1])) // planes
        made: dict[str, Any] = {}

        def stages(flow: Flow | None) -> Staged:
            kept = bits[..., :terms]
            if flow is None:
                if packed_bytes(terms) != shape[-1]:
                    raise NotOnFpga("the bits of its input do not lie side by side")
                flow = Flow(1, rows, terms, planes)
            elif flow.bits != planes:
                raise NotOnFpga("its input has other bits than the layer before gives")
            elif flow.pixels != rows or flow.channels != terms:
                if rows != 1 or (flow.pixels * flow.channels, flow.pixels * packed_bytes(flow.channels)) != (
                    terms, shape[-1]
                ):  # fmt: skip
                    raise NotOnFpga("its rows are not those of the layer before")
                # A feature map read as one row: each pixel begins at a byte.
                pixels = bits.reshape(*bits.shape[:2], flow.pixels, -1)[..., : flow.channels]
                kept = pixels.reshape(*bits.shape[:2], -1)
                flow = Flow(1, 1, terms, planes)
            sums = self._accumulator(kept)
            made.update(sums.meaning())
            found = sums.stages(self.name, tuple(node.name for node in self.nodes), flow)
            return found, found[-1].result

        self._accumulator(bits[..., :terms])
        return self.layer(stages, made)

    def conv(self) -> Layer:
        """A convolution of packed bits with packed weights, and perhaps thresholds: windows, then a product."""
        numbers, attrs = numbers_of(self.anchor.op_type, self.attrs[0]), self.attrs[0]
        shape, channels = self.types[self.anchor.input[0]].shape[-4:], int(attrs["channels"])
        self.plain(attrs, shape)
        is_depthwise = int(attrs["group"]) > 1
        weights = self._weights()[..., : 1 if is_depthwise else channels]
        value = int(attrs.get("pad_value", 0))
        sliding = sliding_of(shape, channels, (weights.shape[2], weights.shape[3]), attrs, int(value > 0))
        flat = weights.reshape(*weights.shape[:2], -1)
        border = _border(sliding) if any(sliding.pads) and value == 0 and numbers.nothing is None else None
        sums = self._accumulator(flat, border, is_depthwise)
        source = Flow(shape[1], shape[2], channels, numbers.planes, numbers.signed)
        windows = Flow(*sliding.out, _positions(sliding) * channels, source.bits, source.signed)
        names = tuple(node.name for node in self.nodes)

        def stages(flow: Flow | None) -> Staged:
            if flow is not None and replace(flow, signed=source.signed) != source:
                raise NotOnFpga("its input is not the map of the layer before")
            found = windowed(self.name, names[:1], source, windows, sliding, sums.stages(self.name, names, windows))
            return found, found[-1].result

        return self.layer(stages, sums.meaning())

    def pool(self) -> Layer:
        """Max-pooling: a unit of its own for bits in windows side by side, else a window unit and the largest of each."""
        attrs, flip = self.attrs[0], np.unpackbits(self.constant(self.anchor, 1), bitorder="little")
        high, wide = (int(size) for size in attrs["kernel_shape"])
        kernel, pads = (high, wide), tuple(int(pad) for pad in attrs["pads"])
        if list(attrs["dilations"]) != [1, 1]:
            raise NotOnFpga(f"it has the dilations {list(attrs['dilations'])}: only [1, 1]")
        shape, name = self.types[self.anchor.input[0]].shape, (self.anchor.name,)
        given, planes = shape[-4:], shape[0] if len(shape) == 5 else 1
        apart = planes == 1 and kernel == tuple(attrs["strides"]) and not any(pads)

        def stages(flow: Flow | None) -> Staged:
            if flow is None or flow.bits != planes or (flow.height, flow.width) != given[1:3]:
                raise NotOnFpga("there is no layer before it")
            own = flip[: flow.channels].astype(np.int64)
            if apart:
                result = Flow(flow.height // kernel[0], flow.width // kernel[1], flow.channels)
                return [Pool(self.name, name, flow, result, kernel, own)], result
            # A padded element never wins: it is the least, or the largest where the least is wanted.
            sliding = sliding_of(given, flow.channels, kernel, attrs, 0)
            sliding = replace(sliding, fills=tuple((own * ((1 << planes) - 1)).tolist()))
            return largest_of(self.name, name, flow, sliding, own)

        return self.layer(stages)

    def reshape(self) -> Layer:
        """A packed map read as one row: nothing to do, the bits come in this order already."""
        given, wanted = self.types.get(self.anchor.input[0]), self.types.get(self.anchor.output[0])
        if (
            given is None
            or wanted is None
            or given.dtype != np.uint8
            or wanted.shape[:-1] not in ((1,), (given.shape[0], 1))
        ):
            raise NotOnFpga("only packed maps are reshaped, to one row")

        def stages(flow: Flow | None) -> Staged:
            if flow is None:
                raise NotOnFpga("there is no layer before it")
            return [], flow

        return self.layer(stages)


def sliding_of(
    shape: tuple[int, ...], channels: int, kernel: tuple[int, int], attrs: Mapping[str, Any], fill: int
) -> Sliding:
    """The windows of a convolution over ``shape`` ``[1, H, W, ...]``."""
    stride, pads = tuple(attrs["strides"]), tuple(int(pad) for pad in attrs["pads"])
    return Sliding(shape[1], shape[2], channels, kernel, stride, pads, fill)  # type: ignore[arg-type]


def largest_of(name: str, nodes: tuple[str, ...], flow: Flow, sliding: Sliding, flip: np.ndarray) -> Staged:
    """The stages of a max-pool over any windows: these, and the largest (or least) element of each."""
    windows = replace(flow, height=sliding.out[0], width=sliding.out[1], channels=_positions(sliding) * flow.channels)
    result = replace(windows, channels=flow.channels)
    return [Slide(f"{name}_window", nodes, flow, windows, sliding), Largest(name, nodes, windows, result, flip)], result


def _positions(sliding: Sliding) -> int:
    return sliding.kernel[0] * sliding.kernel[1]


def windowed(
    name: str, nodes: tuple[str, ...], source: Flow, windows: Flow, sliding: Sliding, made: list[Stage]
) -> list[Stage]:
    """The stages of a convolution: windows, unless each is a pixel, and what is ``made`` of them."""
    if sliding.kernel == (1, 1) and sliding.stride == (1, 1) and not any(sliding.pads):
        return made
    return [Slide(f"{name}_window", nodes, source, windows, sliding), *made]


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
