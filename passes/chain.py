"""The single path of float operations from an integer accumulator to a tensor, and its value at every accumulator.

A chain consists of operations that treat each channel by itself: elementwise ones whose other operands are constants
that vary at most by channel, max-pools, and operations that only move data. It is evaluated by ONNX Runtime on the very
nodes of the graph, in their order, so its rounding is that of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..golden import evaluate
from ..opset import DOMAIN, REGISTRY, TensorType, unpack_bits
from ..opset.bit_serial import weight_values
from .base import Context, Status, constant, producer, static_shape

ELEMENTWISE = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Elu", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min",
    "Mul", "Neg", "PRelu", "Relu", "Round", "Selu", "Sigmoid", "Softsign", "Sub", "Tanh", "ThresholdedRelu",
})  # fmt: skip
RESHAPES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operations that keep the row-major order of the elements."""
_CHUNK = 1 << 22
"""Elements evaluated at a time, which bounds memory to some 100 MB whatever the layer's size."""


def is_anchor(node: gs.Node | None) -> bool:
    """Whether ``node`` computes an integer accumulator."""
    return node is not None and node.domain == DOMAIN and REGISTRY[node.op].anchor


def original_name(ctx: Context, node: gs.Node) -> str:
    """Name of the original node whose work ``node`` does."""
    return ctx.renamed.get(node.name, node.name)


def absorbed(ctx: Context, node: gs.Node, status: Status, reason: str) -> None:
    """Record what became of ``node``, unless it does part of the work of a node that is recorded as packed."""
    record = ctx.records.get(original_name(ctx, node))
    if record is None or record.status is not Status.PACKED:
        ctx.note(node, status, reason)


