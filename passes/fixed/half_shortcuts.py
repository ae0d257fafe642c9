"""Shortcuts of residual blocks are stored as float16, where the user asks for it (``--shortcuts float16``).

Matches the `Add` nodes that ``Options.shortcuts`` names, each with the operand that is the shortcut, and puts
`Cast(float16) → Cast(float32)` between that operand and the sum: the value is rounded to the nearest float16, ties to even, and
everything else stays float32. Signs and levels are taken of the value before it is rounded. On a device the rounding is part of
the kernel that makes the value and of the one that adds it, and half of the memory goes over the bus.

A shortcut moves by at most 2⁻¹¹ of itself (2⁻²⁵ below 2⁻¹⁴); one past 65504 becomes infinite. It changes results: that is the
user's choice, recorded in the packed model, and validation compares with the model that this pass alone makes (and reports how
far that is from the one as given).

``candidates`` finds the shortcuts in a packed model. It leaves those whose value is read by anything else than signs, levels
and such sums, those that no binary or few-bit layer makes, and those that the packed model does not have as the original has.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_node, static_shape

PACKERS = ("Pack", "PackLevels")


class HalfShortcuts(Pass):
    """See the module."""

    name: ClassVar[str] = "half_shortcuts"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Round the named operands; sums of one value share its rounding."""
        chosen = ctx.options.shortcuts or {}
        rounded: dict[int, gs.Tensor] = {}
        for node in list(graph.nodes):
            place = chosen.get(node.name)
            if place is None or node.op != "Add" or node.domain:
                continue
            value = node.inputs[place]
            if np.dtype(value.dtype) != np.float32:
                continue
            if id(value) not in rounded:
                shape = static_shape(value)
                half = add_node(
                    graph, ctx, "Cast", [value], stands_for=node, to=TensorProto.FLOAT16, shape=shape, dtype=np.float16
                )
                rounded[id(value)] = add_node(
                    graph, ctx, "Cast", [half], stands_for=node, to=TensorProto.FLOAT, shape=shape, dtype=np.float32
                )
            node.inputs[place] = rounded[id(value)]
            ctx.note(node, Status.FLOAT, "its shortcut is stored as float16 by choice")
        return bool(rounded)


def candidates(packed: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, int]:
    """The sums of ``packed`` whose shortcut can be stored as float16: `Add` node → which operand. See the module."""
    groups = {
        node.name: next((e.value for e in node.metadata_props if e.key == "xnorc.group"), None)
        for node in packed.graph.node
    }
    makers = {name: node for node in packed.graph.node for name in node.output}
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*packed.graph.value_info, *packed.graph.output)
    }
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in packed.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given = {node.name: node for node in original.graph.node}
    outputs = {info.name for info in packed.graph.output}

    def place(node: onnx.NodeProto, value: str) -> int | None:
        """Which operand of a sum inside an epilogue ``value`` is, where the original has the same sum."""
        own = groups[node.name]
        if node.op_type != "Add" or own is None or node.input[0] == node.input[1]:
            return None
        other = node.input[1 - list(node.input).index(value)]
        before, same = makers.get(other), given.get(node.name)
        if before is None or groups[before.name] != own or same is None or list(same.input) != list(node.input):
            return None
        return list(node.input).index(value) if shapes.get(value) == shapes.get(node.output[0]) else None

    found: dict[str, int] = {}
    for name, maker in makers.items():
        if groups[maker.name] is None or name in outputs or maker.domain == DOMAIN:
            continue
        adds: dict[str, int] = {}
        for reader in readers.get(name, []):
            where = place(reader, name)
            if where is not None:
                adds[reader.name] = where
            elif reader.domain != DOMAIN or reader.op_type not in PACKERS:
                break
        else:
            found |= adds
    return found
