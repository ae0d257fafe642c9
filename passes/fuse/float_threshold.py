"""Moves a rising or falling float chain in front of a sign into the float threshold of its ``Pack``.

Matches ``Pack(float32)`` with a constant threshold behind elementwise nodes whose other operands are constants that vary at
most by channel: Add, Sub, Mul, Div, Neg, Relu, PRelu, LeakyRelu, Clip. So the shift of each channel that ReActNet takes
before its signs costs nothing, nor does a batch norm between a residual and the next sign. Gives ``Pack`` of the tensor
before them.

Why it is right. Each of these nodes is, channel by channel, monotone as float32 computes it: x ± c, x·c, x/c and −x are, since
rounding is; max, min are; PRelu is where its slope is not negative (the node is left otherwise). Then so is the chain f, and
f(x) ≥ t (or > t) holds exactly for the floats on one side of one float, which is found by bisection over the ordered floats,
running the very nodes in ONNX Runtime. Nothing is assumed about rounding, and infinities are floats like any other; only where
the chain makes a NaN of one (0·∞) is x taken to be finite. x must not be NaN.

Does not fire where a tensor of the chain is read by something else (it is computed anyway), for constants that vary inside a
channel, or where a slope is negative.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from ...golden import evaluate
from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, constant, only_consumer, producer, static_shape
from ..chain import absorbed, original_name, per_channel
from ..floats import COUNT, floats
from ..graph import remove_node

_TWO = frozenset({"Add", "Div", "Mul", "Sub"})
_ONE = frozenset({"Clip", "LeakyRelu", "Neg", "PRelu", "Relu"})
_BITS = 32


class FloatThreshold(Pass):
    """See the module."""

    name: ClassVar[str] = "float_threshold"
    requires: ClassVar[tuple[str, ...]] = ("fuse_threshold",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Shorten every chain as far as it goes."""
        changed = False
        packs = [node for node in graph.nodes if node.op == "Pack" and node.domain == DOMAIN]
        readers: dict[int, list[gs.Node]] = {}
        for pack in packs:
            if np.dtype(pack.inputs[0].dtype) == np.float32 and constant(pack.inputs[1]) is not None:
                readers.setdefault(id(pack.inputs[0]), []).append(pack)
        shared: dict[bytes, gs.Constant] = {}
        for group in readers.values():
            changed |= _shorten(graph, ctx, group, shared)
        return changed


def _shorten(graph: gs.Graph, ctx: Context, packs: list[gs.Node], shared: dict[bytes, gs.Constant]) -> bool:
    """Packs of one tensor (a sign that keeps its zero has two), with the same channel axis.

    ``shared``: flips that are in the graph, by their bytes.
    """
    tensor = packs[0].inputs[0]
    axes = {pack.attrs["perm"][-1] for pack in packs}
    if len(axes) != 1 or len(tensor.outputs) != len(packs) or any(tensor is out for out in graph.outputs):
        return False
    axis = axes.pop()
    chain: list[gs.Node] = []
    while (node := producer(tensor)) is not None and (source := _source(node, axis)) is not None:
        chain.insert(0, node)
        tensor = source
        if only_consumer(graph, tensor) is not node:
            break
    if not chain or constant(tensor) is not None:
        return False
    channels = static_shape(tensor)[axis]
    limits: gs.Constant | None = None
    found = [(*_threshold(pack, chain, axis, channels, ctx.opset), pack) for pack in packs]
    for threshold, flip, pack in sorted(found, key=lambda item: item[0].tolist()):
        base = original_name(ctx, pack)
        pack.attrs["strict"] = 0
        if limits is not None and _follows(threshold, limits.values):
            pack.attrs["strict"] = 1
        elif limits is None or not np.array_equal(threshold, limits.values):
            limits = add_constant(ctx, f"{base}/float_threshold", threshold)
        if flip.tobytes() not in shared:
            shared[flip.tobytes()] = add_constant(ctx, f"{base}/float_flip", flip)
        pack.inputs = [tensor, limits, shared[flip.tobytes()]]
    for node in reversed(chain):
        if not node.outputs[0].outputs:
            absorbed(ctx, node, Status.FUSED, f"part of the float threshold of '{original_name(ctx, packs[0])}'")
            remove_node(graph, node)
    return True


