"""``split_concat``: what follows the concatenation of layers channel by channel is done on each of them before it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import VIEWS
from ..base import Context, Pass, add_constant, add_node, constant, is_output, only_consumer, static_shape
from ..chain import is_anchor, per_channel
from ..graph import remove_node
from .fuse_epilogue import is_step, path_of


class SplitConcat(Pass):
    """``Concat (channels) → step → …`` becomes ``step → …`` on every operand, then ``Concat``.

    A step is Relu, LeakyRelu, Clip with constant bounds, or Add, Sub, Mul, Div or PRelu with a constant of one value or one per
    channel, which is cut as the channels are. It fires where every operand ends the epilogue of a packed layer and has no
    other reader (a layer whose channels are doubled by a second one: ReActNet): the steps then join these epilogues and
    take no pass over memory of their own. Every element is computed as before.
    """

    name: ClassVar[str] = "split_concat"
    requires: ClassVar[tuple[str, ...]] = ("pack", "fuse_threshold")

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        concats = [
            node
            for node in graph.nodes
            if node.op == "Concat" and not node.domain and node.attrs["axis"] % len(static_shape(node.outputs[0])) == 1
        ]
        paths = [path_of(graph, ctx, node) for node in graph.nodes if concats and is_anchor(node)]
        ends = {id(path[-1].outputs[0]) for path in paths if path}
        changed = False
        for node in concats:
            if all(id(part) in ends and only_consumer(graph, part) is node for part in node.inputs):
                changed |= _split(graph, ctx, node)
        return changed


def _split(graph: gs.Graph, ctx: Context, concat: gs.Node) -> bool:
    shape, parts = static_shape(concat.outputs[0]), list(concat.inputs)
    steps: list[gs.Node] = []
    value = concat.outputs[0]
    while (
        not is_output(graph, value)
        and (following := only_consumer(graph, value))
        and _is_constant_step(following, value, shape)
    ):
        steps.append(following)
        value = following.outputs[0]
    if not steps:
        return False
    ends = np.cumsum([static_shape(part)[1] for part in parts])
    current, before = parts, concat.outputs[0]
    for step in steps:
        following = []
        for part, end in zip(current, ends, strict=True):
            size = static_shape(part)[1]
            inputs = [
                part if x is before else _cut(ctx, step, x, shape, int(end) - size, int(end)) for x in step.inputs
            ]
            kind = {"shape": static_shape(part), "dtype": part.dtype}
            following.append(add_node(graph, ctx, step.op, inputs, stands_for=step, **kind, **step.attrs))
        current, before = following, step.outputs[0]
    for node in (concat, *steps):
        remove_node(graph, node)
    add_node(graph, ctx, "Concat", current, stands_for=concat, output=value, shape=shape, dtype=value.dtype, axis=1)
    return True


def _is_constant_step(node: gs.Node, value: gs.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an epilogue takes ``node`` and its other operands are constants, of one value or one per channel."""
    if node.op in VIEWS or static_shape(node.outputs[0]) != shape or not is_step(node, value, True, set()):
        return False
    others = [constant(x) for x in node.inputs if x is not value and not x.is_empty()]
    return all(found is not None and per_channel(found, shape, 1) is not None for found in others)


def _cut(ctx: Context, step: gs.Node, operand: gs.Tensor, shape: tuple[int, ...], start: int, end: int) -> gs.Tensor:
    """The constant of a step for the channels from ``start`` to ``end``."""
    value = constant(operand)
    if value is None:  # an operand that is left out
        return operand
    axis = value.ndim - len(shape) + 1
    if axis < 0 or value.shape[axis] == 1:
        return operand
    part = np.take(value, range(start, end), axis)
    return add_constant(ctx, f"{ctx.renamed.get(step.name, step.name)}/{start}", part)
