"""Which float feature maps lie channels last on the device, and the standard operators that can work on them so.

Packed bits and accumulators are channels last. A float tensor ``[N, C, H, W]`` between binary layers (a residual, say)
would have to be transposed twice; it is laid out ``[N, H, W, C]`` instead wherever those who write and read it can take it
so. Its name, and the shape that everyone else sees, stay those of the model: ``Tensor.channels_last`` says how the bytes
lie. Inputs and outputs of the model are never laid out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from ..opset import DOMAIN, TensorType
from . import converters
from .epilogue import Fused
from .kernel import EpilogueStep
from .kernels import float_calls

LAST = (0, 2, 3, 1)
"""From the model's axes to channels last."""
FIRST = (0, 3, 1, 2)
"""And back."""

ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Neg", "Relu", "Round", "Sigmoid",
    "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that act on each element by itself, however the tensor lies."""

POOLS = frozenset({"AveragePool", "MaxPool"})
"""Operators that leave less than they read: they work channels last for a reader that wants them first, too."""

PACKERS = frozenset({"Pack", "PackLevels", "QuantizeMap"})
"""Operators of ours that read floats, move the channels last and write few bits of each."""

_FLOATS = (np.float32, np.float16)

Attributes = Mapping[str, Any]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def physical(kind: TensorType) -> TensorType:
    """The type of a tensor that lies channels last."""
    return TensorType(tuple(kind.shape[axis] for axis in LAST), kind.dtype)


def constant_last(value: np.ndarray) -> np.ndarray:
    """A constant that broadcasts against ``[N, C, H, W]``, for ``[N, H, W, C]``."""
    if value.size == 1:
        return value
    return np.ascontiguousarray(value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(LAST))


class Layout:
    """The choice for one model. ``last`` names the tensors that lie channels last."""

    def __init__(
        self, groups: Sequence[Fused], types: Mapping[str, TensorType], constants: Mapping[str, np.ndarray],
        outputs: Sequence[str],
    ) -> None:  # fmt: skip
        self.types, self.constants = types, constants
        self.free = {fused.output for fused in groups} - set(outputs)
        """Tensors that steps hand to each other: neither inputs nor outputs of the model."""
        self.readers: dict[str, list[Fused]] = {}
        for fused in groups:
            names = [name for node in fused.nodes for name in node.input] + fused.extra
            for name in dict.fromkeys(names):
                if name not in constants and name != fused.output:
                    self.readers.setdefault(name, []).append(fused)
        self.last: set[str] = set()
        self._choose(groups)

    def _choose(self, groups: Sequence[Fused]) -> None:
        for fused in groups:
            if self._is_block(fused) and self._may(fused.output) and any(map(self._takes, self._read(fused.output))):
                self.last.add(fused.output)
        changed = bool(self.last)
        while changed:
            before = len(self.last)
            for fused in groups:
                node, name = fused.nodes[0], fused.output
                if name in self.last or not self._may(name) or (len(fused.nodes) > 1 and node.domain):
                    continue
                if self.native(node) and any(source in self.last for source in node.input) and self._gives_maps(node):
                    self.last.add(name)
            for name in self.readers:
                if name not in self.last and self._may(name) and self._only_last(name):
                    self.last.add(name)
            changed = len(self.last) > before

    def _read(self, name: str) -> list[Fused]:
        return self.readers.get(name, [])

    def _may(self, name: str) -> bool:
        kind = self.types.get(name)
        return kind is not None and len(kind.shape) == 4 and kind.dtype in _FLOATS and name in self.free

    def _gives_maps(self, node: onnx.NodeProto) -> bool:
        return node.op_type not in ("ReduceMean", "GlobalAveragePool")

    def _is_block(self, fused: Fused) -> bool:
        """A binary layer whose kernel stores a float feature map, which it can store either way.

        Operands that vary in other ways than by channel are laid out for channels first.
        """
        node, epilogue = fused.nodes[0], fused.epilogue
        return (
            node.domain == DOMAIN
            and epilogue.kind == "float"
            and epilogue.channels_first
            and len(self.types[fused.output].shape) == 4  # not what a reshape makes of a 1-D convolution's
            and all(step.lies is None for step in epilogue.steps)
            and physical(self.types[fused.output]).shape == self.types[node.output[0]].shape
        )

    def _takes(self, fused: Fused) -> bool:
        """Whether a reader of a tensor that lies channels last needs no transpose."""
        return self._is_block(fused) or self.native(fused.nodes[0])

    def _only_last(self, name: str) -> bool:
        """Whether every reader takes ``name`` channels last, and writes so or writes bits.

        Not where a pool makes it smaller: its writer would have to transpose, and what the pool leaves costs less.
        """
        readers = self._read(name)
        return bool(readers) and all(
            self._takes(fused)
            and "Pool" not in fused.nodes[0].op_type
            and (fused.output in self.last or fused.nodes[0].op_type in PACKERS or not self._gives_maps(fused.nodes[0]))
            for fused in readers
        )

    def works_last(self, fused: Fused) -> bool:
        """Whether the kernel of a node or group reads and writes its feature maps channels last."""
        node = fused.nodes[0]
        if fused.output in self.last:
            return self._is_block(fused) or (self.native(node) and any(name in self.last for name in node.input))
        ends = node.op_type in PACKERS | POOLS or not self._gives_maps(node)
        return ends and self.native(node) and node.input[0] in self.last

    def native(self, node: onnx.NodeProto) -> bool:
        """Whether a node can read (and, where its output is a feature map, write) channels last."""
        attrs = attributes(node)
        if node.domain == DOMAIN:
            rank = len(self.types[node.input[0]].shape)
            return (node.op_type in PACKERS and list(attrs["perm"]) == list(LAST)) or (
                node.op_type == "Binarize" and rank == 4
            )
        if node.op_type == "Cast":
            ends = [self.types.get(name) for name in (node.input[0], node.output[0])]
            return all(kind is not None and len(kind.shape) == 4 and kind.dtype in _FLOATS for kind in ends)
        if node.op_type in ELEMENTWISE:
            return all(self.fits(name) for name in node.input if name)
        rule = _NATIVE.get(node.op_type)
        if rule is None:
            return False
        kind = self.types.get(node.input[0])  # nothing known: refused later, with the reason
        return kind is not None and len(kind.shape) == 4 and rule(self, node, attrs)

    def fits(self, name: str) -> bool:
        """Whether a tensor has no more than four axes, a computed one all four."""
        if name in self.constants:
            return self.constants[name].ndim <= 4
        kind = self.types.get(name)
        return kind is not None and len(kind.shape) == 4


