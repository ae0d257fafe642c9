"""Moves the scale and the shift of signs from before a binary layer to behind it.

Matches `Conv`, `Gemm` and `MatMul` with weights ±1 whose activation is an affine function of a `Binarize` (``affine_signs``):
signs times a scalar, times a number computed for each sample (or each row), {0, 1} activations (``0.5·b + 0.5``), or any
two levels. Gives the same layer of the signs alone, then the operations in their order, with L(t) in the place of a shift t.

Why it is right: the layer is linear (``affine_signs``). The sum of signs is an exact integer, so a scale is rounded once where
the original rounds each product; of {0, 1} and ±1 every number here is a half of an integer below 2²⁴, which is exact: the
result is the original's bit for bit. Zero padding pads the *value* 0: where the affine function takes a sign p to 0
(p = −1 for {0, 1}) the signs are padded with p, and L(t) is one number a channel; else L(t) is computed with its border.

Does not fire, and says so, for a scale that differs along the axes that one output sums over (it is then no sum of signs), for
a shift that is computed at run time, and for a maximum behind a scale that may be negative.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from ... import golden
from ..base import Context, Pass, Status, add_constant, add_node, constant, static_shape
from ..chain import original_name
from ..graph import dead_nodes, remove_node
from ..windows import window
from .affine_signs import AffineSigns, Post, padded_sign, sinkable

_NAMES = {"mul": "Mul", "div": "Div", "add": "Add", "sub": "Sub", "rsub": "Sub"}


class SinkAffine(Pass):
    """See the module."""

    name: ClassVar[str] = "sink_affine"
    requires: ClassVar[tuple[str, ...]] = ("binary_weights",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the module."""
        made: dict[Any, gs.Tensor] = {}
        changed = False
        for node in [node for node in graph.nodes if node.op in ("Conv", "Gemm", "MatMul") and not node.domain]:
            if not _weights_are_signs(node):
                continue
            found = sinkable(node)
            if isinstance(found, str):
                ctx.note(node, Status.FLOAT, found)
            elif found is not None:
                _sink(graph, ctx, node, found, made)
                changed = True
        for dead in dead_nodes(graph):
            if dead.op in ("Mul", "Div", "Add", "Sub", "Neg"):
                ctx.note(dead, Status.FUSED, "scale or shift of signs: done to the sums of the layer behind them")
            remove_node(graph, dead)
        return changed


def _weights_are_signs(node: gs.Node) -> bool:
    value = constant(node.inputs[1])
    return value is not None and value.dtype == np.float32 and bool((np.abs(value) == 1).all())


def _sink(graph: gs.Graph, ctx: Context, node: gs.Node, found: AffineSigns, made: dict[Any, gs.Tensor]) -> None:
    base, output = original_name(ctx, node), node.outputs[0]
    shape = static_shape(output)
    signs = _moved_signs(graph, ctx, found, made)
    attrs = dict(node.attrs)
    shifted = any(not post.scales for post in found.posts)
    if node.op == "Conv" and shifted:
        signs = _pad_signs(graph, ctx, node, found, signs, attrs, made)
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    steps: list[tuple[str, gs.Tensor, bool]] = []
    for index, post in enumerate(found.posts):
        if post.scales:
            operand = _scale_operand(graph, ctx, node, post, len(shape))
        else:
            operand = add_constant(ctx, f"{base}/shift{index}", _response(ctx, node, post, attrs))
        steps.append((_NAMES[post.op], operand, post.op == "rsub"))
    if bias is not None and node.op == "Conv":
        value = np.asarray(constant(bias))
        steps.append(("Add", add_constant(ctx, f"{base}/bias", value.reshape(1, -1, *[1] * (len(shape) - 2))), False))
    weight, op = node.inputs[1], node.op
    remove_node(graph, node)
    value = add_node(graph, ctx, op, [signs, weight], stands_for=node, shape=shape, dtype=np.float32, **attrs)
    for index, (name, operand, swapped) in enumerate(steps):
        last = output if index == len(steps) - 1 else None
        pair = [operand, value] if swapped else [value, operand]
        value = add_node(graph, ctx, name, pair, stands_for=node, output=last, shape=shape, dtype=np.float32)
    ctx.note(node, Status.FLOAT, "its signs are freed of their scale, but nothing packed it")


def _moved_signs(graph: gs.Graph, ctx: Context, found: AffineSigns, made: dict[Any, gs.Tensor]) -> gs.Tensor:
    """The signs themselves, moved as the activation was; shared by the layers that read the same."""
    tensor = found.binarize.outputs[0]
    key: tuple[Any, ...] = (id(tensor),)
    for move, sign in zip(found.moves, found.pad_values, strict=True):
        key = (*key, id(move))
        if key not in made:
            if move.inputs[0] is tensor and move.op != "Pad":
                made[key] = move.outputs[0]
            else:
                inputs = [tensor, *list(move.inputs)[1:]]
                if move.op == "Pad":
                    fill = add_constant(ctx, f"{move.name}/sign", np.array(sign, np.float32))
                    inputs = [tensor, move.inputs[1], fill, *list(move.inputs)[3:]]
                shape = static_shape(move.outputs[0])
                made[key] = add_node(
                    graph, ctx, move.op, inputs, stands_for=move, shape=shape, dtype=np.float32, **move.attrs
                )
        tensor = made[key]
    return tensor


