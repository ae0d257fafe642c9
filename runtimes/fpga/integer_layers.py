"""Layers on raw values of fixed-point numbers: products of integers, the epilogue behind them, sums of two branches.

Elements are integers of as many bits as their quantizer gives, in two's complement where some are negative. Weights become bit
planes, as in ``products``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...opset._fixed import Overflow, Rounding
from .products import Accumulator, DepthwiseSums, NotOnFpga, Numbers
from .stages import Flow, Join, Rescale, Stage
from .units.rescale import Rescaling
from .units.weigh import bits_of

if TYPE_CHECKING:
    from .layers import Layer, Reader, Staged

_MOST_BITS = 40
"""Widest intermediate number of an epilogue."""


def numbers_in(flow: Flow, factors: tuple[int, ...]) -> Numbers:
    """What the elements of a stream of integers mean beside weights of planes with ``factors``."""
    if flow.step != 1:
        raise NotOnFpga(f"its input comes times {flow.step}")
    return Numbers(flow.bits, 1, flow.ends[0], factors, True, flow.signed)


def planes_of(weights: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Integers ``[M, K]`` as bit planes 0/1 ``[q, M, K]`` with their factors."""
    bits, is_signed = bits_of(int(weights.min()), int(weights.max()))
    raw = weights.astype(np.int64) & ((1 << bits) - 1)
    factors = tuple(-(1 << i) if is_signed and i == bits - 1 else 1 << i for i in range(bits))
    return np.stack([(raw >> i) & 1 for i in range(bits)]).astype(np.uint8), factors


def scaling_of(reader: Reader) -> Rescaling:
    """The ``FixedRescale`` that ends a layer."""
    node, attrs = reader.nodes[-1], reader.attrs[-1]
    channels = reader.types[node.output[0]].shape[-1]
    mul, add = (np.broadcast_to(reader.constant(node, place).astype(np.int64), channels) for place in (1, 2))
    return Rescaling(
        mul, add, int(attrs["shift"]), int(attrs["width"]), bool(attrs["signed"]), Rounding(attrs["rounding"]),
        Overflow(attrs["overflow"]),
    )  # fmt: skip


def rescale(name: str, nodes: tuple[str, ...], flow: Flow, scaling: Rescaling) -> Rescale:
    """The stage of an epilogue behind ``flow``, whose ``step`` becomes a part of its products."""
    scaling = replace(scaling, mul=scaling.mul * flow.step)
    if max(scaling.bits(flow.bits, flow.signed)) > _MOST_BITS:
        raise NotOnFpga(f"its epilogue has numbers of more than {_MOST_BITS} bits")
    result = Flow(flow.height, flow.width, flow.channels, scaling.width, scaling.signed)
    return Rescale(name, nodes, replace(flow, step=1), result, scaling)


def whole(flow: Flow) -> dict[str, Any]:
    """What the elements of a stream of integers mean to the host."""
    return {"kind": "sums", "scale": flow.step, "offset": [0] * flow.channels, "signed": flow.signed}


def integer_flow(shape: tuple[int, ...], dtype: np.dtype) -> Flow:
    """The stream of a tensor of bytes, ``[1, H, W, C]`` or rows ``[..., K]``."""
    if len(shape) == 4:
        return Flow(shape[1], shape[2], shape[3], 8, dtype == np.int8)
    return Flow(1, int(np.prod(shape[:-1])), shape[-1], 8, dtype == np.int8)


def sums_of(weights: np.ndarray, flow: Flow) -> Accumulator:
    """The sums of integer weights ``[M, K]`` behind vectors of ``flow``; of a depthwise convolution where a vector has more."""
    if weights.shape[1] < flow.channels:
        return DepthwiseSums(numbers_in(flow, (1,)), weights.T.astype(np.int64))
    planes, factors = planes_of(weights)
    return Accumulator(numbers_in(flow, factors), planes)


def products(reader: Reader, anchor: int, weights: np.ndarray, flow: Flow) -> tuple[list[Stage], dict[str, Any]]:
    """The stages of integer weights ``[M, K]`` behind vectors of ``flow``, and of the epilogue if there is one; and what
    their result means."""
    sums = sums_of(weights, flow)
    names = tuple(node.name for node in reader.nodes)
    ends = reader.nodes[-1].op_type == "FixedRescale"
    made = sums.stages(reader.name, names[: anchor + 1] if ends else names, flow)
    if not ends:
        return made, sums.meaning()
    scaling, offset = scaling_of(reader), sums.offsets[0]
    scaling = replace(scaling, mul=scaling.mul * sums.slope, add=scaling.add + scaling.mul * offset)
    made.append(rescale(f"{reader.name}_rescale", names[anchor + 1 :], made[-1].result, scaling))
    return made, whole(made[-1].result)


def gemm(reader: Reader) -> Layer:
    """``IntegerGemm`` on rows, or on a map that is first moved to channels first and read as one row."""
    anchor = next(i for i, node in enumerate(reader.nodes) if node.op_type == "IntegerGemm")
    weights, given = reader.constant(reader.nodes[anchor], 1), reader.types[reader.anchor.input[0]]
    made: dict[str, Any] = {}
    if anchor:
        wanted = reader.types[reader.nodes[anchor].input[0]]
        if list(reader.attrs[0]["perm"]) != [0, 3, 1, 2] or int(np.prod(wanted.shape[:-1])) != 1:
            raise NotOnFpga("only maps are reshaped, to one row")
    if reader.nodes[-1].op_type == "FixedRescale":
        scaling_of(reader)

    def stages(*flows: Flow | None) -> Staged:
        flow = flows[0] or integer_flow(given.shape, given.dtype)
        kept = weights
        if anchor:
            columns = weights.reshape(len(weights), flow.channels, flow.pixels).transpose(0, 2, 1)
            kept = columns.reshape(len(weights), -1)
            flow = replace(flow, height=1, width=1, channels=kept.shape[1])
        if flow.channels != kept.shape[1]:
            raise NotOnFpga("its rows are not those of the layer before")
        found, meaning = products(reader, anchor, kept, flow)
        made.update(meaning)
        return found, found[-1].result

    return reader.layer(stages, made, macs_of=reader.nodes[anchor])


