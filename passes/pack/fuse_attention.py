"""``fuse_attention``: scores of bits, a comparison, and the sum of values become one ``BinaryAttention``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, REGISTRY, TensorType
from ..base import Context, Pass, Status, add_constant, add_node, constant, only_consumer, producer, static_shape
from ..chain import absorbed, cast_target, original_name, trace_chain
from ..graph import dead_nodes, remove_node, toposort
from ..step_function import NoStep, find_steps

_FLOAT, _INT32 = 1, 6
"""ONNX element types."""
MARGIN = 1e-4
"""How far, as a part, a ratio of two probabilities must be from the share that it is compared with: float32 finds each
exponential within a few units of 2⁻²⁴ of its argument's size, which is at most some hundreds, and divides by one sum."""


@dataclass(frozen=True)
class _Choice:
    """How keys are chosen: ``mode`` and ``margin`` of the operator, and what is added to the scores."""

    mode: int
    margin: int
    bias: gs.Tensor
    text: str
    nodes: tuple[gs.Node, ...]


class FuseAttention(Pass):
    """``BinaryMatMul → float chain → Pack → AndMatMul`` → ``BinaryAttention``, where nothing else reads what lies between.

    * Score above a threshold: the chain treats each key by itself and rises with the score, so that there is a least
      accumulator for each key. Where all that the chain adds is constant, it is found as in ``fuse_threshold``. Where a
      mask is computed at run time (added, or chosen by Where), the same nodes are put in the graph for every accumulator
      that there can be, in place of every score: counting those that pass gives the threshold of each key, exactly, ties,
      rounding and any value of the mask included. It is shared by all layers that read the same mask.
    * ``p ≥ r · max(p)`` of ``p = softmax(c · score)``: exp is increasing, so the scores themselves can be compared, and the
      softmax is not needed: score ≥ max − n, the n for which exp(−c·n) ≥ r. It is made sure that no difference of two
      accumulators comes so near to the share that float32 could decide otherwise.

    It does not fire where the scores or their bits are read by something else, for a chain that can fall, where a sign that
    can be zero made the values be packed twice, and where thresholds would be more work than scores.
    """

    name: ClassVar[str] = "fuse_attention"
    requires: ClassVar[tuple[str, ...]] = ("pack_products",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        shared: dict[Any, gs.Tensor] = {}
        changed = False
        for node in list(graph.nodes):
            if node.op == "AndMatMul" and node.domain == DOMAIN:
                changed |= _fuse(graph, ctx, node, shared)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        toposort(graph)
        return changed


def _fuse(graph: gs.Graph, ctx: Context, node: gs.Node, shared: dict[Any, gs.Tensor]) -> bool:
    pack = producer(node.inputs[0])
    if pack is None or pack.op != "Pack":
        return False
    reader = only_consumer(graph, pack.outputs[0])
    if reader is None or reader is not node:
        return False
    if list(pack.attrs["perm"]) != list(range(len(static_shape(pack.inputs[0])))):
        return False
    scores = _scores(pack.inputs[0])
    if scores is None:
        return False
    choice = _near_the_largest(ctx, pack, scores) or _above(graph, ctx, pack, scores, shared)
    if choice is None:
        return False
    base = original_name(ctx, node)
    table = add_constant(ctx, f"{base}/no_table", np.zeros(1, np.int64))
    output, values = node.outputs[0], node.inputs[1]
    ctx.origins.pop(pack.outputs[0].name, None)
    inputs = [*scores.inputs, values, choice.bias, table, table]
    node.inputs.clear()
    remove_node(graph, node)
    add_node(
        graph, ctx, "BinaryAttention", inputs, stands_for=base, domain=DOMAIN, output=output,
        size=int(scores.attrs["k"]), mode=choice.mode, margin=choice.margin,
    )  # fmt: skip
    ctx.note(base, Status.PACKED, f"the sum of values in BinaryAttention ({choice.text})")
    ctx.note(scores, Status.PACKED, f"the scores in BinaryAttention '{base}' ({choice.text})")
    for part in (*choice.nodes, pack):
        absorbed(ctx, part, Status.FUSED, f"in BinaryAttention '{base}': {choice.text}")
    return True


def _scores(tensor: gs.Tensor) -> gs.Node | None:
    """The one BinaryMatMul of ``tensor``'s shape that it is computed from, if there is one."""
    shape = static_shape(tensor)
    waiting: list[gs.Tensor] = [tensor]
    seen: set[int] = set()
    found: dict[int, gs.Node] = {}
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen or len(seen) > 64:
            continue
        seen.add(id(node))
        if node.op == "BinaryMatMul" and node.domain == DOMAIN and static_shape(node.outputs[0]) == shape:
            found[id(node)] = node
        elif not node.domain:
            waiting += [x for x in node.inputs if constant(x) is None and not x.is_empty()]
    return next(iter(found.values())) if len(found) == 1 else None


def _reach(scores: gs.Node) -> np.ndarray:
    types = [TensorType(static_shape(x), np.dtype(x.dtype)) for x in scores.inputs]
    low, high, step = REGISTRY[scores.op].reach(types, scores.attrs)
    return np.arange(low, high + 1, step, dtype=np.int32)


def _bias_shape(scores: gs.Node) -> tuple[int, ...]:
    shape = static_shape(scores.outputs[0])
    return (*[1] * (len(shape) - 1), shape[-1])


# Above a threshold


def _above(
    graph: gs.Graph, ctx: Context, pack: gs.Node, scores: gs.Node, shared: dict[Any, gs.Tensor]
) -> _Choice | None:
    threshold, flip = constant(pack.inputs[1]), constant(pack.inputs[2])
    if threshold is None or flip is None or flip.any():
        return None
    path = _path(pack.inputs[0], scores)
    if path is None or not _read_once(graph, path, pack, scores):
        return None
    strict = bool(pack.attrs["strict"])
    chain = trace_chain(pack.inputs[0])
    if not isinstance(chain, str):
        end = chain.links[-1].tensor if chain.links else chain.accumulator
        bits = np.concatenate([
            value > threshold if strict else value >= threshold for _, (value,) in chain.evaluate([end], ctx.opset)
        ])  # fmt: skip
        steps = find_steps(chain.values, bits)
        if isinstance(steps, NoStep) or steps.flip.any():
            return None
        bias = add_constant(
            ctx, f"{original_name(ctx, pack)}/bias", (-steps.threshold.astype(np.int64)).astype(np.int32).reshape(
                _bias_shape(scores))
        )  # fmt: skip
        return _Choice(0, 0, bias, f"score compared with a constant for each key: {steps}", tuple(path))
    if (threshold != threshold[0]).any() or not all(_rises(node, x) for node, x in _steps(path, scores)):
        return None
    bias = _count_passing(graph, ctx, pack, scores, path, float(threshold[0]), strict, shared)
    if bias is None:
        return None
    return _Choice(0, 0, bias, "score compared with a threshold for each key, found from the mask", tuple(path))


def _path(tensor: gs.Tensor, scores: gs.Node) -> list[gs.Node] | None:
    """The nodes from the scores to ``tensor``, in order, when they are one path."""
    path: list[gs.Node] = []
    while (node := producer(tensor)) is not scores:
        if node is None or node.domain or len(path) > 16:
            return None
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty() and _depends(x, scores)]
        if len(live) != 1:
            return None
        path.append(node)
        tensor = live[0]
    return path[::-1]


