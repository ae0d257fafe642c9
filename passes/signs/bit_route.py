"""From the operand of a layer back to the ``Binarize`` (or ``Quantize``) that made it, through operations that keep its values.

A route says how to get the packed bits of a tensor: pack the input of the Binarize with some ``perm``, then pool,
reshape or transpose the bytes. ``perm`` always brings the channel axis to the end, where bits are packed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, packed_bytes
from ..base import constant, producer, static_shape
from ..chain import ELEMENTWISE, RESHAPES, axis_after_reshape
from ..windows import Window, max_pool_window

SIGNS = frozenset({"Binarize"})
"""What a route of bits starts from."""


@dataclass(frozen=True)
class Step:
    """What is done to packed bytes. ``node`` is the original node whose work it does."""

    kind: Literal["pool", "reshape", "transpose"]
    node: gs.Node
    sizes: tuple[int, ...]
    """Target shape of a reshape or of a pool's output (both with bytes last), or the permutation."""
    window: Window | None = None
    """Of a pool: its input is seen as [N, H, W, bytes], H = 1 for a 1-D one."""


@dataclass(frozen=True)
class Route:
    """``Pack(binarize's input, perm)`` followed by ``steps``."""

    binarize: gs.Node
    perm: tuple[int, ...]
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Route:
        """The route with one more step."""
        return replace(self, steps=(*self.steps, step))


@dataclass(frozen=True)
class Rows:
    """A tensor ``[..., K]`` as packed rows: the route gives ``[..., bytes]``.

    ``columns``: int [8·bytes], the element of the row that each bit holds, −1 for bits that are always zero.
    """

    route: Route
    columns: np.ndarray


def channels_last(rank: int, axis: int) -> tuple[int, ...]:
    """The permutation that moves ``axis`` to the end."""
    return (*(i for i in range(rank) if i != axis), axis)


def _bytes_shape(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, ...]:
    return (*(shape[i] for i in perm[:-1]), packed_bytes(shape[perm[-1]]))


def find_route(tensor: gs.Tensor, perm: tuple[int, ...], sources: frozenset[str] = SIGNS) -> Route | str:
    """How to get the bits of ``tensor`` transposed by ``perm``, or why that cannot be. ``sources``: where it may start."""
    node = producer(tensor)
    if node is None:
        kind = "an input of the model" if constant(tensor) is None else "constant"
        return f"its input '{tensor.name}' is not binarized (it is {kind})"
    if node.domain == DOMAIN and node.op in sources:
        if np.dtype(node.inputs[0].dtype) != np.float32:
            return f"the sign '{node.name}' is taken of {np.dtype(node.inputs[0].dtype)} values, not of float32 ones"
        return Route(node, perm)
    if node.op == "Transpose" and not node.domain:
        moved = list(node.attrs.get("perm") or range(len(perm))[::-1])
        return find_route(node.inputs[0], tuple(moved[i] for i in perm), sources)
    if node.op == "MaxPool" and not node.domain:
        return _through_pool(node, tensor, perm, sources)
    if node.op in RESHAPES and not node.domain:
        return _through_reshape(node, tensor, perm, sources)
    return f"its input comes from {node.op} '{node.name}', not from a sign"


def _reordered(route: Route, node: gs.Node, standard: Sequence[int], perm: tuple[int, ...]) -> Route:
    """Transpose bytes that lie in ``standard`` order into that of ``perm``."""
    moved = tuple(list(standard).index(i) for i in perm)
    return route if moved == tuple(range(len(perm))) else route.then(Step("transpose", node, moved))


def _through_pool(node: gs.Node, tensor: gs.Tensor, perm: tuple[int, ...], sources: frozenset[str]) -> Route | str:
    size = max_pool_window(node)
    if isinstance(size, str):
        return size
    if perm[-1] != 1:
        return f"MaxPool '{node.name}' pools along the axis that this layer sums over"
    standard = channels_last(len(perm), 1)
    route = find_route(node.inputs[0], standard, sources)
    if isinstance(route, str):
        return route
    route = route.then(Step("pool", node, _bytes_shape(static_shape(tensor), standard), size))
    return _reordered(route, node, standard, perm)


def _through_reshape(node: gs.Node, tensor: gs.Tensor, perm: tuple[int, ...], sources: frozenset[str]) -> Route | str:
    before, after = static_shape(node.inputs[0]), static_shape(tensor)
    axis = axis_after_reshape(after, perm[-1], before)
    if axis is None:
        return _through_whole_bytes(node, perm, before, after, sources)
    route = find_route(node.inputs[0], channels_last(len(before), axis), sources)
    if isinstance(route, str):
        return route
    standard = channels_last(len(after), perm[-1])
    route = route.then(Step("reshape", node, _bytes_shape(after, standard)))
    return _reordered(route, node, standard, perm)


