"""Turns inference batch normalization into a multiplication and an addition.

Matches `BatchNormalization` of float32 with constant parameters. Gives `Mul` by ``scale' = scale · (1 / sqrt(var + eps))`` and
`Add` of ``bias' = bias − mean · scale'``, per channel.

Why it is right: ONNX Runtime's CPU kernel computes exactly these two vectors in float32, in this order, and then
``x · scale' + bias'`` with two roundings; so the two nodes give the same bits (``tests/passes/test_fold_affine.py``). What
follows can then look at plain arithmetic. Products of constants are not merged: that would round differently.

Does not fire in training mode, for parameters that are not constant, or for a dtype other than float32.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, add_constant, add_node, constant
from ..graph import remove_node


class FoldAffine(Pass):
    """See the module."""

    name: ClassVar[str] = "fold_affine"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every batch normalization that matches."""
        changed = False
        for node in [node for node in graph.nodes if node.op == "BatchNormalization" and not node.domain]:
            reason = _obstacle(node)
            if reason is None:
                _rewrite(graph, ctx, node)
                ctx.note(node, Status.FLOAT, "computed as Mul and Add in float")
                changed = True
            else:
                ctx.note(node, Status.FLOAT, reason)
        return changed


def _obstacle(node: gs.Node) -> str | None:
    if node.attrs.get("training_mode", 0):
        return "batch normalization in training mode: export the module in eval mode"
    if any(out.outputs for out in node.outputs[1:]):
        return "its running statistics are read"
    if node.inputs[0].dtype != np.float32 or any(t.dtype != np.float32 for t in node.inputs[1:]):
        return f"batch normalization of {node.inputs[0].dtype}: only float32 is rewritten"
    if any(constant(tensor) is None for tensor in node.inputs[1:]):
        return "its parameters are not constant"
    if node.inputs[0].shape is None:
        return "the rank of its input is not known"
    return None


def affine(node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """``scale'`` and ``bias'``, float32 ``[C]``, as ONNX Runtime's kernel computes them."""
    scale, bias, mean, var = (np.asarray(constant(tensor)) for tensor in node.inputs[1:5])
    epsilon = np.float32(node.attrs.get("epsilon", 1e-5))
    inverse = np.float32(1) / np.sqrt(var + epsilon)
    factor = inverse * scale
    return factor, bias - mean * factor


def _rewrite(graph: gs.Graph, ctx: Context, node: gs.Node) -> None:
    factor, offset = affine(node)
    x, out = node.inputs[0], node.outputs[0]
    rank = len(x.shape)
    shape = [1, -1] + [1] * (rank - 2) if rank > 2 else [-1]
    scale = add_constant(ctx, f"{node.name}/scale", factor.reshape(shape))
    bias = add_constant(ctx, f"{node.name}/bias", offset.reshape(shape))
    x_shape, dtype = x.shape, x.dtype
    remove_node(graph, node)
    scaled = add_node(graph, ctx, "Mul", [x, scale], stands_for=node, shape=x_shape, dtype=dtype)
    add_node(graph, ctx, "Add", [scaled, bias], stands_for=node, output=out, shape=x_shape, dtype=dtype)
