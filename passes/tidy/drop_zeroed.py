"""Removes branches that are multiplied by zero.

Matches ``Add(x, t)``, ``Add(t, x)`` and ``Sub(x, t)`` where t is a product with a constant that is zero everywhere (``Mul`` by
0, ``Div`` of 0, also behind operations that move elements): `x + 0 · f(x)`, what a training leaves that fades a correction out,
FDA's noise adaptation for one.

Why it is right: 0 times a finite number is ±0, and x ± 0 is x (but for the sign of a zero). It is assumed that f(x) is
finite, as it is in any network that gives finite outputs; ONNX Runtime would give NaN where it is not.

Does not fire where the sum has another shape than x.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, constant, producer
from ..graph import bypass
from .clean import remove_dead

_MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Identity", "Neg"}
_DEPTH = 8
"""Longest chain that is followed backwards."""


class DropZeroed(Pass):
    """See the module."""

    name: ClassVar[str] = "drop_zeroed"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """One sweep in graph order, then dead code."""
        changed = False
        for node in list(graph.nodes):
            if node.domain or node.op not in ("Add", "Sub") or len(node.inputs) != 2:
                continue
            for kept, other in ((0, 1), (1, 0)) if node.op == "Add" else ((0, 1),):
                x, branch = node.inputs[kept], node.inputs[other]
                if constant(x) is None and _same_type(x, node.outputs[0]) and is_zero(branch):
                    if bypass(graph, node, x):
                        ctx.note(node, Status.REMOVED, f"it adds '{branch.name}', which is multiplied by 0")
                        changed = True
                    break
        return remove_dead(graph, ctx) or changed


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether a float tensor is zero for every finite input."""
    for _ in range(_DEPTH):
        value = constant(tensor)
        if value is not None:
            return value.dtype.kind == "f" and value.size > 0 and not value.any()
        node = producer(tensor)
        if node is None or node.domain:
            return False
        if node.op in ("Mul", "Div"):
            sides = [node.inputs[0]] if node.op == "Div" else list(node.inputs)
            factors = [np.asarray(value) for side in sides if (value := constant(side)) is not None]
            if any(value.dtype.kind == "f" and value.size > 0 and not value.any() for value in factors):
                return True
        elif node.op not in _MOVES:
            return False
        tensor = node.inputs[0] if constant(node.inputs[0]) is None else node.inputs[1]
    return False


def _same_type(before: gs.Tensor, after: gs.Tensor) -> bool:
    shapes = before.shape, after.shape
    return None not in shapes and list(before.shape) == list(after.shape) and before.dtype == after.dtype
