"""Activations of 0 and 1 on float weights are packed into bits; the sum stays float (the code of a binary latent).

Matches `Gemm` and `MatMul` with a constant float32 weight on the right whose activations are 0 and 1 (``zero_one``: a
comparison cast to float, a rounded clip, half a sign plus a half), seen through `Transpose` and `Reshape`, and whose
weights are of no few levels (``low_bit`` has those).

Gives `Pack → BitFloatGemm`, then `Mul` by alpha and `Add` of the bias. The comparison is often with the output of a `Sigmoid`,
or of another function that rises or falls: `Pack` then compares the function's argument with the float32 number at which
the model's own nodes, run on numbers in float32 order, change their answer. (σ(z) > 0.5 is not z > 0 in float32: σ is
exactly 0.5 for some z above 0.) Nothing of the function is left to compute.

Why it is right: the function is found to be one step by bisection, and checked around the step and all over the range. The
sum is one of float32 weights, in any order, as the model's is.

Does not fire for activations of any other two levels. Where the function is no single step, it stays, and what it gives is
compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Origin, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import ELEMENTWISE, absorbed, original_name
from ..floats import LARGEST, from_keys
from ..graph import as_function, dead_nodes, remove_node
from ..pack.pack import reshape
from ..signs.zero_one import MOVES, ZeroOne, zero_one
from .low_bit import weight_rows
from .weight_codes import Encoded, encode

_DEPTH = 8


@dataclass(frozen=True)
class Step:
    """``(x >= threshold) xor flip``."""

    x: gs.Tensor
    threshold: np.float32
    flip: bool
    nodes: tuple[gs.Node, ...]
    """Between ``x`` and what the model compares."""


class BitFloat(Pass):
    """See the module."""

    name: ClassVar[str] = "bit_float"
    requires: ClassVar[tuple[str, ...]] = ("pack_products",)
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every layer that matches; activations that several layers read are packed once."""
        packed: dict[int, gs.Tensor] = {}
        for node in [node for node in graph.nodes if node.op in ("Gemm", "MatMul") and not node.domain]:
            rows, x = weight_rows(node), node.inputs[0]
            moved = None if rows is None else _behind_moves(x)
            found = None if moved is None else zero_one(moved[0])
            if rows is None or moved is None or found is None or isinstance(encode(rows), Encoded):
                continue
            step = _step(found, ctx)
            if isinstance(step, str):
                ctx.note(node, Status.FLOAT, f"its activations are 0 and 1, but {step}")
                continue
            if id(x) not in packed:
                packed[id(x)] = _pack(graph, ctx, x, found, step, moved[1])
            _rewrite(graph, ctx, node, packed[id(x)], rows)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return bool(packed)


