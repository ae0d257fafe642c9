"""A fully unrolled matrix-vector-threshold unit whose rows are counted from one another (MST-compression; see ``mst``)."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Cat, Const, Module, Signal, Value

from .matvec import MatrixVector, Product
from .mst import SpanningCounts, depth_of
from .popcount import chain_tables, width_of


class SpanningMatrixVector(MatrixVector):
    """``MatrixVector`` of one fold, one bit an input and one threshold a row; the same results, some cycles later."""

    @staticmethod
    def fits(product: Product, pe: int, simd: int) -> bool:
        """Whether a product folded so can be built like this."""
        one = product.thresholds is None or product.thresholds.size == product.rows
        return pe == product.rows and simd == product.columns and product.planes == 1 and one

    def _elements(self, m: Module, x: Signal, index: Signal, start: Signal) -> tuple[Value, int]:
        """See ``MatrixVector``: the counts, and behind them a comparison each, which makes good for sign and offset."""
        m.submodules.counts = unit = SpanningCounts(self.product.weights, self.technology)
        m.d.comb += unit.x.eq(x)
        made: list[Value] = []
        limits = None if self.product.thresholds is None else np.ravel(self.product.thresholds)
        for row, (value, sign, offset) in enumerate(zip(unit.values, unit.signs, unit.offsets, strict=True)):
            if limits is None:
                count = value - offset if sign > 0 else offset - value
                result = Signal(self.product.result_bits, name=f"result_{row}", reset_less=True)
                m.d.sync += result.eq(count)
            else:
                # count − t, or t − 1 − count: its sign bit says whether the count reaches t.
                limit = int(limits[row])
                less = -offset - limit if sign > 0 else -offset + limit - 1
                apart = self.technology.add(
                    m, value, Const(less % (1 << unit.width), unit.width), unit.width, None, f"limit_{row}"
                )
                result = Signal(1, name=f"result_{row}", reset_less=True)
                m.d.sync += result.eq(~apart[-1] if sign > 0 else apart[-1])
            made.append(result)
        return Cat(*made), unit.depth + 1


def cost_of(product: Product) -> tuple[int, int]:
    """LUT4s of the counts and comparisons, and cycles from a vector to its results.

    A group of three bits takes two tables here: rows do not share them.
    """
    from .mst import spanning_tree
    from .popcount import best_tree

    width = width_of(product.columns) + 1
    luts = product.rows * chain_tables(width)
    edges = spanning_tree(product.weights)
    for edge in edges:
        if edge.places:
            tree = best_tree(len(edge.places), "constant")
            luts += tree.tables + 2 * sum(size == 3 for size in tree.groups())
            luts += chain_tables(width - 1) if edge.parent >= 0 else 0
    return luts, depth_of(edges) + 1
