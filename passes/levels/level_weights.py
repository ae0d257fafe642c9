"""Makes layers of quantized activations and quantized weights layers of integers, and scales behind them.

Matches Conv, Gemm (``transB`` too) and MatMul (either operand, a matrix) with an activation that comes from a ``Quantize`` or
a ``Binarize`` (through MaxPool, Pad and operations that only move data) whose values are integers times one scale, and a
constant float32 weight, found by value (``level_codes``), that is

* integers of up to 8 bits times a scale per output channel, or
* ``σ1·b1 + σ2·b2`` per output channel with b of ±1 and any real σ (a binary weight with its binarized residual).

Gives the same operator on a ``Quantize`` to integers and an integer weight, then ``Mul`` by both scales; for two bases the
operator twice, and the ``Add`` of both; then ``Add`` of the bias.

Why it is right: Σ (a·p)·(s·q) = a·s·Σ p·q. The integer sums are exact (in float32 below 2²⁴; the packed form computes them
in int32), so the new form has fewer roundings than the old one. Weights and levels move by at most 4 float32 ulp where they
were not exact multiples. The result moves within float rounding.

Does not fire, and says so, for activations that are not quantized, for levels without a common scale, for other weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import (
    Context,
    Levels,
    MovedSign,
    Pass,
    Status,
    add_constant,
    add_node,
    constant,
    producer,
    static_shape,
)
from ..chain import RESHAPES, original_name
from ..graph import dead_nodes, remove_node, toposort
from ..signs.binary_layer import gemm_extras
from ..signs.binary_weights import _operand as weight_operand
from ..windows import constant_pad
from .level_codes import Term, common_scale, encode_levels, weight_terms

_THROUGH = RESHAPES | {"MaxPool", "Pad", "Transpose"}
_SMALLEST = np.float32(1e-45)


class LevelWeights(Pass):
    """See the module."""

    name: ClassVar[str] = "level_weights"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants", "recognise_levels", "pack")
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite what matches, in graph order; note the reason at what has quantized activations and does not."""
        changed = False
        made: dict[Any, gs.Tensor] = {}
        for node in [n for n in graph.nodes if n.op in ("Conv", "Gemm", "MatMul") and not n.domain]:
            operand = weight_operand(node)
            if operand is None:
                continue
            side = 0 if node.op == "Conv" else 1 - operand.index
            source = quantizer_of(node.inputs[side])
            if isinstance(source, str):
                continue
            reason = self._rewrite(graph, ctx, node, operand, side, source, made)
            if reason is None:
                changed = True
            elif source.op == "Quantize":
                ctx.note(node, Status.FLOAT, f"activations are quantized, {reason}")
        if changed:
            for dead in dead_nodes(graph):
                remove_node(graph, dead)
            toposort(graph)
        return changed

    def _rewrite(
        self, graph: gs.Graph, ctx: Context, node: gs.Node, operand: Any, side: int, source: gs.Node,
        made: dict[Any, gs.Tensor],
    ) -> str | None:  # fmt: skip
        """Do it, or say why not."""
        levels = integer_levels(source)
        if isinstance(levels, str):
            return levels
        weight = node.inputs[operand.index]
        value = np.asarray(constant(weight))
        rows = np.moveaxis(value, operand.axis, 0)
        terms = weight_terms(rows.reshape(len(rows), -1))
        if isinstance(terms, str):
            return terms
        third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        scaled = node.op == "Conv" or gemm_extras(node)[1] != 1
        if third is not None and scaled and constant(third) is None:
            return f"its bias '{third.name}' is computed at run time"
        scale, integers = levels
        x = _integer_operand(graph, ctx, node.inputs[side], source, scale, integers, made)
        _to_integers(graph, ctx, node, operand, side, x, scale, terms, made)
        return None


def quantizer_of(tensor: gs.Tensor) -> gs.Node | str:
    """The ``Quantize`` or ``Binarize`` that ``tensor`` comes from through operations that move levels, or why there is none."""
    while (node := producer(tensor)) is not None:
        if node.domain == DOMAIN and node.op in ("Quantize", "Binarize"):
            return node
        if node.domain or node.op not in _THROUGH:
            return f"its input comes from {node.op} '{node.name}', not from a quantizer"
        if node.op == "Pad":
            amounts = constant_pad(node)
            if isinstance(amounts, str) or amounts.value != 0:
                return f"Pad '{node.name}' pads levels with something else than 0"
        tensor = node.inputs[0]
    return f"its input '{tensor.name}' is not quantized"


def quantizer_tables(node: gs.Node) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Thresholds ``[T, C or 1]``, flips and values ``[T + 1]`` of a ``Quantize``, or of a ``Binarize`` as if it were one."""
    if node.op == "Binarize":
        zero = node.attrs["zero"]
        # x > 0 is x >= the smallest subnormal number.
        limits = {1: [0.0], -1: [_SMALLEST], 0: [0.0, _SMALLEST]}[zero]
        values = [-1.0, 1.0] if zero else [-1.0, 0.0, 1.0]
        return np.array(limits, np.float32)[:, None], np.zeros(1, np.uint8), np.array(values, np.float32)
    found = [constant(tensor) for tensor in node.inputs[1:]]
    if any(value is None for value in found):
        return None
    threshold, flip, value = (np.asarray(item) for item in found)
    return threshold, flip, value


def integer_levels(node: gs.Node) -> tuple[float, np.ndarray] | str:
    """The scale and the integers of a quantizer's levels, or why it has none."""
    tables = quantizer_tables(node)
    if tables is None:
        return "its thresholds or values are computed at run time"
    found = common_scale(tables[2], 255)
    if found is None:
        shown = ", ".join(f"{level:g}" for level in tables[2][:4])
        return f"its levels {shown}{', …' if len(tables[2]) > 4 else ''} are not integers times one scale"
    encoded = encode_levels(found[1])
    return encoded if isinstance(encoded, str) else found