def _through_whole_bytes(
    node: gs.Node, perm: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], sources: frozenset[str]
) -> Route | str:
    """A reshape that splits the channel axis, into heads say, or joins it with axes before it, at whole bytes."""
    reason = f"{node.op} '{node.name}' does not keep the channel axis of the signs"
    axis, small = perm[-1], after[perm[-1]]
    first = next((j for j in range(axis, -1, -1) if (found := _span(after, j, axis, before)) is not None), None)
    if first is not None and small % 8 == 0 and (found := _span(after, first, axis, before)) is not None:
        route = find_route(node.inputs[0], channels_last(len(before), found), sources)
        rest = [i for i in range(len(after)) if not first <= i <= axis]
        standard = (*rest, *range(first, axis + 1))
    else:
        joined = _span_of(before, after, axis)
        if joined is None or before[joined[1]] % 8:
            return reason
        low, high = joined
        rest = [i for i in range(len(before)) if not low <= i <= high]
        route = find_route(node.inputs[0], (*rest, *range(low, high + 1)), sources)
        standard = channels_last(len(after), axis)
    if isinstance(route, str):
        return route
    route = route.then(Step("reshape", node, _bytes_shape(after, standard)))
    return _reordered(route, node, standard, perm)


def _span(parts: Sequence[int], first: int, last: int, whole: Sequence[int]) -> int | None:
    """The axis of ``whole`` that axes ``first`` to ``last`` of ``parts`` make together, or None."""
    lead, size = math.prod(parts[:first]), math.prod(parts[first : last + 1])
    return next((j for j, n in enumerate(whole) if n == size and math.prod(whole[:j]) == lead), None)


def _span_of(parts: Sequence[int], whole: Sequence[int], axis: int) -> tuple[int, int] | None:
    """The first and last axis of ``parts`` that axis ``axis`` of ``whole`` is made of, or None."""
    for first in range(len(parts)):
        for last in range(first, len(parts)):
            if math.prod(parts[:first]) == math.prod(whole[:axis]) and (
                math.prod(parts[first : last + 1]) == whole[axis]
            ):
                return first, last
    return None


def made_by_rows(tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is a product of rows, or an elementwise function of one: its channels are the last axis."""
    node = producer(tensor)
    while node is not None and not node.domain and node.op in ELEMENTWISE:
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        node = producer(live[0]) if live else None
    return node is not None and node.op in ("MatMul", "Gemm", "BinaryGemm", "BinaryMatMul", "AndMatMul")


def _home_axis(tensor: gs.Tensor) -> int | None:
    """The axis that holds the channels where the signs are taken (axis 1 there), as an axis of ``tensor``."""
    node = producer(tensor)
    if node is None:
        return None
    if node.op in ("Binarize", "MaxPool", "Quantize"):
        last = len(static_shape(tensor)) - 1
        return last if node.op != "MaxPool" and made_by_rows(node.inputs[0]) else min(1, last)
    above = _home_axis(node.inputs[0]) if node.op in RESHAPES | {"Transpose"} else None
    if above is None:
        return None
    if node.op == "Transpose":
        return list(node.attrs.get("perm") or range(len(static_shape(tensor)))[::-1]).index(above)
    return axis_after_reshape(static_shape(node.inputs[0]), above, static_shape(tensor))


def find_rows(tensor: gs.Tensor, sources: frozenset[str] = SIGNS) -> Rows | str:
    """How to get ``tensor`` ``[..., K]`` as packed rows, or why that cannot be.

    Where the row was flattened from a feature map, the bits come channels last: the row's elements are permuted, which
    ``columns`` tells, and each pixel ends with the zero bits that fill its last byte.
    """
    shape = static_shape(tensor)
    lead = int(np.prod(shape[:-1], dtype=np.int64))
    source, via = tensor, producer(tensor)
    while (node := producer(source)) is not None and not node.domain and node.op in RESHAPES:
        source = node.inputs[0]
    full = static_shape(source)
    splits = [j for j in range(len(full)) if int(np.prod(full[:j], dtype=np.int64)) == lead]
    if not splits:
        route = find_route(tensor, tuple(range(len(shape))), sources)
        return route if isinstance(route, str) else f"'{tensor.name}' is reshaped across the rows of the signs"
    split = splits[-1] if source is not tensor else len(full) - 1
    axis = _home_axis(source)
    axis = axis if axis is not None and axis >= split else len(full) - 1
    perm = channels_last(len(full), axis)
    route = find_route(source, perm, sources)
    if isinstance(route, str):
        return route
    features = np.arange(int(np.prod(full[split:], dtype=np.int64))).reshape(full[split:])
    features = np.moveaxis(features, axis - split, -1)
    count = packed_bytes(full[axis])
    columns = np.full((*features.shape[:-1], 8 * count), -1)
    columns[..., : full[axis]] = features
    target = (*shape[:-1], columns.size // 8)
    if target != _bytes_shape(full, perm) and via is not None:
        route = route.then(Step("reshape", via, target))
    return Rows(route, columns.reshape(-1))
