"""Rewrites every quantizer of activations to ``Quantize``: the thresholds of its levels, and their values.

Matches what feeds a Conv, Gemm or MatMul with constant weights (through MaxPool, Pad and operations that move data) and is
computed from one float32 tensor by elementwise operations with single constants, rounding or comparing on the way:
``Round(Clip(x / s, lo, hi)) · s``, ``Clip(Round(x / s), lo, hi) · s``, ``Round(Clip(x, 0, 1) · n) / n``, QuantizeLinear with
DequantizeLinear, sums of comparisons, nested ``Where``, and what an exporter makes of them. The straight-through residue
``(r − y) + y`` around a rounding r is removed first, as the sign's is.

Why it is right: the very nodes are run in ONNX Runtime, and the float32 numbers at which their result changes are found by
bisection over all floats in order (``float_steps``). A chain of operations that are monotone and correctly rounded is
monotone; that is required of a single path, and everything that was evaluated is checked against the steps found. The
values are the levels that came out, so ``Quantize`` gives the same float32 on every input, ties included. Only the removed
residue rounds.

``MaxPool(Quantize(x))`` becomes ``Quantize(MaxPool(x))`` where the levels rise with x: the maximum of levels is the level
of the maximum. ``Quantize(Flatten(x))`` becomes ``Flatten(Quantize(x))``: there the channels are still an axis.

Does not fire for more than 256 levels (8 bits), for constants that vary by channel inside the quantizer (they stay in front of
it), for functions that do not rise or fall throughout, or that no Round, comparison or their like is part of, and for a
single sign with constants behind it, which is the other passes' matter.

The output tensor keeps its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ... import golden
from ...opset import DOMAIN
from ..base import (
    Context,
    Levels,
    Pass,
    Status,
    add_constant,
    add_node,
    constant,
    consumers,
    is_output,
    only_consumer,
    producer,
    static_shape,
)
from ..chain import RESHAPES
from ..graph import bypass, dead_nodes, node_proto, remove_node, toposort
from ..pack.pack import reshape
from ..signs.sign_residue import match_residue
from .float_steps import FloatSteps, find_float_steps

_COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_ROUNDING = frozenset({"Binarize", "Round", "Floor", "Ceil", "Sign", "QuantizeLinear"}) | _COMPARISONS
"""What makes steps."""
_MONOTONE = frozenset({
    "Add", "Binarize", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div", "Floor", "Identity", "LeakyRelu", "Max", "Min", "Mul",
    "Neg", "QuantizeLinear", "Relu", "Round", "Sign", "Sub",
})  # fmt: skip
"""Correctly rounded and monotone in their one computed input."""
_JOINING = frozenset({"And", "Not", "Or", "Sum", "Where", "Xor"}) | _COMPARISONS
"""Operations on outcomes of comparisons."""
_THROUGH = RESHAPES | {"MaxPool", "Pad", "Transpose"}
_LONGEST = 40
"""Most nodes of a quantizer."""


@dataclass(frozen=True)
class _Region:
    """Nodes (in order) that compute one tensor from ``source`` alone."""

    source: gs.Tensor
    nodes: tuple[gs.Node, ...]


class RecogniseLevels(Pass):
    """See the module."""

    name: ClassVar[str] = "recognise_levels"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants", "recognise_sign")
    exact: ClassVar[bool] = False  # a straight-through residue rounds

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Residues first, then what feeds each layer, in graph order."""
        changed = False
        for node in list(graph.nodes):
            if node.outputs and node.op in ("Add", "Sub") and not node.domain:
                found = match_residue(node, _is_rounded)
                if found is not None and bypass(graph, node, found.tensor):
                    ctx.note(node, Status.REMOVED, "straight-through residue: (r − y) + y is the rounded r")
                    changed = True
        _drop_dead(graph, ctx, "only part of a straight-through residue")
        for node in list(graph.nodes):
            if node.domain or node.op not in ("Conv", "Gemm", "MatMul"):
                continue
            for side in (0,) if node.op == "Conv" else (0, 1):
                if constant(node.inputs[1 - side]) is not None and constant(node.inputs[side]) is None:
                    changed |= self._operand(graph, ctx, node.inputs[side])
        for node in list(graph.nodes):
            if node.op == "MaxPool" and not node.domain and node.outputs:
                changed |= _pool_first(graph, ctx, node)
            elif node.op == "Quantize" and node.domain == DOMAIN and node.outputs:
                changed |= _before_flatten(graph, ctx, node)
        _drop_dead(graph, ctx, "only part of what was before a quantizer")
        toposort(graph)
        return changed

    def _operand(self, graph: gs.Graph, ctx: Context, tensor: gs.Tensor) -> bool:
        """What computes the operand of a layer, to a ``Quantize`` if it is a quantizer."""
        while (node := producer(tensor)) is not None and node.op in _THROUGH and not node.domain:
            tensor = node.inputs[0]
        if node is None or node.domain or np.dtype(tensor.dtype or object) != np.float32 or tensor.shape is None:
            return False
        best: tuple[_Region, FloatSteps] | None = None
        reason = ""
        order = {id(item): place for place, item in enumerate(graph.nodes)}
        for region in _regions(graph, tensor, order):
            rounding = [inner.op for inner in region.nodes if inner.op in _ROUNDING]
            if rounding in ([], ["Binarize"]) or not _is_static_float(region.source):
                continue
            if static_shape(region.source) != static_shape(tensor):
                break
            steps = self._steps(region, tensor, ctx.opset)
            if isinstance(steps, FloatSteps):
                best = region, steps
            elif best is not None:
                break
            else:
                reason = steps
        if best is None:
            if reason:
                ctx.note(node, Status.FLOAT, f"not a quantizer of few bits: {reason}")
            return False
        _to_quantize(graph, ctx, node, tensor, *best)
        return True

    @staticmethod
    def _steps(region: _Region, tensor: gs.Tensor, opset: int) -> FloatSteps | str:
        if not _provably_monotone(region):
            return f"'{tensor.name}' joins rounded values with values that are not"
        return find_float_steps(_Evaluator(region, tensor, opset))