def axis_after_reshape(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """The axis of ``after`` that holds what ``axis`` holds in ``before``; None if the reshape splits or merges it."""
    leading = int(np.prod(before[:axis], dtype=np.int64))
    for other, size in enumerate(after):
        if size == before[axis] and int(np.prod(after[:other], dtype=np.int64)) == leading:
            return other
    return None


def per_channel(value: np.ndarray, shape: Sequence[int], axis: int) -> np.ndarray | None:
    """A constant operand of a tensor of ``shape`` as one value ``[]`` or a value per channel ``[C]``.

    None when it varies along another axis than ``axis``, or makes the tensor grow.
    """
    if value.ndim > len(shape):
        return None
    sizes = (1,) * (len(shape) - value.ndim) + value.shape
    if any(size not in (1, whole) for size, whole in zip(sizes, shape, strict=True)):
        return None
    rows = np.moveaxis(value.reshape(sizes), axis, -1).reshape(-1, sizes[axis])
    if not ((rows == rows[:1]) & (np.signbit(rows) == np.signbit(rows[:1]))).all():
        return None
    return rows[0].reshape(()) if sizes[axis] == 1 and shape[axis] != 1 else rows[0]


@dataclass(frozen=True)
class Link:
    """One node of a chain. ``tensor`` is its output, whose channel axis is ``axis``."""

    node: gs.Node
    tensor: gs.Tensor
    axis: int
    operands: tuple[np.ndarray | None, ...] = ()
    """The node's inputs as ``[]`` or ``[C]`` (None: the running value). Empty for a node that only moves or pools."""


@dataclass(frozen=True)
class Chain:
    """The path from ``accumulator`` (int32, channels last) to the output of the last link."""

    accumulator: gs.Tensor
    anchor: gs.Node
    """The BinaryConv or BinaryGemm that computes the accumulator (the last one, for a sum of two)."""
    links: tuple[Link, ...]
    values: np.ndarray
    """Every value that the accumulator can have (int32 [V], rising); maybe some that it cannot."""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return static_shape(self.accumulator)[-1]

    def evaluate(self, probes: Sequence[gs.Tensor], opset: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """The ``probes`` (tensors of the chain) at every value, as ``[rows, C]``, some rows of ``values`` at a time."""
        from onnx import helper

        channels = self.channels
        names = {id(self.accumulator): "acc"}
        live, nodes = "acc", []
        feeds: dict[str, np.ndarray] = {}
        for i, link in enumerate(self.links):
            if link.operands:
                inputs = []
                for j, operand in enumerate(link.operands):
                    if operand is None:
                        inputs.append(live)
                    elif operand.size == 0:
                        inputs.append("")
                    else:
                        inputs.append(f"c{i}_{j}")
                        feeds[inputs[-1]] = operand
                attrs = {"to": cast_target(link.node)} if link.node.op == "Cast" else dict(link.node.attrs)
                live = f"t{i}"
                nodes.append(helper.make_node(link.node.op, inputs, [live], **attrs))
            names[id(link.tensor)] = live
        wanted = [names[id(tensor)] for tensor in probes]
        outputs = sorted({name for name in wanted if name != "acc"})
        rows = max(1, _CHUNK // channels)
        for start in range(0, len(self.values), rows):
            part = slice(start, min(start + rows, len(self.values)))
            feeds["acc"] = np.repeat(self.values[part, None], channels, axis=1)
            known = {"acc": feeds["acc"]}
            if outputs:
                known.update(evaluate(nodes, feeds, outputs, opset=opset))
            yield part, [known[name] for name in wanted]

    def never_zero(self, opset: int) -> bool:
        """Whether the last tensor differs from zero at every reachable accumulator value, in every channel."""
        end = self.links[-1].tensor if self.links else self.accumulator
        return all((value != 0).all() and not np.isnan(value).any() for _, (value,) in self.evaluate([end], opset))


def cast_target(node: gs.Node) -> int:
    """ONNX element type that a Cast converts to."""
    from onnx import helper

    to = node.attrs["to"]
    return int(to) if isinstance(to, (int, np.integer)) else int(helper.np_dtype_to_tensor_dtype(np.dtype(to)))


MOST_VALUES = 1 << 22
"""Most values of an accumulator that a chain is evaluated on one by one."""


def reachable(tensor: gs.Tensor) -> tuple[gs.Node, np.ndarray] | None:
    """The anchor of an int32 tensor and the values that it can have; None if it is not an accumulator.

    A sum of k products of ±1 lies in [−k, k] and has the parity of k. Where zeros are padded fewer products count: by a
    multiple of the group's channels, so that the parity is free only if that number is odd. The sum of two accumulators
    of the same convolution is even, as both have the same parity everywhere.
    """
    node = producer(tensor)
    if node is not None and is_anchor(node):
        low, high, step = _reach(node)
        if (high - low) // step >= MOST_VALUES:
            return None
        return node, np.arange(low, high + 1, step, dtype=np.int32)
    if node is None or node.op != "Add" or node.domain or not all(is_anchor(producer(x)) for x in node.inputs):
        return None
    first, second = (x.inputs[0] for x in node.inputs)
    (low, high, step), (other_low, other_high, other_step) = _reach(first), _reach(second)
    same = first.op == second.op == "BinaryConv" and first.attrs == second.attrs and first.inputs[1] is second.inputs[1]
    step = 2 if same or step == other_step == 2 else 1
    return second, np.arange(low + other_low, high + other_high + 1, step, dtype=np.int32)


def _reach(anchor: gs.Node) -> tuple[int, int, int]:
    """Lowest and highest accumulator of an anchor, and the distance between neighbouring values."""
    if anchor.op.startswith("BitSerial"):
        return (*serial_range(anchor), 1)
    types = [TensorType(static_shape(tensor), np.dtype(tensor.dtype)) for tensor in anchor.inputs]
    return REGISTRY[anchor.op].reach(types, anchor.attrs)


def serial_range(anchor: gs.Node) -> tuple[int, int]:
    """Smallest and largest value that the accumulator of a ``BitSerialConv`` or ``BitSerialGemm`` can have in any channel."""
    attrs = anchor.attrs
    planes = np.asarray(constant(anchor.inputs[1]))
    counted = attrs["k"] if anchor.op == "BitSerialGemm" else attrs["channels"] // attrs["group"]
    bits = unpack_bits(planes, 8 * planes.shape[-1] if anchor.op == "BitSerialGemm" else counted)
    weights = weight_values(bits, attrs).reshape(bits.shape[1], -1)
    coeffs = np.asarray(attrs["x_coeffs"], np.int64)
    low, high = coeffs[coeffs < 0].sum() + attrs["x_offset"], coeffs[coeffs > 0].sum() + attrs["x_offset"]
    if anchor.op == "BitSerialConv" and any(attrs["pads"]):
        low, high = min(low, 0), max(high, 0)
    rising, falling = np.maximum(weights, 0).sum(1), np.minimum(weights, 0).sum(1)
    return int((rising * low + falling * high).min()), int((rising * high + falling * low).max())


def trace_chain(tensor: gs.Tensor) -> Chain | str:
    """The chain from an accumulator to ``tensor``, or the reason why there is none."""
    nodes: list[gs.Node] = []
    start = reachable(tensor)
    while start is None:
        node = producer(tensor)
        if node is None:
            return f"'{tensor.name}' is an input of the model, not computed from an integer accumulator"
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        if node.domain or node.op not in ELEMENTWISE | RESHAPES | {"MaxPool", "Transpose"}:
            return f"it comes from {node.op} '{node.name}' on floats"
        if len(live) != 1:
            return f"{node.op} '{node.name}' joins {len(live)} computed tensors before it"
        nodes.append(node)
        tensor = live[0]
        start = reachable(tensor)
    anchor, values = start
    links: list[Link] = []
    shape = static_shape(tensor)
    axis, running = len(shape) - 1, tensor
    for node in reversed(nodes):
        link = _link(node, running, axis)
        if isinstance(link, str):
            return link
        links.append(link)
        running, axis = link.tensor, link.axis
    return Chain(tensor, anchor, tuple(links), values)


def _link(node: gs.Node, running: gs.Tensor, axis: int) -> Link | str:
    """One node as a link, or why it is none."""
    shape, output = static_shape(running), node.outputs[0]
    if node.op == "Transpose":
        perm = list(node.attrs.get("perm") or range(len(shape))[::-1])
        return Link(node, output, perm.index(axis))
    if node.op in RESHAPES:
        moved = axis_after_reshape(shape, axis, static_shape(output))
        return f"{node.op} '{node.name}' does not keep the channel axis" if moved is None else Link(node, output, moved)
    if node.op == "MaxPool":
        return Link(node, output, axis) if axis == 1 else f"MaxPool '{node.name}' pools over the channel axis"
    operands: list[np.ndarray | None] = []
    for tensor in node.inputs:
        value = constant(tensor)
        if tensor is running:
            operands.append(None)
        elif value is None:
            operands.append(np.zeros(0, np.float32))
        else:
            operand = per_channel(value, shape, axis)
            if operand is None:
                return f"{node.op} '{node.name}' has a constant that varies within a channel"
            # PRelu wants at least one axis; every operator takes [1] for a scalar but Clip, which wants a true one.
            operands.append(operand.reshape(1) if node.op == "PRelu" and operand.ndim == 0 else operand)
    if node.op == "Clip" and any(value is not None and value.size > 1 for value in operands):
        return f"Clip '{node.name}' has bounds that are not single values"
    if node.op == "Clip":
        operands = [value if value is None or value.size == 0 else value.reshape(()) for value in operands]
    return Link(node, output, axis, tuple(operands))
