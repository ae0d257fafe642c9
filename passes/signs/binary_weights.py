"""Finds binary weights by their values and makes them exactly ±1.

Matches `Conv`, `Gemm` (`transB` too) and `MatMul` (either operand, a matrix) with a constant float32 weight in which every
output channel holds only the magnitude s of that channel, up to 4 ulp of float32 around the mean (folding the
weight chain of a straight-through estimator leaves 3 to 6 such "levels"), and an activation that is the output of a
`Binarize`, seen through `MaxPool`, `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, `Transpose` and `Pad`, or an affine
function of one that `sink_affine` can move behind the layer.
Gives the same operator with weights ±1 and without a bias, then `Mul` by s per output channel (left out when all s are
1), `Mul` by `alpha`, `Add` of the bias: the operator alone then computes integers.

Why it is right: Σ x·(s·w) = s·Σ x·w. The sum of ±1 is exact in float32 (below 2²⁴ terms), so the new form has fewer roundings
than the old one. s is the median of the channel's magnitudes, a value that is in the weight. The result moves within float
rounding; a sign behind it can flip only where the old value was a rounding error away from zero.

Does not fire, and says so, for weights with other levels (ternary weights too), for activations that are not signs, and for
weights of more than two dimensions in a MatMul. A channel that is all zero in an otherwise binary weight is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...errors import ModelError
from ..base import Context, Pass, Status, add_constant, add_node, constant, producer
from ..graph import remove_node
from .affine_signs import sinkable
from .sign_residue import is_binarize

TOLERANCE_ULP = 4
"""How far a magnitude may be from the mean of its channel, in float32 ulp of that mean."""

_TRANSPARENT = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Identity"}


@dataclass
class Levels:
    """A weight seen as ±1 times a scale per output channel."""

    signs: np.ndarray
    """float32, shape of the weight, −1 or +1."""
    scale: np.ndarray
    """float32 ``[O]``, positive."""


@dataclass
class _Operand:
    """Which input of a node is the weight, which axis of it counts output channels, and how a scale must lie."""

    index: int
    axis: int
    scale_shape: tuple[int, ...]


class BinaryWeights(Pass):
    """See the module."""

    name: ClassVar[str] = "binary_weights"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants", "recognise_sign")
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every node that matches; note the reason at every other Conv, Gemm and MatMul with a weight."""
        changed = False
        shared: dict[tuple[int, int], gs.Constant] = {}
        for node in [node for node in graph.nodes if node.op in ("Conv", "Gemm", "MatMul") and not node.domain]:
            operand = _operand(node)
            if operand is None:
                continue
            weight = node.inputs[operand.index]
            found = binary_levels(np.asarray(constant(weight)), operand.axis)
            activation = node.inputs[1 - operand.index] if node.op != "Conv" else node.inputs[0]
            reason = _activation_obstacle(activation)
            affine = None if reason is None else sinkable(node)
            if affine is not None:  # signs with a scale or a shift, which sink_affine moves behind the layer, or cannot
                reason = affine if isinstance(affine, str) else None
            if isinstance(found, str):
                ctx.note(node, Status.FLOAT, found if reason else f"activations are binary, {found}")
            elif reason is not None:
                ctx.note(node, Status.FLOAT, f"weights are binary, activations are not: {reason}")
            else:
                _raise_on_zero_channel(node, weight, found)
                changed |= _rewrite(graph, ctx, node, operand, found, shared)
        return changed


def _operand(node: gs.Node) -> _Operand | None:
    """The weight of the node, or None without one that fits."""
    if node.op == "Conv":
        weight = constant(node.inputs[1])
        if weight is None or weight.dtype != np.float32 or constant(node.inputs[0]) is not None:
            return None
        return _Operand(1, 0, (1, weight.shape[0], *[1] * (weight.ndim - 2)))
    sides = [index for index in (0, 1) if constant(node.inputs[index]) is not None]
    if len(sides) != 1:
        return None
    weight = np.asarray(constant(node.inputs[sides[0]]))
    if weight.dtype != np.float32 or weight.ndim != 2:
        return None
    if node.op == "Gemm":
        transposed = bool(node.attrs.get("transB" if sides[0] else "transA", 0))
        axis = int(not transposed) if sides[0] else int(transposed)
    else:
        axis = 1 if sides[0] else 0
    channels = weight.shape[axis]
    return _Operand(sides[0], axis, (channels,) if sides[0] else (channels, 1))


