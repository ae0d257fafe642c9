"""``fuse_threshold``: the float chain between an accumulator and a ``Pack`` becomes integer thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, packed_bytes
from ..base import Context, Pass, Status, add_constant, add_node, constant, consumers, is_output, static_shape
from ..chain import Chain, Link, absorbed, original_name, trace_chain
from ..graph import dead_nodes, remove_node
from ..pack.pack import max_pool, reshape
from ..step_function import NoStep, Order, Steps, find_steps
from ..windows import Window, max_pool_window


@dataclass(frozen=True)
class Pool:
    """A MaxPool inside a chain: done on bits behind the threshold."""

    link: Link
    window: Window
    minimum: np.ndarray
    """bool [C]: the channels whose bit falls as the pooled value rises."""


@dataclass(frozen=True)
class _Plan:
    pack: gs.Node
    chain: Chain
    steps: Steps
    pools: tuple[Pool, ...]


class FuseThreshold(Pass):
    """``accumulator → float chain → Pack(float32)`` becomes ``accumulator → Pack(int32 thresholds)``.

    The chain (see ``chain``) treats every channel by itself, so the bit is a function of the channel and of the integer
    in the accumulator, of which there are few. ONNX Runtime evaluates the very nodes of the chain on all of them; where
    each channel's bit is a step function (rising, falling or constant), the step is the threshold. Rounding, ties,
    negative and zero scales need no thought: they were evaluated.

    A MaxPool in the chain moves behind the threshold, as OR of the bits where the bit rises with the pooled value and
    as AND where it falls. That too is seen from the evaluated values, ties included.

    It does not fire where the chain meets another computed tensor (a residual), a constant that varies inside a
    channel, or an operation that is not elementwise; where some channel's bit changes twice (its values are named);
    where the chain reorders elements; and where the float value, or the accumulator, is read by something else as well: it must
    be computed anyway then, and comparing it is as cheap as keeping the accumulator too.
    """

    name: ClassVar[str] = "fuse_threshold"
    requires: ClassVar[tuple[str, ...]] = ("pack",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        together: dict[int, list[tuple[gs.Node, Chain]]] = {}
        for node in graph.nodes:
            if node.op == "Pack" and node.domain == DOMAIN and np.dtype(node.inputs[0].dtype) == np.float32:
                chain = trace_chain(node.inputs[0])
                if isinstance(chain, str):
                    self._refuse(ctx, node, (), chain)
                else:
                    together.setdefault(id(chain.accumulator), []).append((node, chain))
        changed = False
        for group in together.values():
            plans = self._plan_group(graph, ctx, group)
            for plan in plans:
                _apply(graph, ctx, plan)
            changed = changed or bool(plans)
        for node in dead_nodes(graph):
            remove_node(graph, node)
        return changed

    def _plan_group(self, graph: gs.Graph, ctx: Context, group: list[tuple[gs.Node, Chain]]) -> list[_Plan]:
        """Plans for all Packs that depend on one accumulator: all of them or none."""
        plans = []
        for pack, chain in group:
            plan = _plan(pack, chain, ctx)
            if isinstance(plan, str):
                self._refuse(ctx, pack, chain.links, plan)
            else:
                plans.append(plan)
        mine = {id(plan.pack) for plan in plans} | {id(link.node) for plan in plans for link in plan.chain.links}
        for plan in plans:
            for tensor in (plan.chain.accumulator, *(link.tensor for link in plan.chain.links)):
                others = [node for node in consumers(tensor) if id(node) not in mine]
                if others or is_output(graph, tensor):
                    who = f"{others[0].op} '{original_name(ctx, others[0])}'" if others else "the model's output"
                    for other in plans:
                        self._refuse(
                            ctx, other.pack, other.chain.links,
                            f"'{tensor.name}' is needed in float by {who} anyway, so its float value is compared",
                        )  # fmt: skip
                    return []
        return plans

    @staticmethod
    def _refuse(ctx: Context, pack: gs.Node, links: tuple[Link, ...], reason: str) -> None:
        previous = ctx.records.get(original_name(ctx, pack))
        text = f"{previous.reason}; " if previous is not None and previous.status is Status.PACKED else ""
        if "compared in float" not in text:
            ctx.note(pack, Status.PACKED, f"{text}compared in float: {reason}")
        for link in links:
            absorbed(ctx, link.node, Status.FLOAT, f"not in an integer threshold: {reason}")


def _plan(pack: gs.Node, chain: Chain, ctx: Context) -> _Plan | str:
    """Thresholds for one Pack, or why there are none."""
    windows = layout(pack, chain)
    if isinstance(windows, str):
        return windows
    pooled = [link for link in chain.links if link.node.op == "MaxPool"]
    end = chain.links[-1].tensor if chain.links else chain.accumulator
    threshold, flip = constant(pack.inputs[1]), constant(pack.inputs[2])
    if threshold is None or flip is None:
        return "its float threshold is computed at run time"
    orders = [Order(chain.channels) for _ in pooled]
    bits = np.empty((len(chain.values), chain.channels), dtype=bool)
    for rows, (final, *before) in chain.evaluate([end, *(link.node.inputs[0] for link in pooled)], ctx.opset):
        compared = final > threshold if pack.attrs["strict"] else final >= threshold
        bits[rows] = compared ^ flip.astype(bool)
        for order, value in zip(orders, before, strict=True):
            order.feed(value, bits[rows])
    steps = find_steps(chain.values, bits)
    if isinstance(steps, NoStep):
        return str(steps)
    pools = []
    for link, window, order in zip(pooled, windows, orders, strict=True):
        minimum = order.minimum()
        if isinstance(minimum, int):
            return f"channel {minimum} is not monotone in what MaxPool '{link.node.name}' pools"
        pools.append(Pool(link, window, minimum))
    return _Plan(pack, chain, steps, tuple(pools))


def layout(pack: gs.Node, chain: Chain) -> list[Window] | str:
    """The windows of the chain's pools, or why its elements do not stay in the accumulator's order.

    Follows the index of every element through the nodes that move data: before each pool and at the Pack, the elements
    must be the accumulator's (or the last pool's), channels last, in the same order.
    """
    shape = static_shape(chain.accumulator)
    if pack.attrs["perm"][-1] != (chain.links[-1].axis if chain.links else len(shape) - 1):
        return "the signs are packed along another axis than the accumulator's channels"
    index: np.ndarray = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int32).reshape(shape)
    windows = []
    for link in chain.links:
        if link.node.op == "MaxPool":
            window = max_pool_window(link.node)
            if isinstance(window, str):
                return window
            if not _in_order(np.moveaxis(index, 1, -1)):
                return f"the chain reorders pixels before MaxPool '{link.node.name}'"
            windows.append(window)
            n, channels, *spatial = static_shape(link.tensor)
            index = np.arange(int(np.prod(static_shape(link.tensor), dtype=np.int64)), dtype=np.int32)
            index = np.moveaxis(index.reshape(n, *spatial, channels), -1, 1)
        elif link.node.op == "Transpose":
            index = np.transpose(index, link.node.attrs.get("perm") or None)
        else:
            index = index.reshape(static_shape(link.tensor))
    if not _in_order(np.transpose(index, pack.attrs["perm"])):
        return "the chain reorders pixels between the accumulator and the sign"
    return windows


def _in_order(index: np.ndarray) -> bool:
    flat = index.reshape(-1)
    return bool((flat == np.arange(flat.size)).all())


def _apply(graph: gs.Graph, ctx: Context, plan: _Plan) -> None:
    """Replace the chain. The Pack's output keeps its name, and so its entry in ``ctx.origins``."""
    chain, pack, output = plan.chain, plan.pack, plan.pack.outputs[0]
    shape = static_shape(chain.accumulator)
    count = packed_bytes(shape[-1])
    target = static_shape(output)
    base = original_name(ctx, pack)
    pack.inputs.clear()
    inputs = [
        chain.accumulator,
        add_constant(ctx, f"{base}/int_threshold", plan.steps.threshold),
        add_constant(ctx, f"{base}/int_flip", plan.steps.flip),
    ]
    direct = not plan.pools and target == (*shape[:-1], count)
    value = add_node(
        graph, ctx, "Pack", inputs, stands_for=pack, output=output if direct else None, domain=DOMAIN,
        perm=list(range(len(shape))), strict=0,
    )  # fmt: skip
    for i, pool in enumerate(plan.pools):
        node = pool.link.node
        n, _, *spatial = static_shape(node.inputs[0])
        value = reshape(graph, ctx, value, (n, *spatial, count), node)
        n, _, *spatial = static_shape(pool.link.tensor)
        sizes = (n, *spatial, count)
        last = output if i == len(plan.pools) - 1 and sizes == target else None
        value = max_pool(graph, ctx, value, node, pool.window.pool_attrs(), sizes, pool.minimum, last)
    if value is not output:
        reshape(graph, ctx, value, target, pack, output)
    _note(ctx, plan)


def _note(ctx: Context, plan: _Plan) -> None:
    anchor = original_name(ctx, plan.chain.anchor)
    previous = ctx.records.get(original_name(ctx, plan.pack))
    text = f"{previous.reason}; " if previous is not None and previous.status is Status.PACKED else ""
    if "integer threshold" not in text:  # else this is the second of two passes over one sign
        ctx.note(plan.pack, Status.PACKED, f"{text}integer threshold on '{anchor}' ({plan.steps})")
    for link in plan.chain.links:
        if link.node.op != "MaxPool":
            absorbed(ctx, link.node, Status.FUSED, f"part of the integer threshold of '{anchor}' ({plan.steps})")
    for pool in plan.pools:
        falling = int(pool.minimum.sum())
        how = f"OR of bits behind the threshold of '{anchor}'" + (f", AND in {falling} channels" if falling else "")
        ctx.note(pool.link.node, Status.PACKED, how)