def _is_static_float(tensor: gs.Tensor) -> bool:
    known = tensor.shape is not None and all(isinstance(size, (int, np.integer)) for size in tensor.shape)
    return known and tensor.dtype is not None and np.dtype(tensor.dtype) == np.float32


def _is_rounded(tensor: gs.Tensor, depth: int = 4) -> bool:
    """Whether a rounding computes ``tensor``, or one times, plus or clipped by constants."""
    node = producer(tensor)
    if node is None or depth == 0 or node.domain:
        return False
    if node.op in ("Round", "Floor", "Ceil"):
        return True
    if node.op not in ("Mul", "Div", "Add", "Sub", "Clip", "Where", "Cast"):
        return False
    computed = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
    return len(computed) == 1 and _is_rounded(computed[0], depth - 1)


def _regions(graph: gs.Graph, tensor: gs.Tensor, order: dict[int, int]) -> Iterator[_Region]:
    """Every region that ends in ``tensor``, the smallest first: its source is a tensor that all of it passes through."""
    waiting: dict[int, gs.Tensor] = {id(tensor): tensor}
    nodes: list[gs.Node] = []
    while len(nodes) < _LONGEST:
        if nodes and len(waiting) == 1:
            (source,) = waiting.values()
            yield _Region(source, tuple(reversed(nodes)))
            readers = {id(node) for node in consumers(source)}
            if is_output(graph, source) or readers - {id(node) for node in nodes}:
                return  # it is computed anyway
        made = [(order.get(id(producer(t)), -1), t) for t in waiting.values()]
        place, latest = max(made, key=lambda pair: pair[0])
        node = producer(latest)
        if place < 0 or node is None or not _is_elementwise(node):
            return
        del waiting[id(latest)]
        nodes.append(node)
        for x in node.inputs:
            if constant(x) is None and not x.is_empty():
                waiting[id(x)] = x


