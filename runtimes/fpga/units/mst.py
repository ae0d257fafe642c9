"""A fully unrolled binary layer whose rows share work: a row is counted from another one that is nearly the same.

Two rows of ±1 weights that differ in d of K places have counts of agreement that differ by what these d places say:
``count_j = count_i + 2 · agree_j(D) − d``, where ``agree_j(D)`` counts over the d places alone. For the opposite of a row
``count = K − count_i``, so a row is never further than K / 2 away. A minimum spanning tree over all rows, with the empty row as
one more (its edges cost K, the row by itself), makes the number of places that are counted in all as small as edges can
make it: MST-compression, Q. H. Vo, L.-T. Tran, S.-H. Bae, L.-W. Kim, C. S. Hong, ICCV 2023, https://arxiv.org/abs/2308.13735.

In hardware no edge costs more than one adder: row j is held as ``v_j = s_j · count_j + o_j`` (modulo 2^width) with a sign
and an offset known beforehand, and ``v_j = v_i + 2 · n``, where n counts the places that agree if s_j is 1, that disagree if
it is −1. What comes behind (a threshold) takes sign and offset into its own constant. Exact: the counts are the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .popcount import Tree, best_tree, width_of
from .technology import Technology


@dataclass(frozen=True)
class Edge:
    """How a row is counted: from row ``parent`` (-1: by itself), of the opposite weights if ``flipped``.

    ``places``: where it differs from that (all of its own, by itself). ``level``: edges up to a row counted by itself.
    """

    row: int
    parent: int
    flipped: bool
    places: tuple[int, ...]
    level: int


def spanning_tree(weights: np.ndarray) -> list[Edge]:
    """A minimum spanning tree of the rows of ``weights`` (uint8 0/1 ``[rows, K]``), parents before children.

    By Prim's algorithm, R. C. Prim, Bell System Technical Journal 36 (1957). Of equal edges the one with the shallower
    parent is taken, then the lower row, so the result is always the same.
    """
    rows, columns = weights.shape
    signs = weights.astype(np.int32) * 2 - 1
    apart = (columns - signs @ signs.T) // 2
    cost = np.minimum(apart, columns - apart)
    best = np.full(rows, columns)  # by itself
    parents, levels, done, order = np.full(rows, -1), np.zeros(rows, int), np.zeros(rows, bool), []
    for _ in range(rows):
        open_rows = np.flatnonzero(~done)
        row = int(min(open_rows, key=lambda r: (best[r], levels[r], r)))
        done[row] = True
        order.append(row)
        closer = ~done & ((cost[row] < best) | ((cost[row] == best) & (levels[row] + 1 < levels) & (parents >= 0)))
        best[closer], parents[closer], levels[closer] = cost[row][closer], row, levels[row] + 1
    edges = []
    for row in order:
        parent = int(parents[row])
        if parent < 0:
            edges.append(Edge(row, -1, False, tuple(range(columns)), 0))
            continue
        flipped = bool(apart[row, parent] > columns - apart[row, parent])
        differs = weights[row] != (weights[parent] ^ flipped)
        edges.append(Edge(row, parent, flipped, tuple(np.flatnonzero(differs).tolist()), int(levels[row])))
    return edges


def counted_places(edges: Sequence[Edge]) -> int:
    """Places that are compared and counted in all: ``rows · K`` without the tree."""
    return sum(len(edge.places) for edge in edges)


def counts(edges: Sequence[Edge], weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How often each row agrees with ``x`` (uint8 0/1 ``[n, K]``): int64 ``[n, rows]``, the way the hardware does it."""
    columns = weights.shape[1]
    out: Any = np.zeros((len(x), len(weights)), np.int64)
    for edge in edges:
        places = list(edge.places)
        agree = (x[:, places] == weights[edge.row, places]).sum(axis=1)
        if edge.parent < 0:
            out[:, edge.row] = agree
            continue
        base = columns - out[:, edge.parent] if edge.flipped else out[:, edge.parent]
        out[:, edge.row] = base + 2 * agree - len(places)
    return out


def ready_times(edges: Sequence[Edge]) -> list[int]:
    """Cycles after the vector until each row's value is there: its places counted, its parent's value there, an adder."""
    ready = [0] * len(edges)
    for edge in edges:
        counted = 1 + best_tree(len(edge.places), "constant").depth if edge.places else 0
        ready[edge.row] = counted if edge.parent < 0 else max(ready[edge.parent], counted) + 1
    return ready


def depth_of(edges: Sequence[Edge]) -> int:
    """Cycles until all rows are there."""
    return max(ready_times(edges))