def _depends(tensor: gs.Tensor, scores: gs.Node) -> bool:
    waiting: list[gs.Tensor] = [tensor]
    seen: set[int] = set()
    while waiting:
        node = producer(waiting.pop())
        if node is scores:
            return True
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            waiting += list(node.inputs)
    return False


def _steps(path: list[gs.Node], scores: gs.Node) -> list[tuple[gs.Node, gs.Tensor]]:
    """Every node of a path with the input that comes from the one before."""
    tensors = [scores.outputs[0], *(node.outputs[0] for node in path[:-1])]
    return list(zip(path, tensors, strict=True))


def _read_once(graph: gs.Graph, path: list[gs.Node], last: gs.Node, scores: gs.Node) -> bool:
    tensors = [scores.outputs[0], *(node.outputs[0] for node in path)]
    readers = [*path, last]
    return all(only_consumer(graph, x) is reader for x, reader in zip(tensors, readers, strict=True))


def _rises(node: gs.Node, running: gs.Tensor) -> bool:
    """Whether a node's result never falls as ``running`` rises, whatever its other operands are."""
    if static_shape(node.outputs[0]) != static_shape(running):
        return False
    if node.op == "Cast":
        return cast_target(node) == _FLOAT
    if node.op == "Where":
        return node.inputs[0] is not running
    if node.op in ("Add", "Max", "Min", "Relu"):
        return sum(x is running for x in node.inputs) == 1
    if node.op == "Sub":
        return node.inputs[0] is running and node.inputs[1] is not running
    if node.op in ("Mul", "Div"):
        others = [constant(x) for x in node.inputs if x is not running]
        first = node.op == "Mul" or node.inputs[0] is running
        return first and len(others) == 1 and others[0] is not None and bool((others[0] > 0).all())
    return False