def _is_elementwise(node: gs.Node) -> bool:
    """Whether a region can hold ``node``: elementwise, with constants of one element."""
    if node.op not in _MONOTONE | _JOINING or len(node.outputs) != 1:
        return False
    if node.domain and not (node.domain == DOMAIN and node.op == "Binarize"):
        return False
    constants = [constant(x) for x in node.inputs if not x.is_empty()]
    if any(value is not None and value.size != 1 for value in constants):
        return False
    shapes = {tuple(x.shape) for x in node.inputs if constant(x) is None and not x.is_empty() and x.shape is not None}
    return len(shapes) <= 1 and any(value is None for value in constants)


def _provably_monotone(region: _Region) -> bool:
    """Whether the steps of the region are those of monotone chains.

    Either it is one path of monotone operations; or every comparison in it is of such a path with a constant, and its
    result depends on comparisons (and roundings of such paths) alone, so that it is constant between their steps.
    """
    smooth: dict[int, bool] = {id(region.source): True}  # tensor → on a monotone path from the source, not yet rounded
    path = True
    for node in region.nodes:
        computed = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        kinds = [smooth[id(x)] for x in computed]
        single = len(computed) == 1
        if node.op in _MONOTONE and single and _falls_or_rises(node):
            smooth[id(node.outputs[0])] = kinds[0] and node.op not in _ROUNDING
            continue
        path = False
        if node.op in _COMPARISONS:
            if not single:
                return False
        elif any(kinds):
            return False
        smooth[id(node.outputs[0])] = False
    return path or not smooth[id(region.nodes[-1].outputs[0])]


def _falls_or_rises(node: gs.Node) -> bool:
    """Whether a node with one computed input is monotone in it."""
    if node.op == "LeakyRelu":
        return float(node.attrs.get("alpha", 0.01)) >= 0
    if node.op in ("Div", "QuantizeLinear", "DequantizeLinear", "Clip"):
        return constant(node.inputs[0]) is None
    return True


class _Evaluator:
    """Runs the nodes of a region in ONNX Runtime on any number of floats."""

    _SIZE = 4096

    def __init__(self, region: _Region, tensor: gs.Tensor, opset: int) -> None:
        feeds: dict[str, np.ndarray] = {"source": np.zeros(self._SIZE, np.float32)}
        constants: dict[str, np.ndarray] = {}
        names = {id(region.source): "source"}
        protos: list[onnx.NodeProto] = []
        for number, node in enumerate(region.nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(node_proto(node))
            del copy.input[:], copy.output[:]
            for place, x in enumerate(node.inputs):
                value = constant(x)
                if x.is_empty():
                    copy.input.append("")
                elif value is None:
                    copy.input.append(names[id(x)])
                else:
                    constants[f"c{number}_{place}"] = value.reshape(())
                    copy.input.append(f"c{number}_{place}")
            names[id(node.outputs[0])] = f"t{number}"
            copy.output.append(f"t{number}")
            protos.append(copy)
        self._output = names[id(tensor)]
        model = golden.small_model(protos, feeds, [self._output], opset=opset, initializers=constants)
        self._session = golden.session(model)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(x), self._SIZE):
            part = np.zeros(self._SIZE, np.float32)
            piece = x[start : start + self._SIZE]
            part[: len(piece)] = piece
            parts.append(golden.run(self._session, {"source": part})[self._output][: len(piece)])
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _to_quantize(
    graph: gs.Graph, ctx: Context, node: gs.Node, tensor: gs.Tensor, region: _Region, steps: FloatSteps
) -> None:
    base = node.name
    inputs: Sequence[gs.Tensor] = [
        region.source,
        add_constant(ctx, f"{base}/thresholds", steps.threshold[:, None]),
        add_constant(ctx, f"{base}/flip", np.array([steps.flip], np.uint8)),
        add_constant(ctx, f"{base}/values", steps.value),
    ]
    node.outputs.clear()
    add_node(graph, ctx, "Quantize", inputs, stands_for=node, output=tensor, domain=DOMAIN, axis=-1)
    ctx.quantizers[tensor.name] = Levels(
        tensor.name, region.source.name, steps.threshold.tolist(), steps.value.tolist(), steps.flip
    )
    remove_node(graph, node)
    ctx.note(node, Status.FLOAT, f"a quantizer of {len(steps.value)} levels that nothing reads as levels")
    _drop_dead(graph, ctx, f"part of the quantizer '{base}'", {id(inner) for inner in region.nodes})


