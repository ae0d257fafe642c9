"""Rewrites a count of thresholds to ``Quantize``.

Matches ``Unsqueeze(x, last) ≥ T → Cast → ReduceSum(last)``, which is how FINN's ``MultiThreshold`` is read
(``qonnx_ops.py``), with constant thresholds for all channels or for each (``[C, 1, 1, n]``); and what follows with single
constants: ``Mul``, ``Add``, ``Sub``, ``Div``.

Why it is right: the number of thresholds that x reaches does not depend on their order; sorted, they are the steps of a
``Quantize``, and the levels' values are what those operations make of 0, 1, … n in float32. x must not be NaN.

Does not fire for more than 255 thresholds, for thresholds that vary along two axes, and where something else reads the
comparisons.

The output tensor keeps its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...opset import DOMAIN
from ...opset.levels import MAX_PLANES
from ..base import (
    Context,
    Levels,
    Pass,
    Status,
    add_constant,
    add_node,
    constant,
    only_consumer,
    producer,
    static_shape,
)
from ..chain import cast_target
from ..graph import remove_node

_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


@dataclass
class _Count:
    """A tensor that holds ``value[number of thresholds that x reaches]``."""

    x: gs.Tensor
    axis: int
    thresholds: np.ndarray
    """float32 ``[n, C]`` or ``[n, 1]``, rising along n."""
    values: np.ndarray
    """float32 ``[n + 1]``."""
    nodes: list[gs.Node] = field(default_factory=list)
    """In graph order; the last one computes the tensor."""


class RecogniseThresholds(Pass):
    """See the module."""

    name: ClassVar[str] = "recognise_thresholds"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """One rewrite for each ``ReduceSum`` that matches."""
        changed = False
        for node in [node for node in graph.nodes if node.op == "ReduceSum" and not node.domain]:
            found = _match(graph, node)
            if found is not None:
                _follow(graph, found)
                _rewrite(graph, ctx, found)
                changed = True
        return changed


def _match(graph: gs.Graph, count: gs.Node) -> _Count | None:
    """The count that a ``ReduceSum`` ends, without what follows it."""
    nodes = [count]
    for op in ("Cast", "GreaterOrEqual", "Unsqueeze"):
        tensor = nodes[0].inputs[0]
        node = producer(tensor)
        if node is None or node.op != op or node.domain or only_consumer(graph, tensor) is not nodes[0]:
            return None
        nodes.insert(0, node)
    unsqueeze, compare, cast, _ = nodes
    x, limits = unsqueeze.inputs[0], constant(compare.inputs[1])
    if x.dtype != np.float32 or x.shape is None or limits is None or cast_target(cast) != TensorProto.FLOAT:
        return None
    rank = len(static_shape(x))
    places = [constant(node.inputs[1]) if len(node.inputs) > 1 else None for node in (unsqueeze, count)]
    last = all(place is not None and place.size == 1 and place.item() in (rank, -1) for place in places)
    if not last or count.attrs.get("keepdims", 1):
        return None
    if limits.ndim > rank + 1:
        return None
    table: np.ndarray = limits.reshape([1] * (rank + 1 - limits.ndim) + list(limits.shape))
    if not 0 < table.shape[-1] < 1 << MAX_PLANES or not np.isfinite(table).all():
        return None
    varying = [axis for axis in range(rank) if table.shape[axis] != 1]
    if len(varying) > 1 or any(table.shape[axis] != static_shape(x)[axis] for axis in varying):
        return None
    steps = np.sort(table.reshape(-1, table.shape[-1]), axis=1).T
    values = np.arange(len(steps) + 1, dtype=np.float32)
    return _Count(x, varying[0] if varying else -1, np.ascontiguousarray(steps), values, nodes)


def _follow(graph: gs.Graph, found: _Count) -> None:
    """Take in the arithmetic behind the count."""
    while (node := only_consumer(graph, found.nodes[-1].outputs[0])) is not None:
        if node.op not in _ARITHMETIC or node.domain or len(node.outputs) != 1:
            return
        operands = [constant(tensor) for tensor in node.inputs]
        known = [value for value in operands if value is not None]
        if len(known) != 1 or known[0].size != 1 or known[0].ndim > len(static_shape(found.x)):
            return
        with np.errstate(all="ignore"):
            first, second = (found.values if value is None else value.reshape(()) for value in operands)
            values = np.asarray(_ARITHMETIC[node.op](first, second), np.float32)
        if not np.isfinite(values).all():
            return
        found.values = values
        found.nodes.append(node)


def _rewrite(graph: gs.Graph, ctx: Context, found: _Count) -> None:
    last = found.nodes[-1]
    output = last.outputs[0]
    width = found.thresholds.shape[1]
    for node in found.nodes[:-1]:
        ctx.note(node, Status.FUSED, f"part of the quantizer '{last.name}'")
    for node in found.nodes:
        remove_node(graph, node)
    inputs = [
        found.x,
        add_constant(ctx, f"{last.name}/thresholds", found.thresholds),
        add_constant(ctx, f"{last.name}/flip", np.zeros(width, np.uint8)),
        add_constant(ctx, f"{last.name}/values", found.values),
    ]
    add_node(graph, ctx, "Quantize", inputs, stands_for=last, output=output, domain=DOMAIN, axis=found.axis)
    if width == 1:
        steps, values = found.thresholds[:, 0].tolist(), found.values.tolist()
        ctx.quantizers[output.name] = Levels(output.name, found.x.name, steps, values)
    ctx.note(last, Status.FLOAT, f"a quantizer of {len(found.values)} levels that nothing reads as levels")
