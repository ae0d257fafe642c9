"""``gate``: a convolution that counts only where another one is past a threshold, on integer accumulators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import (
    Context,
    Pass,
    Status,
    add_constant,
    add_node,
    constant,
    consumers,
    only_consumer,
    producer,
    static_shape,
)
from ..chain import Chain, absorbed, cast_target, original_name, per_channel, reachable, trace_chain
from ..graph import dead_nodes, remove_node, toposort
from ..step_function import NoStep, Steps, find_steps

_FLOAT = 1
_COMPARISONS = {
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less, "LessOrEqual": np.less_equal,
}  # fmt: skip
_SWAPPED = {"Greater": "Less", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "LessOrEqual": "GreaterOrEqual"}


@dataclass(frozen=True)
class _Gate:
    """``where(bit(accumulator), gated, 0)``, computed by ``node``."""

    node: gs.Node
    compare: gs.Node
    chain: Chain
    steps: Steps
    gated: gs.Tensor
    """The other accumulator."""


class Gate(Pass):
    """``Where(chain(a) > d, float(b), 0)`` (or ``Cast(chain(a) > d) · float(b)``) of two accumulators → ``GatedSum``.

    The comparison is evaluated on every value that ``a`` can have, as for a sign (see ``fuse_threshold``): where it is a
    step function in every channel, the gate is an integer threshold. A sum ``w·float(a) + gated`` with an integer w behind it
    is taken along, since all its values are integers below 2^24 that float32 adds exactly; the result is an accumulator
    like any other, so that what follows can become thresholds or an epilogue.

    It does not fire where the gated tensor is scaled before the gate, or where the gate is not monotone: these stay in float
    behind convolutions on bits.
    """

    name: ClassVar[str] = "gate"
    requires: ClassVar[tuple[str, ...]] = ("pack",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            if node.domain or not node.outputs or node.op not in ("Where", "Mul"):
                continue
            found = _read(node, ctx)
            if isinstance(found, _Gate):
                _apply(graph, ctx, found)
                changed = True
            elif found:
                ctx.note(node, Status.FLOAT, found)
        if changed:
            for node in dead_nodes(graph):
                remove_node(graph, node)
            toposort(graph)
        return changed


def _accumulator(tensor: gs.Tensor) -> gs.Tensor | None:
    """The int32 accumulator that ``tensor`` is the float32 of, in the layout of the original."""
    node = producer(tensor)
    if node is None or node.domain or node.op != "Cast" or cast_target(node) != _FLOAT:
        return None
    source = node.inputs[0]
    above = producer(source)
    if above is not None and above.op == "Transpose" and list(above.attrs.get("perm") or ()) == [0, 3, 1, 2]:
        source = above.inputs[0]
    return source if reachable(source) is not None else None


def _read(node: gs.Node, ctx: Context) -> _Gate | str | None:
    """The gate that ``node`` is, the reason why it cannot be one on integers, or None where it is something else."""
    negated = False
    if node.op == "Where":
        condition, first, second = node.inputs
        if _is_zero(second):
            live = first
        elif _is_zero(first):
            live, negated = second, True
        else:
            return None
    else:
        casts = [
            x for x in node.inputs if (above := producer(x)) is not None and above.op == "Cast" and _compares(above)
        ]
        if len(casts) != 1:
            return None
        cast = producer(casts[0])
        assert cast is not None
        condition, live = cast.inputs[0], next(x for x in node.inputs if x is not casts[0])
    compare = producer(condition)
    if compare is None or compare.domain or compare.op not in _COMPARISONS:
        return None
    values = [constant(x) for x in compare.inputs]
    if (values[0] is None) == (values[1] is None):
        return None
    side = 0 if values[0] is None else 1
    chain = trace_chain(compare.inputs[side])
    if isinstance(chain, str):
        return None
    gated = _accumulator(live)
    if gated is None:
        return f"what it gates ('{live.name}') is not the plain sum of a packed layer"
    if static_shape(gated) != static_shape(chain.accumulator):
        return "the gate and what it gates have different shapes"
    shape = static_shape(compare.inputs[side])
    axis = chain.links[-1].axis if chain.links else len(shape) - 1
    bound = values[1 - side]
    limit = None if bound is None else per_channel(bound, shape, axis)
    if limit is None:
        return f"the threshold of {compare.op} '{compare.name}' varies within a channel"
    op = compare.op if side == 0 else _SWAPPED[compare.op]
    bits = np.empty((len(chain.values), chain.channels), dtype=bool)
    end = chain.links[-1].tensor if chain.links else chain.accumulator
    for rows, (value,) in chain.evaluate([end], ctx.opset):
        bits[rows] = _COMPARISONS[op](value, limit) ^ negated
    steps = find_steps(chain.values, bits)
    return str(steps) if isinstance(steps, NoStep) else _Gate(node, compare, chain, steps, gated)


def _is_zero(tensor: gs.Tensor) -> bool:
    value = constant(tensor)
    return value is not None and value.size == 1 and float(value.reshape(())) == 0.0


def _compares(cast: gs.Node) -> bool:
    above = producer(cast.inputs[0])
    return above is not None and above.op in _COMPARISONS and cast_target(cast) == _FLOAT


def _weighted(graph: gs.Graph, gate: _Gate) -> tuple[gs.Node, int, list[gs.Node]] | None:
    """The Add behind the gate if it adds an integer multiple of the gating accumulator: (Add, multiple, nodes)."""
    add = only_consumer(graph, gate.node.outputs[0])
    if add is None or add.domain or add.op != "Add" or len([x for x in add.inputs if x is gate.node.outputs[0]]) != 1:
        return None
    other = next(x for x in add.inputs if x is not gate.node.outputs[0])
    node = producer(other)
    if _accumulator(other) is gate.chain.accumulator:
        return add, 1, []
    if node is None or node.domain or node.op != "Mul":
        return None
    values = [constant(x) for x in node.inputs]
    factor = next((v for v in values if v is not None and v.size == 1), None)
    source = next((x for x, v in zip(node.inputs, values, strict=True) if v is None), None)
    if factor is None or source is None or _accumulator(source) is not gate.chain.accumulator:
        return None
    multiple = float(factor.reshape(()))
    return (add, int(multiple), [node]) if multiple == int(multiple) and abs(multiple) < 1 << 10 else None


def _apply(graph: gs.Graph, ctx: Context, gate: _Gate) -> None:
    node, chain = gate.node, gate.chain
    gated = reachable(gate.gated)
    assert gated is not None
    limit = int(max(np.abs(chain.values).max(), np.abs(gated[1]).max()))
    sum_of = _weighted(graph, gate)
    last, weight, between = (node, 0, []) if sum_of is None else sum_of
    if (abs(weight) + 1) * limit >= 1 << 24:
        last, weight, between = node, 0, []
    output, base = last.outputs[0], original_name(ctx, node)
    joined = add_node(
        graph, ctx, "GatedSum",
        [chain.accumulator, gate.gated, add_constant(ctx, f"{base}/threshold", gate.steps.threshold),
         add_constant(ctx, f"{base}/flip", gate.steps.flip)],
        stands_for=node, domain=DOMAIN, weight=weight, limit=limit,
    )  # fmt: skip
    shape = static_shape(output)
    if shape != static_shape(joined):
        joined = add_node(
            graph, ctx, "Transpose", [joined], stands_for=node, perm=[0, 3, 1, 2], shape=shape, dtype=np.int32
        )
    for old in {id(n): n for n in (node, last)}.values():
        old.inputs.clear()
    add_node(graph, ctx, "Cast", [joined], stands_for=node, to=_FLOAT, shape=shape, dtype=np.float32, output=output)
    text = f"gate of '{original_name(ctx, chain.anchor)}' on integers ({gate.steps})"
    for fused in (node, gate.compare, last, *between):
        if fused.name in ctx.original:
            ctx.note(fused, Status.FUSED, text)
    for link in chain.links:
        if len(consumers(link.tensor)) == 0:
            absorbed(ctx, link.node, Status.FUSED, text)
