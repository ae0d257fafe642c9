"""``fuse_epilogue``: marks what follows an accumulator as work of the kernel that computes it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, VIEWS, keeps_places, operand_lies
from ..base import (
    Context,
    Pass,
    Status,
    add_node,
    constant,
    consumers,
    is_output,
    only_consumer,
    producer,
    static_shape,
)
from ..chain import absorbed, cast_target, is_anchor, original_name, per_channel
from ..graph import toposort

_FLOAT = 1
"""ONNX element type of float32."""
_TWO_OPERANDS = frozenset({"Add", "Div", "Mul", "Sub"})


class FuseEpilogue(Pass):
    """From each BinaryConv or BinaryGemm along the path on which every tensor has one reader, up to the first misfit.

    * ``Pack`` of int32 with identity ``perm`` directly on the accumulator: the kernel stores bits.
    * ``(Transpose to NCHW) → Cast to float32`` and then Relu, PRelu, LeakyRelu, ThresholdedRelu and Clip whose constants are
      one value or one per channel, and Mul, Add, Sub and Div with a constant or a computed tensor that is a whole one (a
      residual) or one value per image, channel or pixel, or a combination of these (``operand_lies``). A computed one must
      not depend on the accumulator, so that it exists when the kernel runs.
    * Reshapes that leave images, channels and pixels where they are (the height 1 of a 1-D convolution).

    Nothing is computed differently: the nodes stay in the graph, and ``ctx.groups`` names their anchor. A tensor with
    several readers, or an output of the model, is the last of its group: the kernel stores it.

    One rewrite helps: the sum of two int32 accumulators (a sign that can be zero) that is only converted to float is
    summed after conversion, so that the second kernel takes the first one's result as a residual. Both sums are exact,
    as accumulators are far below 2^24.

    It does not fire for an accumulator with several readers, for a division by the value, for operands that
    vary along a part of the pixels' axes only, and for any other operation: those nodes stay nodes of their own.
    """

    name: ClassVar[str] = "fuse_epilogue"
    requires: ClassVar[tuple[str, ...]] = ("pack", "fuse_threshold")

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        for node in list(graph.nodes):
            if node.op == "Add" and not node.domain and all(is_anchor(producer(x)) for x in node.inputs):
                _sum_in_float(graph, ctx, node)
        toposort(graph)
        for node in graph.nodes:
            if is_anchor(node):
                self._mark(graph, ctx, node)
        return bool(ctx.groups)

    def ensures(self, graph: gs.Graph, ctx: Context) -> str | None:
        """Every grouped node and its anchor are in the graph."""
        names = {node.name for node in graph.nodes}
        lost = [name for pair in ctx.groups.items() for name in pair if name not in names]
        return f"group member '{lost[0]}' is not in the graph" if lost else None

    @staticmethod
    def _mark(graph: gs.Graph, ctx: Context, anchor: gs.Node) -> None:
        path = path_of(graph, ctx, anchor)
        for node in path:
            ctx.groups[node.name] = anchor.name
            if node.op != "Pack" and original_name(ctx, node) != original_name(ctx, anchor):
                absorbed(ctx, node, Status.FUSED, f"in the epilogue of '{original_name(ctx, anchor)}'")


def path_of(graph: gs.Graph, ctx: Context, anchor: gs.Node) -> list[gs.Node]:
    """The nodes that the kernel of ``anchor`` computes too, in order."""
    value = anchor.outputs[0]
    node = only_consumer(graph, value)
    if node is None:
        return []
    if node.op == "Pack" and node.domain == DOMAIN:
        identity = list(node.attrs["perm"]) == list(range(len(static_shape(value))))
        return [node] if identity and node.inputs[0] is value else []
    path: list[gs.Node] = []
    first = node.op == "Transpose" and list(node.attrs.get("perm") or ()) == [0, 3, 1, 2]
    if first:
        path, value = [node], node.outputs[0]
        node = only_consumer(graph, value)
    if node is None or node.op != "Cast" or cast_target(node) != _FLOAT:
        return []
    below = _descendants(anchor)
    while node is not None and node.name not in ctx.groups:
        path.append(node)
        value = node.outputs[0]
        following = only_consumer(graph, value)
        node = following if following is not None and is_step(following, value, first, below) else None
    return path


def is_step(node: gs.Node, value: gs.Tensor, channels_first: bool, below: set[int]) -> bool:
    """Whether an epilogue can do ``node`` to ``value``, whose channel axis is 1 or the last."""
    if node.domain:
        return False
    shape = static_shape(value)
    axis = 1 if channels_first else len(shape) - 1
    if node.op in ("Relu", "LeakyRelu", "ThresholdedRelu"):
        return True
    if node.op in VIEWS:
        return keeps_places(shape, static_shape(node.outputs[0]), channels_first)
    if node.op == "Clip":
        bounds = [constant(x) for x in node.inputs[1:] if not x.is_empty()]
        return all(bound is not None and bound.size == 1 for bound in bounds)
    if node.op not in _TWO_OPERANDS | {"PRelu"} or len([x for x in node.inputs if x is value]) != 1:
        return False
    first = node.inputs[0] is value
    other = node.inputs[1 if first else 0]
    fixed = constant(other)
    if node.op in ("Div", "PRelu") and not first:
        return False
    if node.op == "PRelu" and (fixed is None or per_channel(fixed, shape, axis) is None):
        return False
    if np.dtype(other.dtype) != np.float32:
        return False
    if fixed is not None and per_channel(fixed, shape, axis) is not None:
        return True
    if static_shape(node.outputs[0]) != shape or operand_lies(static_shape(other), shape, channels_first) is None:
        return False
    source = producer(other)
    return source is None or id(source) not in below


def _descendants(node: gs.Node) -> set[int]:
    """Ids of ``node`` and of all nodes that depend on it."""
    seen, waiting = {id(node)}, [node]
    while waiting:
        for tensor in waiting.pop().outputs:
            for reader in consumers(tensor):
                if id(reader) not in seen:
                    seen.add(id(reader))
                    waiting.append(reader)
    return seen


def _sum_in_float(graph: gs.Graph, ctx: Context, add: gs.Node) -> None:
    """``Cast(Transpose(a + b))`` → ``Cast(Transpose(a)) + Cast(Transpose(b))``, where nothing else reads the sums."""
    first, second = add.inputs
    path, tensor = [], add.outputs[0]
    while (node := only_consumer(graph, tensor)) is not None and node.op in ("Transpose", "Cast"):
        path.append(node)
        tensor = node.outputs[0]
        if node.op == "Cast":
            break
    if not path or path[-1].op != "Cast" or cast_target(path[-1]) != _FLOAT or first is second:
        return
    if any(len(consumers(x)) != 1 or is_output(graph, x) for x in (first, second)):
        return
    shape, floats = static_shape(tensor), []
    for accumulator in (first, second):
        value = accumulator
        for node in path:
            settings = {"perm": list(node.attrs["perm"])} if node.op == "Transpose" else {"to": _FLOAT}
            value = add_node(
                graph, ctx, node.op, [value], stands_for=add, shape=static_shape(node.outputs[0]),
                dtype=np.int32 if node.op == "Transpose" else np.float32, **settings,
            )  # fmt: skip
        floats.append(value)
    for node in (add, *path):
        node.inputs.clear()
    add_node(graph, ctx, "Add", floats[::-1], stands_for=add, output=tensor, shape=shape, dtype=np.float32)
    for node in (add, *path[:-1]):
        node.outputs.clear()
    gone = {id(add), *(id(node) for node in path)}
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