def _count_passing(
    graph: gs.Graph, ctx: Context, pack: gs.Node, scores: gs.Node, path: list[gs.Node], threshold: float, strict: bool,
    shared: dict[Any, gs.Tensor],
) -> gs.Tensor | None:  # fmt: skip
    """int32 bias of each key: the path on every possible accumulator, how many pass, and what that makes the threshold."""
    values = _reach(scores)
    shape = static_shape(scores.outputs[0])
    others = [x for node, running in _steps(path, scores) for x in node.inputs if x is not running]
    sizes = [static_shape(x) for x in others]
    spread = np.broadcast_shapes(*sizes) if sizes else ()
    spread = (*[1] * (len(shape) - len(spread)), *spread)
    if spread[-1] != shape[-1] or math.prod(spread) * len(values) > 2 * math.prod(shape):
        return None
    key: Any = (tuple(values[[0, -1]]), threshold, strict, spread)
    key = (*key, *(_signature(node, running) for node, running in _steps(path, scores)))
    if key in shared:
        return shared[key]
    base = original_name(ctx, pack)
    value: gs.Tensor = add_constant(ctx, f"{base}/accumulators", values)
    lengthened: dict[int, gs.Tensor] = {}
    size: tuple[int, ...] = (len(values),)
    for node, running in _steps(path, scores):
        inputs = []
        for x in node.inputs:
            if x is running:
                inputs.append(value)
                continue
            if id(x) not in lengthened:
                lengthened[id(x)] = _lengthened(graph, ctx, x, base)
            inputs.append(lengthened[id(x)])
        size = np.broadcast_shapes(*(static_shape(x) for x in inputs))
        attrs = {"to": cast_target(node)} if node.op == "Cast" else dict(node.attrs)
        value = add_node(graph, ctx, node.op, inputs, stands_for=base, shape=size, dtype=np.float32, **attrs)
    limit = add_constant(ctx, f"{base}/limit", np.array(threshold, np.float32))
    compare = "Greater" if strict else "GreaterOrEqual"
    value = add_node(graph, ctx, compare, [value, limit], stands_for=base, shape=size, dtype=np.bool_)
    value = add_node(graph, ctx, "Cast", [value], stands_for=base, shape=size, dtype=np.int32, to=_INT32)
    axis = add_constant(ctx, f"{base}/axis", np.array([-1], np.int64))
    value = add_node(
        graph, ctx, "ReduceSum", [value, axis], stands_for=base, shape=size[:-1], dtype=np.int32, keepdims=0
    )
    step, high = int(values[1] - values[0]), int(values[-1])
    for op, number in (("Mul", step), ("Sub", high + step)):
        operand = add_constant(ctx, f"{base}/{op.lower()}", np.array(number, np.int32))
        value = add_node(graph, ctx, op, [value, operand], stands_for=base, shape=size[:-1], dtype=np.int32)
    if size[:-1] != spread:
        target = add_constant(ctx, f"{base}/shape", np.array(spread, np.int64))
        value = add_node(graph, ctx, "Reshape", [value, target], stands_for=base, shape=spread, dtype=np.int32)
    shared[key] = value
    return value


