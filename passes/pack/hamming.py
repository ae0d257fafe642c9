"""``hamming``: the best of many ±1 products is a search by Hamming distance.

Matches `TopK` (largest, along the last axis, constant k) of a `BinaryGemm` of one activation row per query with constant ±1
rows, two-dimensional, through `Cast` and any `Mul`, `Div`, `Add`, `Sub` by a single constant that keep the order: every value
that the accumulator can have is put through the very nodes, in float32, and the results must rise strictly.
Gives `HammingTopK` on the packed codes; the indices are its documents, the values the same chain on the k accumulators
`C − 2 · distance`.

Why it is right: the inner product of codes of ±1 is C − 2 · distance, so the largest products are the smallest distances, and
ONNX's `TopK` prefers the lower index among equals, as `HammingTopK` does. Where the chain rises strictly, equal values come
from equal products and no others. What is gained: the products of all documents are neither stored, nor sorted, nor floats.

Does not fire, and says so: for the smallest values, for `sign` with zero as a third value (two accumulators; choose
--sign-zero), for a chain with another operand, for a product that something else reads too, and for a k that is computed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...golden import evaluate
from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, constant, only_consumer, producer, static_shape
from ..chain import original_name
from ..graph import remove_node

_KEEPS_ORDER = ("Mul", "Div", "Add", "Sub")


class Hamming(Pass):
    """See the module."""

    name: ClassVar[str] = "hamming"
    requires: ClassVar[tuple[str, ...]] = ("pack",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the module."""
        changed = False
        for node in list(graph.nodes):
            if node.op != "TopK" or node.domain:
                continue
            found = _match(graph, ctx, node)
            if isinstance(found, str):
                ctx.note(node, Status.FLOAT, found)
            elif found is not None:
                _rewrite(graph, ctx, node, *found)
                changed = True
        return changed


def _match(graph: gs.Graph, ctx: Context, node: gs.Node) -> tuple[gs.Node, list[gs.Node]] | str | None:
    """The product and the chain behind it; the reason why it cannot be; None where no binary product is near."""
    chain: list[gs.Node] = []
    tensor = node.inputs[0]
    above = producer(tensor)
    while above is not None and not above.domain and above.op in (*_KEEPS_ORDER, "Cast"):
        live = [x for x in above.inputs if constant(x) is None]
        if len(live) != 1:
            anchors = [producer(x) for x in above.inputs]
            both = all(a is not None and a.op == "BinaryGemm" for a in anchors)
            return "its signs keep zero as a third value: --sign-zero makes it a search on bits" if both else None
        chain.insert(0, above)
        above = producer(live[0])
    if above is None or above.domain != DOMAIN or above.op != "BinaryGemm":
        return None
    what = f"of the binary product '{original_name(ctx, above)}'"
    if not node.attrs.get("largest", 1):
        return f"the smallest values {what}: a search takes the largest"
    rank = len(static_shape(node.inputs[0]))
    if rank != 2 or int(node.attrs.get("axis", -1)) % rank != 1:
        return f"the best {what} along another axis than the documents of a query"
    k = constant(node.inputs[1])
    if k is None:
        return f"the best {what}, but their number is computed"
    if any(only_consumer(graph, link.outputs[0]) is None for link in (above, *chain)):
        return f"something else reads the values {what} too"
    if not chain or chain[0].op != "Cast" or any(link.op == "Cast" for link in chain[1:]):
        return f"the best {what} through casts that are not understood"
    for link in chain[1:]:
        if any(value is not None and value.size != 1 for value in map(constant, link.inputs)):
            return f"{link.op} '{link.name}' treats documents differently: a search is by distance alone"
    if not _rises(ctx, above, chain):
        return f"the values {what} do not rise strictly with it after the chain before '{node.name}'"
    return above, chain


def _rises(ctx: Context, product: gs.Node, chain: list[gs.Node]) -> bool:
    from onnx import helper

    k = int(product.attrs["k"])
    feeds: dict[str, np.ndarray] = {"v": np.arange(-k, k + 1, 2, dtype=np.int32).astype(np.float32)}
    nodes, live = [], "v"
    for i, link in enumerate(chain[1:]):
        names = []
        for j, tensor in enumerate(link.inputs):
            value = constant(tensor)
            names.append(live if value is None else f"c{i}_{j}")
            if value is not None:
                feeds[names[-1]] = value.reshape(())
        live = f"t{i}"
        nodes.append(helper.make_node(link.op, names, [live]))
    values = evaluate(nodes, feeds, [live], opset=ctx.opset)[live] if nodes else feeds["v"]
    return bool((np.diff(values) > 0).all())


def _rewrite(graph: gs.Graph, ctx: Context, node: gs.Node, product: gs.Node, chain: list[gs.Node]) -> None:
    packed, corpus = product.inputs
    bits, documents = int(product.attrs["k"]), static_shape(corpus)[0]
    k = int(np.asarray(constant(node.inputs[1])).reshape(-1)[0])
    base, shape = original_name(ctx, node), (static_shape(packed)[0], k)
    values, indices = [*node.outputs, None][:2]
    hits = add_node(graph, ctx, "HammingTopK", [packed, corpus], stands_for=product, domain=DOMAIN, k=k)

    def number(word: str, value: int, dtype: type) -> gs.Constant:
        return add_constant(ctx, f"{base}/{word}", np.array(value, dtype))

    def add(op: str, inputs: list[gs.Tensor], dtype: type, output: gs.Tensor | None = None, **attrs: Any) -> gs.Tensor:
        return add_node(
            graph, ctx, op, inputs, stands_for=node, output=output, shape=shape, dtype=np.dtype(dtype), **attrs
        )

    node.outputs.clear()
    if indices is not None and not indices.is_empty():
        found = add("Gather", [hits, number("second", 1, np.int64)], np.int32, axis=2)
        add("Cast", [found], np.int64, indices, to=int(TensorProto.INT64))
    if values is not None and not values.is_empty():
        distance = add("Gather", [hits, number("first", 0, np.int64)], np.int32, axis=2)
        twice = add("Mul", [distance, number("two", 2, np.int32)], np.int32)
        best = add("Sub", [number("bits", bits, np.int32), twice], np.int32)
        for link in chain:
            inputs = [best if constant(tensor) is None else tensor for tensor in link.inputs]
            attrs = {"to": int(TensorProto.FLOAT)} if link is chain[0] else {}
            best = add(link.op, inputs, np.float32, values if link is chain[-1] else None, **attrs)
    names = [original_name(ctx, link) for link in chain]
    for dead in (node, *reversed(chain), product):
        remove_node(graph, dead)
    ctx.note(
        original_name(ctx, product), Status.PACKED, f"a search by Hamming distance: {documents} codes of {bits} bits"
    )
    ctx.note(base, Status.PACKED, f"the {k} nearest codes, ties by the lower one")
    for name in dict.fromkeys(names):
        record = ctx.records.get(name)
        if record is None or record.status is not Status.PACKED:
            ctx.note(name, Status.FUSED, f"computed for the {k} best of '{base}' alone")