# ---- operators on tensors that lie channels last ----


def _plain_pool(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    return (
        len(node.output) == 1
        and len(attrs["kernel_shape"]) == 2
        and not attrs.get("ceil_mode", 0)
        and attrs.get("auto_pad", b"NOTSET") == b"NOTSET"
        and list(attrs.get("dilations", [1, 1])) == [1, 1]
        and not attrs.get("storage_order", 0)
    )


def _over_pixels(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    axes = attrs.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in layout.constants:
        axes = layout.constants[node.input[1]].tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _concat(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    return all(layout.fits(name) for name in node.input)


def _conv(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    return _pointwise(layout, node, attrs) or _depthwise(layout, node, attrs)


def _depthwise(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    """One output channel for each input channel."""
    weights, kind = layout.constants.get(node.input[1]), layout.types.get(node.input[0])
    return (
        weights is not None
        and kind is not None
        and weights.dtype == np.float32
        and weights.shape[1] == 1
        and attrs.get("group", 1) == weights.shape[0] == kind.shape[1]
        and attrs.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and (len(node.input) < 3 or not node.input[2] or node.input[2] in layout.constants)
    )


def _pointwise(layout: Layout, node: onnx.NodeProto, attrs: Attributes) -> bool:
    weights = layout.constants.get(node.input[1])
    return (
        weights is not None
        and weights.dtype == np.float32
        and weights.shape[2:] == (1, 1)
        and attrs.get("group", 1) == 1
        and not any(attrs.get("pads", [0]))
        and attrs.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and (len(node.input) < 3 or not node.input[2] or node.input[2] in layout.constants)
    )


_NATIVE: dict[str, Callable[[Layout, onnx.NodeProto, Attributes], bool]] = {
    "MaxPool": _plain_pool,
    "AveragePool": _plain_pool,
    "GlobalAveragePool": lambda layout, node, attrs: True,
    "ReduceMean": _over_pixels,
    "Conv": _conv,
    "Concat": _concat,
}


def turned(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that names an axis, for tensors that lie channels last."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for attribute in made.attribute:
        if attribute.name == "axis":
            attribute.i = LAST.index(attribute.i % 4)
    return made


def convert(
    bb: Any, node: onnx.NodeProto, data: Any, constants: Mapping[str, np.ndarray], shape: Sequence[int],
    steps: Sequence[EpilogueStep] = (), last: bool = False,
) -> Any:  # fmt: skip
    """One of ``_NATIVE`` on ``data`` ``[N, H, W, C]``.

    ``shape``: of the output as the model has it. ``steps``: of a `Conv`. ``last``: whether a mean lies channels last, too.
    """
    attrs = attributes(node)
    if node.op_type in ("ReduceMean", "GlobalAveragePool"):
        lies = tuple(shape[axis] for axis in LAST) if last else shape
        return relax.op.reshape(bb.emit(relax.op.mean(data, axis=[1, 2])), lies)
    out = tuple(shape[axis] for axis in LAST)
    if node.op_type == "Conv":
        weights = constants[node.input[1]]
        strides = [int(step) for step in attrs.get("strides", [1, 1])]
        bias = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        if weights.shape[1] == 1 and attrs.get("group", 1) == len(weights):  # one channel in one group, too
            described: dict[str, Any] = _described(attrs, weights.shape[2:])
            described["epilogue"], parameters = converters.finish(steps)
            taps = np.ascontiguousarray(weights.reshape(len(weights), -1).T)
            args = [data, relax.const(taps), *([] if bias is None else [relax.const(bias)])]
            args += [relax.const(value) for value in parameters]
            return float_calls.emit(bb, "depthwise_last", described, args, out)
        if strides != [1, 1]:
            _, height, width, _ = converters.shape_of(data)
            data = bb.emit(relax.op.strided_slice(data, [1, 2], [0, 0], [height, width], strides, assume_inbound=True))
        return converters.linear(bb, data, np.ascontiguousarray(weights[:, :, 0, 0].T), bias, out, steps)
    described = _described(attrs, attrs["kernel_shape"])
    if node.op_type == "MaxPool":
        return float_calls.emit(bb, "max_pool_last", described, [data], out)
    if not any(described["pads"]) or attrs.get("count_include_pad", 0):
        return float_calls.emit(bb, "average_pool_last", described, [data], out)
    return relax.op.nn.avg_pool2d(data, described["window"], described["strides"], described["pads"], layout="NHWC")


def _described(attrs: Attributes, window: Sequence[int]) -> dict[str, list[int]]:
    """A window of two axes as our float kernels take it."""
    defaults = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0]}
    given = {name: [int(size) for size in attrs.get(name, default)] for name, default in defaults.items()}
    return {"window": [int(size) for size in window], **given}
