"""``lookup``: table entries that constant codes choose, summed, keep their codes in bytes.

Matches `ReduceSum` over the tables of
* `GatherElements` of float32 tables ``[Q, M, K]`` along K, with constant places ``[Q, M, D]`` that are the same for all Q; or
* `Gather` along the second axis of tables laid flat, ``[Q, M·K]``, with constant places ``[D, M]``, each in its own table,
K at most 256. Gives `LookupSum`, whose codes are one byte for every place (of 8 bytes) and every query shares them.

Why it is right: both add the same entries, in float32, in some order. What is gained: the chosen entries, one for each
document and table, are never stored.

Does not fire for places that are computed, that change with the query, or that leave their table, nor where something else
reads the entries. It then leaves the record as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, constant, only_consumer, producer, static_shape
from ..chain import original_name
from ..graph import remove_node

_MOST = 256
"""Entries that a byte can name."""


class Lookup(Pass):
    """See the module."""

    name: ClassVar[str] = "lookup"
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Rewrite every sum that matches."""
        changed = False
        for node in [node for node in graph.nodes if node.op == "ReduceSum" and not node.domain]:
            chosen = producer(node.inputs[0])
            if chosen is None or chosen.domain or node.attrs.get("keepdims", 1):
                continue
            if only_consumer(graph, chosen.outputs[0]) is None:
                continue
            found = _of_elements(chosen) if chosen.op == "GatherElements" else _of_flat(chosen)
            if found is not None and _summed_axis(node) == found[2]:
                _rewrite(graph, ctx, node, chosen, *found[:2])
                changed = True
        return changed


def _summed_axis(node: gs.Node) -> int | None:
    axes: Any = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = constant(node.inputs[1])
    axes = [] if axes is None else np.asarray(axes).reshape(-1).tolist()
    return int(axes[0]) % len(static_shape(node.inputs[0])) if len(axes) == 1 else None


def _of_elements(chosen: gs.Node) -> tuple[gs.Tensor, np.ndarray, int] | None:
    """Tables [Q, M, K], codes [D, M] and the axis to sum over."""
    tables, places = chosen.inputs[0], constant(chosen.inputs[1])
    shape = static_shape(tables)
    if places is None or len(shape) != 3 or np.dtype(tables.dtype) != np.float32 or shape[2] > _MOST:
        return None
    if int(chosen.attrs.get("axis", 0)) % 3 != 2 or places.shape[:2] != shape[:2] or (places != places[:1]).any():
        return None
    codes = np.where(places[0] < 0, places[0] + shape[2], places[0]).T
    inside = bool(((codes >= 0) & (codes < shape[2])).all())
    return (tables, codes, 1) if inside else None


def _of_flat(chosen: gs.Node) -> tuple[gs.Tensor, np.ndarray, int] | None:
    """As ``_of_elements``, for tables that are laid flat."""
    if chosen.op != "Gather" or int(chosen.attrs.get("axis", 0)) % 2 != 1:
        return None
    flat, places = producer(chosen.inputs[0]), constant(chosen.inputs[1])
    if flat is None or flat.domain or flat.op not in ("Reshape", "Flatten") or places is None or places.ndim != 2:
        return None
    tables = flat.inputs[0]
    shape = static_shape(tables)
    if len(shape) != 3 or np.dtype(tables.dtype) != np.float32 or shape[2] > _MOST or places.shape[1] != shape[1]:
        return None
    if static_shape(chosen.inputs[0]) != (shape[0], shape[1] * shape[2]):
        return None
    codes = places - np.arange(shape[1]) * shape[2]
    inside = bool(((codes >= 0) & (codes < shape[2])).all())
    return (tables, codes, 2) if inside else None


def _rewrite(
    graph: gs.Graph, ctx: Context, node: gs.Node, chosen: gs.Node, tables: gs.Tensor, codes: np.ndarray
) -> None:
    out, base = node.outputs[0], original_name(ctx, chosen)
    _, groups, entries = static_shape(tables)
    held = add_constant(ctx, f"{base}/codes", codes.astype(np.uint8))
    sums = original_name(ctx, node)
    remove_node(graph, node)
    remove_node(graph, chosen)
    add_node(graph, ctx, "LookupSum", [tables, held], stands_for=chosen, domain=DOMAIN, output=out)
    ctx.note(
        base, Status.PACKED, f"LookupSum: {len(codes)} codes of {groups} bytes, each names one of {entries} entries"
    )
    ctx.note(sums, Status.FUSED, f"the sums of '{base}' are taken as it looks up")