def _behind_moves(tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The 0 and 1 behind a layer's input, and the moves from there to it."""
    moves: list[gs.Node] = []
    while zero_one(tensor) is None:
        node = producer(tensor)
        if node is None or node.domain or node.op not in MOVES or len(moves) == _DEPTH:
            return None
        moves.append(node)
        tensor = node.inputs[0]
    return tensor, moves[::-1]


def _before(tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[gs.Node, ...]]:
    """Where a chain of functions of one number, with one number as their constants, begins; and the chain."""
    nodes: list[gs.Node] = []
    while (node := producer(tensor)) is not None and node.op in ELEMENTWISE - {"Cast"} and not node.domain:
        inputs = [t for t in node.inputs if constant(t) is None and not t.is_empty()]
        others = [constant(t) for t in node.inputs if constant(t) is not None]
        same = len(inputs) == 1 and inputs[0].shape == tensor.shape and inputs[0].dtype == np.float32
        if not same or any(value is None or value.size != 1 for value in others) or len(nodes) == _DEPTH:
            break
        nodes.append(node)
        tensor = inputs[0]
    return tensor, tuple(nodes[::-1])


def _step(found: ZeroOne, ctx: Context) -> Step | str:
    """The comparison as one with what the longest function before it that is a single step was given, or why not."""
    x, nodes = _before(found.x)
    limit = np.float32(found.threshold)
    where: tuple[np.float32, bool] | str = ""
    for first in range(len(nodes) + 1):
        chain = nodes[first:]
        x = found.x if not chain else next(t for t in chain[0].inputs if constant(t) is None and not t.is_empty())
        where = find_step(_predicate(x, chain, limit, found.strict, ctx.opset))
        if not isinstance(where, str):
            return Step(x, where[0], found.flip == where[1], chain)
    return str(where)


def _predicate(
    x: gs.Tensor, chain: tuple[gs.Node, ...], limit: np.float32, strict: bool, opset: int
) -> Callable[[np.ndarray], np.ndarray]:
    """What the model's own nodes answer for numbers in place of ``x``."""
    function = as_function(x, chain, chain[-1].outputs[0] if chain else x, opset)

    def above(values: np.ndarray) -> np.ndarray:
        values = function(values)
        with np.errstate(invalid="ignore"):
            return values > limit if strict else values >= limit

    return above


def find_step(above: Callable[[np.ndarray], np.ndarray]) -> tuple[np.float32, bool] | str:
    """The float32 number from which on a predicate has another value, and whether it is true from there on.

    ``above``: float32 [M] → bool [M]. A phrase says why it is no single step over all finite numbers.
    """
    rng = np.random.default_rng(0)
    keys = np.unique(np.append(rng.integers(-LARGEST, LARGEST, 4096), [-LARGEST, -1, 0, 1, LARGEST]))
    values = above(from_keys(keys))
    changes = np.flatnonzero(values[1:] != values[:-1])
    if len(changes) != 1:
        return (
            "they are always the same" if not len(changes) else "what they compare neither rises nor falls throughout"
        )
    low, high = int(keys[changes[0]]), int(keys[changes[0] + 1])
    rises = bool(values[-1])
    while high - low > 1:
        middle = (low + high) // 2
        if bool(above(from_keys(np.array([middle])))[0]) == rises:
            high = middle
        else:
            low = middle
    near = np.clip(np.arange(high - 5000, high + 5000), -LARGEST, LARGEST)
    around = np.clip(high + rng.integers(-(1 << 24), 1 << 24, 20000), -LARGEST, LARGEST)
    every = np.concatenate([near, around, keys])
    if (above(from_keys(every)) != ((every >= high) == rises)).any():
        return "what they compare neither rises nor falls throughout"
    return from_keys(np.array([high]))[0], rises


def _pack(
    graph: gs.Graph, ctx: Context, operand: gs.Tensor, found: ZeroOne, step: Step, moves: list[gs.Node]
) -> gs.Tensor:
    """The bits of a layer's input: what is compared takes the moves, the last of them as the order of packing."""
    value, shape = step.x, static_shape(operand)
    last = moves[-1] if moves and moves[-1].op == "Transpose" else None
    for node in moves[:-1] if last is not None else moves:
        target = static_shape(node.outputs[0])
        if node.op == "Transpose":
            value = add_node(graph, ctx, "Transpose", [value], stands_for=node, perm=list(node.attrs["perm"]),
                             shape=target, dtype=np.float32)  # fmt: skip
        else:
            value = reshape(graph, ctx, value, target, node)
    perm = list(range(len(shape))) if last is None else list(last.attrs["perm"])
    maker = producer(operand)
    assert maker is not None
    base, k = original_name(ctx, maker), shape[-1]
    packed = add_node(
        graph, ctx, "Pack",
        [value, add_constant(ctx, f"{base}/threshold", np.full(k, step.threshold, np.float32)),
         add_constant(ctx, f"{base}/flip", np.full(k, step.flip, np.uint8))],
        stands_for=maker, domain=DOMAIN, perm=perm, strict=0,
    )  # fmt: skip
    if operand.name not in ctx.made:
        ctx.origins[packed.name] = Origin(operand.name, list(range(len(shape))), k, unsigned=True)
    for node in (*step.nodes, *found.nodes, *moves):
        absorbed(ctx, node, Status.FUSED, f"0 and 1 ({found.idiom}), packed into bits")
    return packed


def _rewrite(graph: gs.Graph, ctx: Context, node: gs.Node, packed: gs.Tensor, rows: np.ndarray) -> None:
    out, base, shape = node.outputs[0], original_name(ctx, node), static_shape(node.outputs[0])
    steps: list[tuple[str, gs.Tensor]] = []
    third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    alpha, beta = (np.float32(node.attrs.get(key, 1.0)) for key in ("alpha", "beta"))
    if alpha != 1:
        steps.append(("Mul", add_constant(ctx, f"{base}/alpha", np.asarray(alpha))))
    if third is not None and beta != 0:
        if beta != 1:
            factor = add_constant(ctx, f"{base}/beta", np.asarray(beta))
            third = add_node(graph, ctx, "Mul", [third, factor], stands_for=node, shape=third.shape, dtype=np.float32)
        steps.append(("Add", third))
    weight = add_constant(ctx, f"{node.inputs[1].name}/rows", rows.T)
    remove_node(graph, node)
    k = rows.shape[1]
    value = add_node(graph, ctx, "BitFloatGemm", [packed, weight], stands_for=node, domain=DOMAIN, k=k, clear=0,
                     output=None if steps else out)  # fmt: skip
    for i, (op, operand) in enumerate(steps):
        last = out if i == len(steps) - 1 else None
        value = add_node(graph, ctx, op, [value, operand], stands_for=node, output=last, shape=shape, dtype=np.float32)
    ctx.note(node, Status.PACKED, f"BitFloatGemm {k}→{len(rows)}: activations of 0 and 1 as bits, float weights")