def _lengthened(graph: gs.Graph, ctx: Context, tensor: gs.Tensor, base: str) -> gs.Tensor:
    """``tensor`` with a last axis of size 1, for the accumulators."""
    value = constant(tensor)
    if value is not None:
        return add_constant(ctx, f"{tensor.name}/each", value[..., None])
    shape = static_shape(tensor)
    axis = add_constant(ctx, f"{base}/last", np.array([len(shape)], np.int64))
    return add_node(
        graph, ctx, "Unsqueeze", [tensor, axis], stands_for=base, shape=(*shape, 1), dtype=np.dtype(tensor.dtype)
    )


def _signature(node: gs.Node, running: gs.Tensor) -> tuple[Any, ...]:
    """What a node does to the running value: nodes of several layers that do the same have the same."""
    parts: list[Any] = [node.op]
    for x in node.inputs:
        value = constant(x)
        parts.append("running" if x is running else id(x) if value is None else (value.shape, value.tobytes()))
    return tuple(parts)


# Near the row's largest


def _near_the_largest(ctx: Context, pack: gs.Node, scores: gs.Node) -> _Choice | None:
    """``p ≥ r · max(p)``, in the form that ``pack_products`` left: the comparison as 0 and 1, compared with a half."""
    threshold, flip = constant(pack.inputs[1]), constant(pack.inputs[2])
    cast = producer(pack.inputs[0])
    if threshold is None or flip is None or flip.any() or (threshold != 0.5).any() or cast is None or cast.op != "Cast":
        return None
    compare = producer(cast.inputs[0])
    if compare is None or compare.op not in ("GreaterOrEqual", "LessOrEqual", "Greater", "Less"):
        return None
    p, limit = compare.inputs if compare.op.startswith("Greater") else compare.inputs[::-1]
    softmax, product = producer(p), producer(limit)
    if softmax is None or softmax.op != "Softmax" or product is None or product.op not in ("Mul", "Div"):
        return None
    rank = len(static_shape(p))
    if softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return None
    share, largest = _share_of(product)
    top = producer(largest) if largest is not None else None
    if share is None or top is None or top.op != "ReduceMax" or top.inputs[0] is not p:
        return None
    if static_shape(top.outputs[0]) != (*static_shape(p)[:-1], 1) or not 0 < share < 1:
        return None
    chain = trace_chain(softmax.inputs[0])
    if isinstance(chain, str) or chain.anchor is not scores:
        return None
    end = chain.links[-1].tensor if chain.links else chain.accumulator
    found = np.concatenate([value for _, (value,) in chain.evaluate([end], ctx.opset)]).astype(np.float64)
    if (found != found[:, :1]).any():
        return None
    margin = nearest_within(chain.values, found[:, 0], share)
    if margin is None:
        return None
    bias = add_constant(ctx, f"{original_name(ctx, pack)}/bias", np.zeros(_bias_shape(scores), np.int32))
    text = f"score ≥ row's largest − {margin} is p ≥ {share:g}·max(p): no softmax"
    nodes = (*(link.node for link in chain.links), softmax, top, product, compare, cast)
    return _Choice(1, margin, bias, text, nodes)


def nearest_within(values: np.ndarray, scores: np.ndarray, share: float) -> int | None:
    """The largest n such that an accumulator n below the row's largest has at least ``share`` of its probability.

    ``scores`` [V]: what the softmax is taken of, for each accumulator. None when that is no function of the difference of
    accumulators, or when a ratio is so near to the share that rounding could decide.
    """
    gaps = values[:, None] - values[None, :]
    distance = scores[:, None] - scores[None, :] + math.log(share)
    below = gaps >= 0
    if (np.abs(distance[below]) < MARGIN).any():
        return None
    kept = distance <= 0
    n = int(gaps[below & kept].max())
    return n if bool((kept[below] == (gaps[below] <= n)).all()) else None


def _share_of(node: gs.Node) -> tuple[float | None, gs.Tensor | None]:
    """The factor and the tensor of a multiplication (or division) by one number."""
    for side in (0, 1):
        value = constant(node.inputs[side])
        if value is not None and value.size == 1 and (node.op == "Mul" or side == 1):
            number = float(value.reshape(()))
            if node.op == "Div":
                return (1 / number if number else None), node.inputs[0]
            return number, node.inputs[1 - side]
    return None, None