def _integer_operand(
    graph: gs.Graph, ctx: Context, tensor: gs.Tensor, source: gs.Node, scale: float, integers: np.ndarray,
    made: dict[Any, gs.Tensor],
) -> gs.Tensor:  # fmt: skip
    """``tensor`` with the quantizer's values replaced by integers: its path from there, copied once."""
    key = ("levels", id(tensor))
    if key not in made:
        made[key] = _copied(graph, ctx, tensor, source, scale, integers, made)
    return made[key]


def _copied(
    graph: gs.Graph, ctx: Context, tensor: gs.Tensor, source: gs.Node, scale: float, integers: np.ndarray,
    made: dict[Any, gs.Tensor],
) -> gs.Tensor:  # fmt: skip
    node = producer(tensor)
    assert node is not None
    if node is source:
        tables = quantizer_tables(source)
        assert tables is not None
        threshold, flip, value = tables
        if source.op == "Quantize" and np.array_equal(value, integers.astype(np.float32)):
            return tensor
        base = original_name(ctx, source)
        inputs = [
            source.inputs[0],
            add_constant(ctx, f"{base}/thresholds", threshold),
            add_constant(ctx, f"{base}/flip", flip),
            add_constant(ctx, f"{base}/integers", integers.astype(np.float32)),
        ]
        axis = int(source.attrs["axis"]) if source.op == "Quantize" else -1
        result = add_node(graph, ctx, "Quantize", inputs, stands_for=source, domain=DOMAIN, axis=axis)
        info = ctx.quantizers.get(tensor.name)
        signs = ctx.moved.get(tensor.name, MovedSign(tensor.name, source.inputs[0].name, []))
        if source.op == "Binarize" and signs.tensor not in ctx.made:
            info = Levels(
                signs.tensor, signs.source, [float(x) for x in threshold[:, 0]], [float(x) for x in value],
                moves=signs.moves,
            )  # fmt: skip
        if info is not None:
            apart = float(np.abs(value.astype(np.float64) - scale * integers).max())
            ctx.quantizers[result.name] = dataclasses.replace(info, error=apart)
        return result
    x = _integer_operand(graph, ctx, node.inputs[0], source, scale, integers, made)
    if x is node.inputs[0]:
        return tensor
    return add_node(
        graph, ctx, node.op, [x, *node.inputs[1:]], stands_for=node, shape=static_shape(tensor), dtype=np.float32,
        **node.attrs,
    )  # fmt: skip


def _to_integers(
    graph: gs.Graph, ctx: Context, node: gs.Node, operand: Any, side: int, x: gs.Tensor, scale: float,
    terms: list[Term], made: dict[Any, gs.Tensor],
) -> None:  # fmt: skip
    """The operator on integers, once for each term, and what scales and joins the sums."""
    weight, output, base = node.inputs[operand.index], node.outputs[0], original_name(ctx, node)
    value = np.asarray(constant(weight))
    shape = static_shape(output)
    alpha, beta, third = gemm_extras(node) if node.op == "Gemm" else (1.0, 1.0, None)
    bias = third
    if node.op == "Conv" and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = add_constant(ctx, f"{base}/bias", np.asarray(constant(node.inputs[2])).reshape(operand.scale_shape))
    elif third is not None and beta != 1:
        bias = add_constant(ctx, f"{base}/bias", np.asarray(constant(third)) * np.float32(beta))
    attrs = {key: item for key, item in node.attrs.items() if key not in ("alpha", "beta")}
    op = node.op
    node.inputs.clear()
    node.outputs.clear()
    parts: list[gs.Tensor] = []
    moved_shape = np.moveaxis(value, operand.axis, 0).shape
    for number, term in enumerate(terms):
        key = ("weight", id(weight), operand.axis, number)
        if key not in made:
            integers = np.moveaxis(term.integers.reshape(moved_shape), 0, operand.axis)
            made[key] = add_constant(ctx, f"{weight.name}_integers", integers.astype(np.float32))
        inputs = [x, made[key]] if side == 0 else [made[key], x]
        factor = (term.scale * scale * alpha).astype(np.float32)
        last = len(terms) == 1 and bias is None and bool((factor == 1).all())
        total = add_node(
            graph, ctx, op, inputs, stands_for=base, output=output if last else None, shape=shape, dtype=np.float32,
            **attrs,
        )  # fmt: skip
        if last:
            break
        if not (factor == 1).all():
            scales = add_constant(ctx, f"{base}/scale", factor.reshape(operand.scale_shape))
            end = output if len(terms) == 1 and bias is None else None
            total = add_node(
                graph, ctx, "Mul", [total, scales], stands_for=base, output=end, shape=shape, dtype=np.float32
            )
        parts.append(total)
    if len(parts) == 2:
        end = output if bias is None else None
        parts = [add_node(graph, ctx, "Add", parts[::-1], stands_for=base, output=end, shape=shape, dtype=np.float32)]
    if bias is not None:
        add_node(graph, ctx, "Add", [parts[0], bias], stands_for=base, output=output, shape=shape, dtype=np.float32)
    graph.nodes.remove(node)
    ctx.note(base, Status.FLOAT, "weights and activations are quantized, but nothing packed it")
