"""Attributes of convolutions, poolings and pads, with ``auto_pad`` and ``ceil_mode`` resolved to explicit amounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from ..opset.conv import conv_output_size
from .base import constant, static_shape


@dataclass(frozen=True)
class Window:
    """A 2-D window with explicit pads [top, left, bottom, right]. A 1-D one has height 1."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def padded(self) -> bool:
        """Whether any position is padded."""
        return any(self.pads)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Spatial size of the output."""
        top, left, bottom, right = self.pads
        sizes = ((height, top, bottom), (width, left, right))
        return tuple(  # type: ignore[return-value]
            conv_output_size(size, self.kernel[i], self.strides[i], self.dilations[i], before, after)
            for i, (size, before, after) in enumerate(sizes)
        )

    def pool_attrs(self) -> dict[str, list[int]]:
        """As attributes of ``BinaryMaxPool``."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": list(self.pads),
        }


def window(node: gs.Node, size: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a Conv or MaxPool over spatial axes of ``size`` (one or two of them)."""
    axes = len(size)
    strides = list(node.attrs.get("strides") or [1] * axes)
    dilations = list(node.attrs.get("dilations") or [1] * axes)
    pads = list(node.attrs.get("pads") or [0] * 2 * axes)
    auto = node.attrs.get("auto_pad", "NOTSET")
    begin, end = pads[:axes], pads[axes:]
    for i in range(axes):
        reach = dilations[i] * (kernel[i] - 1) + 1
        if auto == "VALID":
            begin[i] = end[i] = 0
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size[i] // strides[i]) - 1) * strides[i] + reach - size[i], 0)
            begin[i] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            end[i] = total - begin[i]
        elif node.attrs.get("ceil_mode", 0):
            count = -(-(size[i] + begin[i] + end[i] - reach) // strides[i]) + 1
            if (count - 1) * strides[i] >= size[i] + begin[i]:
                count -= 1  # a window that would start past the input and its first pad does not exist
            end[i] = max((count - 1) * strides[i] + reach - size[i] - begin[i], 0)
    if axes == 1:
        return Window((1, kernel[0]), (1, strides[0]), (1, dilations[0]), (0, begin[0], 0, end[0]))
    return Window(
        (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]),
        (begin[0], begin[1], end[0], end[1]),
    )  # fmt: skip


def max_pool_window(node: gs.Node) -> Window | str:
    """The window of a MaxPool over one or two spatial axes, or why it cannot be computed on bits."""
    shape = static_shape(node.inputs[0])
    if len(shape) not in (3, 4):
        return f"MaxPool '{node.name}' has {len(shape) - 2} spatial axes: bits are pooled over one or two"
    if len(node.outputs) > 1 and not node.outputs[1].is_empty():
        return f"MaxPool '{node.name}' also gives indices"
    return window(node, shape[2:], list(node.attrs["kernel_shape"]))


@dataclass(frozen=True)
class ConstantPad:
    """A Pad by one value, around spatial axes only (all but the first two), by amounts that are not negative."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    value: float


def constant_pad(node: gs.Node) -> ConstantPad | str:
    """What a Pad node does, or why it is not a ``ConstantPad``."""
    mode = node.attrs.get("mode", "constant")
    if mode != "constant":
        return f"Pad '{node.name}' has mode {mode}: only constant padding of signs is packed"
    given = [constant(tensor) if not tensor.is_empty() else None for tensor in node.inputs[1:]]
    given += [None] * (3 - len(given))
    amounts, value, axes = given
    if amounts is None or (value is None and len(node.inputs) > 2 and not node.inputs[2].is_empty()):
        return f"Pad '{node.name}' has amounts or a value that are not constant"
    rank = len(static_shape(node.inputs[0]))
    which = [int(axis) % rank for axis in axes] if axes is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(which):
        begin[axis], end[axis] = int(amounts[i]), int(amounts[i + len(which)])
    if min(begin + end) < 0:
        return f"Pad '{node.name}' crops"
    if any(begin[:2] + end[:2]):
        return f"Pad '{node.name}' pads the batch or the channels"
    return ConstantPad(tuple(begin[2:]), tuple(end[2:]), float(value.reshape(-1)[0]) if value is not None else 0.0)
