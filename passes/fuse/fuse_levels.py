"""``fuse_levels``: the float chain between an accumulator and a ``PackLevels`` becomes integer thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, pack_bits, packed_bytes
from ...opset.levels import level_index
from ..base import Context, Pass, Status, add_constant, add_node, constant, consumers, is_output, static_shape
from ..chain import Chain, absorbed, original_name, trace_chain
from ..graph import dead_nodes, remove_node
from ..pack.pack import reshape
from ..step_function import Order
from .fuse_threshold import Pool, layout

MOST_EVALUATIONS = 1 << 24
"""Most accumulator values times channels that a chain is evaluated on."""

MOST_STEPS = 15
"""Most thresholds of a channel, those of 4 bits: more of them, for every channel, take more memory than they save."""


@dataclass(frozen=True)
class _Plan:
    chain: Chain
    threshold: np.ndarray
    """int32 ``[T, C]``."""
    flip: np.ndarray
    """uint8 ``[C]``."""
    pools: tuple[Pool, ...]


class FuseLevels(Pass):
    """``accumulator → float chain → PackLevels(float32)`` becomes ``accumulator → PackLevels(int32 thresholds)``.

    As ``fuse_threshold``, for all levels at once: ONNX Runtime evaluates the very nodes of the chain on every value that
    the accumulator can have, in every channel, and the levels are read off. Where they rise or fall throughout, the
    accumulators at which they change are the thresholds; a level that is skipped shares its threshold with the next.

    A MaxPool in the chain moves behind the thresholds, as ``LevelMaxPool`` of the codes: their largest where the level rises
    with the pooled value, their least where it falls.

    It does not fire where the chain meets another computed tensor (a residual), moves elements, or is not elementwise;
    where the levels of a channel rise and fall; where it pools codes that do not rise with their levels (two's complement);
    for more than 4 bits (``MOST_STEPS``);
    where the float value or the accumulator is read by something else;
    and where there are too many values to evaluate (``MOST_EVALUATIONS``).
    """

    name: ClassVar[str] = "fuse_levels"
    requires: ClassVar[tuple[str, ...]] = ("pack_levels",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            if node.op != "PackLevels" or node.domain != DOMAIN or np.dtype(node.inputs[0].dtype) != np.float32:
                continue
            chain = trace_chain(node.inputs[0])
            plan = chain if isinstance(chain, str) else _plan(graph, ctx, node, chain)
            if isinstance(plan, str):
                record = ctx.records.get(original_name(ctx, node))
                text = record.reason if record is not None else "packed into bit planes"
                ctx.note(node, Status.PACKED, f"{text}; compared in float: {plan}")
            else:
                _apply(graph, ctx, node, plan)
                changed = True
        for dead in dead_nodes(graph):
            remove_node(graph, dead)
        return changed


def _plan(graph: gs.Graph, ctx: Context, pack: gs.Node, chain: Chain) -> _Plan | str:
    """Thresholds for one PackLevels, or why there are none."""
    windows = layout(pack, chain)
    if isinstance(windows, str):
        return windows
    if windows and list(pack.attrs["codes"]) != sorted(pack.attrs["codes"]):
        return "a MaxPool is in the chain, and its codes do not rise with the levels"
    mine = {id(pack), *(id(link.node) for link in chain.links)}
    for tensor in (chain.accumulator, *(link.tensor for link in chain.links)):
        others = [node for node in consumers(tensor) if id(node) not in mine]
        if others or is_output(graph, tensor):
            who = f"{others[0].op} '{original_name(ctx, others[0])}'" if others else "the model's output"
            return f"'{tensor.name}' is needed in float by {who} anyway"
    threshold, flip = constant(pack.inputs[1]), constant(pack.inputs[2])
    if threshold is None or flip is None:
        return "its thresholds are computed at run time"
    if len(threshold) > MOST_STEPS:
        return f"{len(threshold)} thresholds for each channel would take more memory than one set for all"
    count, values = chain.channels, chain.values
    if len(values) * count > MOST_EVALUATIONS:
        return f"{len(values)} accumulator values in {count} channels are too many to evaluate"
    end = chain.links[-1].tensor if chain.links else chain.accumulator
    levels = np.empty((len(values), count), np.int16)
    pooled = [link for link in chain.links if link.node.op == "MaxPool"]
    orders = [[Order(count) for _ in threshold] for _ in pooled]
    for rows, (found, *before) in chain.evaluate([end, *(link.node.inputs[0] for link in pooled)], ctx.opset):
        if np.isnan(found).any():
            return "the chain gives values that are no numbers"
        levels[rows] = level_index(found, threshold, flip)
        for steps, value in zip(orders, before, strict=True):
            for step, order in enumerate(steps):
                order.feed(value, levels[rows] > step)
    rises, falls = (np.diff(levels, axis=0) >= 0).all(0), (np.diff(levels, axis=0) <= 0).all(0)
    if not (rises | falls).all():
        return f"channel {int(np.argmin(rises | falls))} neither rises nor falls with the accumulator"
    pools = []
    for link, window, steps in zip(pooled, windows, orders, strict=True):
        up, down = (np.all(each, axis=0) for each in zip(*(order.ways() for order in steps), strict=True))
        if not (up | down).all():
            return f"channel {int(np.argmin(up | down))} is not monotone in what MaxPool '{link.node.name}' pools"
        pools.append(Pool(link, window, ~up))
    turned = ~rises
    # Step t is passed by the values whose level is above t: from the first such value on, or below the first that is not.
    found_thresholds = np.empty((len(threshold), count), np.int32)
    past = int(values[-1]) + 1
    for step in range(len(threshold)):
        above = (levels > step) ^ turned
        first = np.argmax(above, axis=0)
        found_thresholds[step] = np.where(above.any(0), values[first], past)
    return _Plan(chain, found_thresholds, np.asarray(turned, np.uint8), tuple(pools))


def _apply(graph: gs.Graph, ctx: Context, pack: gs.Node, plan: _Plan) -> None:
    """Replace the chain. The planes keep their name, and so their entry in ``ctx.origins``."""
    chain, output = plan.chain, pack.outputs[0]
    shape, target = static_shape(chain.accumulator), static_shape(output)
    planes = int(pack.attrs["planes"])
    base, attrs = original_name(ctx, pack), dict(pack.attrs)
    pack.inputs.clear()
    size = packed_bytes(shape[-1])
    direct = not plan.pools and target == (planes, *shape[:-1], size)
    value = add_node(
        graph, ctx, "PackLevels",
        [chain.accumulator, add_constant(ctx, f"{base}/int_threshold", plan.threshold),
         add_constant(ctx, f"{base}/int_flip", plan.flip)],
        stands_for=pack, output=output if direct else None, domain=DOMAIN,
        perm=list(range(len(shape))), codes=attrs["codes"], planes=planes,
    )  # fmt: skip
    for i, pool in enumerate(plan.pools):
        last = output if i == len(plan.pools) - 1 else None
        value = _pooled(
            graph, ctx, value, pool, (planes, size), last if last is not None and len(target) == 5 else None
        )
    if value is not output:
        reshape(graph, ctx, value, target, pack, output)
    anchor = original_name(ctx, chain.anchor)
    record = ctx.records.get(base)
    text = f"{record.reason}; " if record is not None and record.status is Status.PACKED else ""
    ctx.note(pack, Status.PACKED, f"{text}{len(plan.threshold)} integer thresholds a channel on '{anchor}'")
    for pool in plan.pools:
        ctx.note(pool.link.node, Status.PACKED, f"the largest codes behind the thresholds of '{anchor}'")
    for link in chain.links:
        if link.node.op == "MaxPool":
            continue
        absorbed(ctx, link.node, Status.FUSED, f"part of the integer thresholds of '{anchor}'")


def _pooled(
    graph: gs.Graph, ctx: Context, tensor: gs.Tensor, pool: Pool, sizes: tuple[int, int], output: gs.Tensor | None
) -> gs.Tensor:
    """``LevelMaxPool`` of codes ``[planes, N, W, bytes]`` or ``[planes, N, H, W, bytes]``; ``sizes``: planes and bytes."""
    node, (planes, size) = pool.link.node, sizes
    n, _, *spatial = static_shape(node.inputs[0])
    lifted = (planes, n, *([1] * (2 - len(spatial))), *spatial, size)
    flip = add_constant(ctx, f"{original_name(ctx, node)}/flip", pack_bits(pool.minimum))
    if static_shape(tensor) != lifted:
        tensor = reshape(graph, ctx, tensor, lifted, node)
    attrs: dict[str, Any] = dict(pool.window.pool_attrs())
    return add_node(
        graph, ctx, "LevelMaxPool", [tensor, flip], stands_for=node, output=output, domain=DOMAIN, **attrs
    )  # fmt: skip