class SpanningCounts(wiring.Component):
    """All rows of constant ``weights`` (uint8 0/1 ``[rows, K]``) at once, a vector ``x`` every cycle.

    ``values[j]`` is ``signs[j] · count + offsets[j]`` modulo 2^``width``, ``depth`` cycles after ``x``; ``width`` has room
    for a sign beside a count. Registers behind every adder; they have no reset.
    """

    def __init__(self, weights: np.ndarray, technology: Technology) -> None:
        rows, columns = weights.shape
        self.weights, self.technology, self.edges = weights, technology, spanning_tree(weights)
        self.width = width_of(columns) + 1
        self.signs, self.offsets, self.ready = [1] * rows, [0] * rows, ready_times(self.edges)
        for edge in self.edges:
            if edge.parent < 0:
                continue
            sign = self.signs[edge.parent]
            self.signs[edge.row] = -sign if edge.flipped else sign
            shift = (columns if sign > 0 else -columns) if edge.flipped else 0
            self.offsets[edge.row] = self.offsets[edge.parent] + len(edge.places) + shift
        self.depth = max(self.ready)
        super().__init__({"x": In(columns), "values": Out(self.width).array(rows)})

    def elaborate(self, platform: object) -> Module:
        """Each row when the one it is counted from is there; all of them are given together."""
        m = Module()
        values: dict[int, Signal] = {}
        for edge in self.edges:
            name = f"row{edge.row}"
            agree = self.signs[edge.row] > 0
            bits = [
                self.x[place] if bool(self.weights[edge.row, place]) == agree else ~self.x[place]
                for place in edge.places
            ]
            number: Value = Const(0, 1)
            at = 0
            if bits:
                tree = best_tree(len(bits), "constant")
                number, at = self._count(m, tree, bits, name), 1 + tree.depth
            if edge.parent < 0:
                values[edge.row] = self._register(m, number, self.width, f"{name}_value", 0)
                continue
            start = self.ready[edge.row] - 1
            number = self._register(m, number, len(number), f"{name}_late", start - at)
            parent = values[edge.parent]
            waited = self._register(m, parent, self.width, f"{name}_from", start - self.ready[edge.parent])
            # Twice a number leaves the lowest bit as it is.
            upper = self.technology.add(m, waited[1:], number, self.width - 1, None, f"{name}_add")
            values[edge.row] = self._register(m, Cat(waited[0], upper), self.width, f"{name}_value", 1)
        for row, port in enumerate(self.values):
            m.d.comb += port.eq(
                self._register(m, values[row], self.width, f"row{row}_out", self.depth - self.ready[row])
            )
        return m

    def _register(self, m: Module, value: Value, width: int, name: str, cycles: int) -> Signal:
        """``value`` so many cycles later, as a signal of ``width`` bits."""
        last = Signal(width, name=name, reset_less=True)
        for number in range(cycles, 0, -1):
            target = last if number == 1 else Signal(width, name=f"{name}_{number}", reset_less=True)
            m.d.sync += target.eq(value)
            value = target
        if cycles == 0:
            m.d.comb += last.eq(value)
        return last

    def _count(self, m: Module, tree: Tree, bits: list[Value], name: str) -> Value:
        """The number of ones among ``bits``, 1 + ``tree.depth`` cycles later."""
        groups = iter(_grouped(bits, tree))
        made = 0

        def leaf() -> Value:
            nonlocal made
            made += 1
            group = next(groups)
            if len(group) == 1:
                return self._register(m, group[0], 1, f"{name}_bit{made}", 1)
            a, b, c = group
            return self._register(m, Cat(a ^ b ^ c, (a & b) | (c & (a | b))), 2, f"{name}_leaf{made}", 1)

        def build(node: Tree) -> Value:
            nonlocal made
            if node.left is None or node.right is None:
                return leaf()
            below = node.depth - 1
            parts = []
            for part in (node.left, node.right):
                value = build(part)
                made += 1
                parts.append(self._register(m, value, len(value), f"{name}_wait{made}", below - part.depth))
            carry: Value | None = None
            if node.carry:
                value = leaf()
                carry = self._register(m, value, 1, f"{name}_carry{made}", below)
            made += 1
            total = self.technology.add(m, parts[0], parts[1], node.width, carry, f"{name}_sum{made}")
            return self._register(m, total, node.width, f"{name}_total{made}", 1)

        return build(tree)


def _grouped(bits: Sequence[Value], tree: Tree) -> list[Sequence[Value]]:
    """The bits cut into the tree's groups, in its order."""
    cut, start = [], 0
    for size in tree.groups():
        cut.append(bits[start : start + size])
        start += size
    return cut