def _follows(threshold: np.ndarray, limits: np.ndarray) -> bool:
    """Whether ``x >= threshold`` is ``x > limits`` for every float x: the two bits of x + c keep one array so."""
    return bool((threshold == np.nextafter(limits, np.float32(np.inf))).all())


def _source(node: gs.Node, axis: int) -> gs.Tensor | None:
    """What a node of the chain computes its output from, or None when it is no such node."""
    if node.domain or node.op not in _TWO | _ONE:
        return None
    live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
    if len(live) != 1 or np.dtype(live[0].dtype) != np.float32:
        return None
    shape = static_shape(live[0])
    if static_shape(node.outputs[0]) != shape or (node.op == "Div" and node.inputs[0] is not live[0]):
        return None
    for tensor in node.inputs:
        value = constant(tensor)
        if value is None:
            continue
        row = per_channel(value, shape, axis)
        if row is None or not np.isfinite(row).all() or (node.op == "Clip" and row.size != 1):
            return None
        if (node.op == "PRelu" and (row < 0).any()) or (node.op == "Div" and (row == 0).any()):
            return None
    if node.op == "PRelu" and node.inputs[0] is not live[0]:
        return None
    return None if node.op == "LeakyRelu" and node.attrs.get("alpha", 0.01) < 0 else live[0]


def _threshold(
    pack: gs.Node, chain: list[gs.Node], axis: int, channels: int, opset: int
) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[C]`` and uint8 ``[C]``: the first float with the bit of the last one, and whether that bit is 0."""
    limit, flip = constant(pack.inputs[1]), constant(pack.inputs[2])
    nodes, feeds, live = [], {}, "x"
    for i, node in enumerate(chain):
        names = []
        for j, tensor in enumerate(node.inputs):
            value = None if tensor.is_empty() else constant(tensor)
            if tensor.is_empty():
                names.append("")
            elif value is None:
                names.append(live)
            else:
                row = per_channel(value, static_shape(node.outputs[0]), axis)
                assert row is not None
                names.append(f"c{i}_{j}")
                row = row.reshape(()) if node.op == "Clip" else np.broadcast_to(row, (channels,))
                feeds[names[-1]] = np.ascontiguousarray(row)
        live = f"t{i}"
        nodes.append(helper.make_node(node.op, names, [live], **node.attrs))

    def bits(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bit of each channel at ``places`` [rows, C], and whether it is a number that was compared."""
        with np.errstate(invalid="ignore"):
            x = floats(places).reshape(-1, channels)
            value = evaluate(nodes, {**feeds, "x": x}, [live], opset=opset)[live]
            outcome = value > limit if pack.attrs["strict"] else value >= limit
        return outcome ^ flip.astype(bool), ~np.isnan(value)  # type: ignore[union-attr]

    _, known = bits(np.stack([np.zeros(channels, np.int64), np.full(channels, COUNT - 1)]))
    low = np.where(known[0], 0, 1).astype(np.int64)
    high = np.where(known[1], COUNT - 1, COUNT - 2).astype(np.int64)
    (first, last), _ = bits(np.stack([low, high]))
    constant_bit = first == last
    for _ in range(_BITS):  # the bit at ``low`` is the first one, at ``high`` the last
        middle = (low + high) // 2
        (at,), _ = bits(middle[None])
        low, high = np.where(at == last, low, middle), np.where(at == last, middle, high)
    threshold = np.where(constant_bit, np.float32(-np.inf), floats(high))
    return threshold.astype(np.float32), (~last).astype(np.uint8)