def _pad_signs(
    graph: gs.Graph, ctx: Context, node: gs.Node, found: AffineSigns, signs: gs.Tensor, attrs: dict[str, Any],
    made: dict[Any, gs.Tensor],
) -> gs.Tensor:  # fmt: skip
    """The signs, padded with the sign whose value is 0, and ``attrs`` without padding; as they are where there is none."""
    shape = static_shape(signs)
    own = window(node, shape[2:], static_shape(node.inputs[1])[2:])
    sign = padded_sign(found.posts, 0.0)
    if not own.padded or not sign or (found.moves and found.moves[-1].op == "Pad"):
        return signs
    axes = len(shape) - 2
    pads = [*own.pads[2 - axes : 2], *own.pads[4 - axes :]]
    attrs.pop("auto_pad", None)
    attrs["pads"] = [0] * (2 * axes)
    key = (id(signs), "pad", sign, tuple(pads))
    if key not in made:
        amounts = np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64)
        constants = [
            add_constant(ctx, f"{node.name}/pads", amounts),
            add_constant(ctx, f"{node.name}/pad_value", np.array(sign, np.float32)),
        ]
        grown = [*shape[:2], *(n + pads[i] + pads[axes + i] for i, n in enumerate(shape[2:]))]
        made[key] = add_node(
            graph, ctx, "Pad", [signs, *constants], stands_for=node, shape=grown, dtype=np.float32, mode="constant"
        )
    return made[key]


def _scale_operand(graph: gs.Graph, ctx: Context, node: gs.Node, post: Post, rank: int) -> gs.Tensor:
    """The scale, shaped for the layer's output."""
    shape = post.shape
    if node.op == "Conv" and shape[1] != 1:  # depthwise: each input channel makes several of the outputs
        repeats = static_shape(node.outputs[0])[1] // shape[1]
        value = post.value
        if value is not None:
            return add_constant(ctx, f"{post.operand.name}/scale", np.repeat(value, repeats, axis=1))
        if repeats > 1:
            shape = (shape[0], shape[1] * repeats, *shape[2:])
            index = add_constant(ctx, f"{post.operand.name}/index", np.repeat(np.arange(shape[1] // repeats), repeats))
            whole = _reshaped(graph, ctx, node, post.operand, post.shape)
            return add_node(
                graph, ctx, "Gather", [whole, index], stands_for=node, shape=shape, dtype=np.float32, axis=1
            )
    value = post.value
    if value is not None:
        return add_constant(ctx, f"{post.operand.name}/scale", value if value.size > 1 else value.reshape(()))
    return _reshaped(graph, ctx, node, post.operand, shape)


def _reshaped(graph: gs.Graph, ctx: Context, node: gs.Node, tensor: gs.Tensor, shape: tuple[int, ...]) -> gs.Tensor:
    if static_shape(tensor) == shape:
        return tensor
    target = add_constant(ctx, f"{tensor.name}/shape", np.array(shape, np.int64))
    return add_node(graph, ctx, "Reshape", [tensor, target], stands_for=node, shape=shape, dtype=np.float32)


def _response(ctx: Context, node: gs.Node, post: Post, attrs: dict[str, Any]) -> np.ndarray:
    """L(t): what the layer makes of the constant t alone, as small as broadcasting allows.

    A t that is one number everywhere is factored out, so that the rest is a sum of ±1 and exact.
    """
    shift = np.asarray(post.value)
    weight = np.asarray(constant(node.inputs[1]))
    uniform = bool((shift == shift.flat[0]).all())
    factor = np.float64(shift.flat[0]) if uniform else np.float64(1)
    if node.op == "Conv":
        size = list(static_shape(node.inputs[0]))
        size[0] = 1
        if "pads" in attrs and not any(attrs["pads"]):  # they were padded as signs: the border is like the rest
            own = window(node, size[2:], weight.shape[2:])
            axes = len(size) - 2
            begin, end = own.pads[2 - axes : 2], own.pads[4 - axes :]
            size[2:] = [n + before + after for n, before, after in zip(size[2:], begin, end, strict=True)]
        whole = np.ones(size, np.float32) if uniform else np.broadcast_to(shift, size).astype(np.float32)
        proto = helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
        found = golden.evaluate([proto], {"x": np.ascontiguousarray(whole), "w": weight}, ["y"], opset=ctx.opset)["y"]
    else:
        columns = weight if node.op == "MatMul" or not node.attrs.get("transB", 0) else weight.T
        row = np.ones(columns.shape[0]) if uniform else np.broadcast_to(shift.reshape(-1), columns.shape[:1])
        found = row.astype(np.float64) @ columns.astype(np.float64)
    for axis in range(2, found.ndim):
        first = np.take(found, [0], axis=axis)
        if (found == first).all():
            found = first
    return (found * factor).astype(np.float32)