def _drop_dead(graph: gs.Graph, ctx: Context, reason: str, members: set[int] | None = None) -> None:
    for dead in dead_nodes(graph):
        inside = members is None or id(dead) in members
        ctx.note(dead, Status.FUSED if members and inside else Status.REMOVED, reason if inside else f"only {reason}")
        remove_node(graph, dead)


def _pool_first(graph: gs.Graph, ctx: Context, pool: gs.Node) -> bool:
    """``MaxPool(Quantize(x))`` → ``Quantize(MaxPool(x))``, where nothing else reads the levels and they rise with x."""
    levels = pool.inputs[0]
    node = producer(levels)
    reader = only_consumer(graph, levels)
    if node is None or node.op != "Quantize" or node.domain != DOMAIN or reader is None or reader is not pool:
        return False
    flip, threshold = constant(node.inputs[2]), constant(node.inputs[1])
    if flip is None or threshold is None or flip.any() or threshold.shape[1] != 1 or len(pool.outputs) != 1:
        return False
    output, attrs = pool.outputs[0], dict(pool.attrs)
    pool.outputs.clear()
    pooled = add_node(
        graph, ctx, "MaxPool", [node.inputs[0]], stands_for=pool, shape=static_shape(output), dtype=np.float32, **attrs
    )
    add_node(
        graph, ctx, "Quantize", [pooled, *node.inputs[1:]], stands_for=node, output=output, domain=DOMAIN,
        axis=int(node.attrs["axis"]),
    )  # fmt: skip
    info = ctx.quantizers.get(levels.name)
    if info is not None:
        ctx.quantizers[output.name] = dataclasses.replace(info, tensor=output.name)
    ctx.note(pool, Status.FLOAT, "pools before the quantizer behind it: the levels rise with the values")
    remove_node(graph, pool)
    remove_node(graph, node)
    return True


def _before_flatten(graph: gs.Graph, ctx: Context, node: gs.Node) -> bool:
    """``Quantize(Flatten(x))`` → ``Flatten(Quantize(x))``, which is the same, element by element."""
    flatten, output, threshold = producer(node.inputs[0]), node.outputs[0], constant(node.inputs[1])
    if flatten is None or flatten.domain or flatten.op not in RESHAPES or threshold is None or threshold.shape[1] != 1:
        return False
    source = flatten.inputs[0]
    if len(static_shape(source)) <= len(static_shape(output)) or is_output(graph, flatten.outputs[0]):
        return False
    levels = add_node(
        graph, ctx, "Quantize", [source, *node.inputs[1:]], stands_for=node, domain=DOMAIN, axis=int(node.attrs["axis"])
    )
    info = ctx.quantizers.pop(output.name, None)
    node.outputs.clear()
    reshape(graph, ctx, levels, static_shape(output), flatten, output)
    if info is not None:
        ctx.quantizers[levels.name] = dataclasses.replace(
            info, moves=[*info.moves, ("reshape", list(static_shape(source)))]
        )
    remove_node(graph, node)
    return True