def conv(reader: Reader) -> Layer:
    """``IntegerConv`` and perhaps its epilogue. Padding is the number 0, as the bits of every element that is 0."""
    from .layers import sliding_of, windowed

    attrs, given = reader.attrs[0], reader.types[reader.anchor.input[0]]
    reader.plain(attrs, given.shape)
    weights = reader.constant(reader.anchor, 1)
    sliding = sliding_of(given.shape, given.shape[3], (weights.shape[1], weights.shape[2]), attrs, 0)
    flat = weights.reshape(len(weights), -1)
    columns = sliding.kernel[0] * sliding.kernel[1] * given.shape[3]
    made: dict[str, Any] = {}
    if reader.nodes[-1].op_type == "FixedRescale":
        scaling_of(reader)

    def stages(*flows: Flow | None) -> Staged:
        flow = flows[0] or integer_flow(given.shape, given.dtype)
        if (flow.height, flow.width, flow.channels) != given.shape[1:]:
            raise NotOnFpga("its input is not the map of the layer before")
        windows = Flow(*sliding.out, columns, flow.bits, flow.signed, flow.step)
        found, meaning = products(reader, 0, flat, windows)
        made.update(meaning)
        found = windowed(reader.name, (reader.anchor.name,), flow, windows, sliding, found)
        return found, found[-1].result

    return reader.layer(stages, made)


def pool(reader: Reader) -> Layer:
    """A ``MaxPool`` of bytes, between transposes that put the channels first and last again."""
    from .layers import largest_of, sliding_of

    node, attrs = reader.nodes[1], reader.attrs[1]
    given = reader.types[node.input[0]].shape
    if list(reader.attrs[0]["perm"]) != [0, 3, 1, 2] or list(reader.attrs[2]["perm"]) != [0, 2, 3, 1]:
        raise NotOnFpga("it moves other axes than those of a map")
    if list(attrs["dilations"]) != [1, 1]:
        raise NotOnFpga(f"it has the dilations {list(attrs['dilations'])}: only [1, 1]")
    made: dict[str, Any] = {}

    def stages(*flows: Flow | None) -> Staged:
        flow = flows[0]
        if flow is None or (flow.channels, flow.height, flow.width) != given[1:]:
            raise NotOnFpga("there is no layer before it")
        shape = (1, flow.height, flow.width)
        kernel = tuple(attrs["kernel_shape"])
        sliding = replace(sliding_of(shape, flow.channels, kernel, attrs, 0), fills=(flow.ends[0],) * flow.channels)
        found, result = largest_of(reader.name, (node.name,), flow, sliding, np.zeros(flow.channels, np.int64))
        made.update(whole(result))
        return found, result

    return reader.layer(stages, made)


def same(reader: Reader) -> Layer:
    """A ``Cast`` to int32, and perhaps a product with one constant: the bits stay, what they stand for changes."""
    if reader.types[reader.nodes[0].output[0]].dtype != np.int32:
        raise NotOnFpga("it makes floats of integers")
    factor = 1
    if len(reader.nodes) > 1:
        value = reader.constant(reader.nodes[1], 1)
        if value.size != 1 or value.dtype != np.int32:
            raise NotOnFpga("it multiplies by a constant for each channel, and there is no epilogue with it")
        factor = int(value.reshape(-1)[0])

    def stages(*flows: Flow | None) -> Staged:
        if flows[0] is None:
            raise NotOnFpga("there is no layer before it")
        return [], replace(flows[0], step=flows[0].step * factor)

    return reader.layer(stages, {})


def join(reader: Reader) -> Layer:
    """The sum of two branches, and the epilogue behind it."""
    add = reader.nodes[0]
    if reader.types[add.output[0]].dtype != np.int32:
        raise NotOnFpga("it adds floats")
    if any(name in reader.constants for name in add.input):
        raise NotOnFpga("it adds a constant")
    scaling = scaling_of(reader)
    made: dict[str, Any] = {}

    def stages(*flows: Flow | None) -> Staged:
        left, right = flows
        if left is None or right is None:
            raise NotOnFpga("there is no layer before it")
        shapes = {(flow.height, flow.width, flow.channels) for flow in (left, right)}
        if len(shapes) > 1:
            raise NotOnFpga("its operands are of different shapes")
        ends = [_ends(flow) for flow in (left, right)]
        bits, is_signed = bits_of(sum(low for low, _ in ends), sum(high for _, high in ends))
        total = Flow(left.height, left.width, left.channels, bits, is_signed)
        summed = Join(f"{reader.name}_sum", (add.name,), left, total, right)
        behind = rescale(reader.name, (reader.nodes[1].name,), total, scaling)
        made.update(whole(behind.result))
        return [summed, behind], behind.result

    return reader.layer(stages, made, sources=tuple(add.input[:2]))


def _ends(flow: Flow) -> tuple[int, int]:
    low, high = flow.ends
    return min(low * flow.step, high * flow.step), max(low * flow.step, high * flow.step)