def binary_levels(weight: np.ndarray, axis: int) -> Levels | str:
    """See ``weight`` as signs times a scale per index of ``axis``, or say why it is not (one phrase).

    An all-zero channel gets scale 0 and is for the caller to refuse, when the rest is binary.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    if rows.size == 0:
        return "the weights are empty"
    magnitude = np.abs(rows)
    mean = magnitude.mean(axis=1, dtype=np.float64).astype(np.float32)
    spread = np.abs(magnitude.astype(np.float64) - mean[:, None]).max(axis=1)
    bad = spread > TOLERANCE_ULP * np.spacing(mean).astype(np.float64)
    dead = ~rows.any(axis=1)
    if bad.any() or dead.all():
        return _other_levels(rows, bad)
    middle = rows.shape[1] // 2
    scale = np.partition(magnitude, middle, axis=1)[:, middle]
    return Levels(np.where(weight < 0, np.float32(-1), np.float32(1)), scale.astype(np.float32))


def _other_levels(rows: np.ndarray, bad: np.ndarray) -> str:
    if not rows.any():
        return "the weights are all zero"
    channel = int(np.argmax(bad))
    nonzero = [np.abs(row[row != 0]) for row in rows]
    even = all(r.size == 0 or r.max() - r.min() <= 2 * TOLERANCE_ULP * np.spacing(r.max()) for r in nonzero)
    if even:
        return f"weights are ternary: output channel {channel} has zeros beside ±s"
    levels = np.unique(rows[channel]).size
    return f"weights are not binary: output channel {channel} has {levels} levels"


def _activation_obstacle(tensor: gs.Tensor) -> str | None:
    """None when ``tensor`` is made of signs, else what computes it."""
    while True:
        node = producer(tensor)
        if node is None:
            return f"'{tensor.name}' is an input of the model"
        if is_binarize(tensor):
            return None
        if node.domain or node.op not in _TRANSPARENT:
            return f"'{tensor.name}' is computed by {node.op} '{node.name}'"
        if node.op == "Pad" and not _pads_signs(node):
            return f"'{tensor.name}' is padded by '{node.name}' with a value that is not 0, -1 or +1"
        tensor = node.inputs[0]


def _pads_signs(node: gs.Node) -> bool:
    if node.attrs.get("mode", "constant") != "constant":
        return True
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    value = constant(node.inputs[2])
    return value is not None and value.size == 1 and value.item() in (-1, 0, 1)


def _raise_on_zero_channel(node: gs.Node, weight: gs.Tensor, levels: Levels) -> None:
    if (levels.scale == 0).any():
        channel = int(np.argmin(levels.scale))
        raise ModelError(
            f"node '{node.name}' ({node.op}): output channel {channel} of the binary weight '{weight.name}' is all zero: "
            "remove the channel, or give its weights a sign"
        )


def _rewrite(
    graph: gs.Graph,
    ctx: Context,
    node: gs.Node,
    operand: _Operand,
    levels: Levels,
    shared: dict[tuple[int, int], gs.Constant],
) -> bool:
    weight = node.inputs[operand.index]
    exact = bool((np.asarray(constant(weight)) == levels.signs).all())
    has_bias = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    alpha, beta = (
        np.float32(node.attrs.get(key, 1.0)) if node.op == "Gemm" else np.float32(1) for key in ("alpha", "beta")
    )
    if exact and not has_bias and alpha == 1:
        return False
    if exact:
        signs = weight
    else:
        key = (id(weight), operand.axis)
        if key not in shared:
            shared[key] = add_constant(ctx, f"{weight.name}_sign", levels.signs)
        signs = shared[key]
    after: list[tuple[str, gs.Tensor]] = []
    if not (levels.scale == 1).all():
        after.append(("Mul", add_constant(ctx, f"{node.name}/scale", levels.scale.reshape(operand.scale_shape))))
    if alpha != 1:
        after.append(("Mul", add_constant(ctx, f"{node.name}/alpha", np.asarray(alpha))))
    if has_bias and beta != 0 and not (_is_zero(node.inputs[2]) and alpha > 0):
        after.append(("Add", _bias(ctx, node, operand, beta)))
    inputs = list(node.inputs[:2])
    inputs[operand.index] = signs
    out, attrs = node.outputs[0], {key: value for key, value in node.attrs.items() if key not in ("alpha", "beta")}
    shape, dtype, op = out.shape, out.dtype, node.op
    remove_node(graph, node)
    last = len(after)
    tensor = add_node(
        graph, ctx, op, inputs, stands_for=node, output=out if last == 0 else None, shape=shape, dtype=dtype, **attrs
    )
    for index, (kind, operand_tensor) in enumerate(after, start=1):
        end = out if index == last else None
        tensor = add_node(
            graph, ctx, kind, [tensor, operand_tensor], stands_for=node, output=end, shape=shape, dtype=dtype
        )
    ctx.note(node, Status.FLOAT, "weights and activations are binary, but nothing packed it")
    return True


def _is_zero(bias: gs.Tensor) -> bool:
    """Whether a bias adds nothing: the scaled sum before it is never −0, the one value that adding 0 would change."""
    value = constant(bias)
    return value is not None and bool((value == 0).all())


def _bias(ctx: Context, node: gs.Node, operand: _Operand, beta: np.float32) -> gs.Tensor:
    """The bias as an addend: per channel for a Conv; a Gemm's broadcasts already; times beta."""
    bias = node.inputs[2]
    value = constant(bias)
    if node.op == "Conv":
        if value is None:
            raise ModelError(f"node '{node.name}' (Conv): its bias '{bias.name}' is not constant: export it folded")
        return add_constant(ctx, f"{node.name}/bias", value.reshape(operand.scale_shape))
    if beta == 1:
        return bias
    if value is None:
        raise ModelError(f"node '{node.name}' (Gemm): beta is {beta} and C is not constant: multiply C in the model")
    return add_constant(ctx, f"{node.name}/bias", value * beta)
