"""The matrix-vector-threshold unit against NumPy, folded in many ways, under random back-pressure."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnorc.runtimes.fpga.units.matvec import MatrixVector, Product, _block_memory
from xnorc.runtimes.fpga.units.popcount import best_tree
from xnorc.runtimes.fpga.units.technology import Technology
from xnorc.runtimes.fpga.units.width import converters

from .streams import elements_of, stream_through, words_of


@st.composite
def folded(draw):
    pe, rows = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3, 17]))
    simd, columns = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    thresholds = draw(st.booleans())
    return pe * rows, simd * columns, pe, simd, thresholds, draw(st.sampled_from(["logic", "block"]))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(folded(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.6]), st.integers(0, 1000))
def test_folded_products_equal_numpy_under_back_pressure(shape, gaps, refusals, seed):
    rows, columns, pe, simd, compares, store = shape
    random = np.random.default_rng(seed)
    weights = random.integers(0, 2, (rows, columns)).astype(np.uint8)
    product = Product(weights, random.integers(0, columns + 2, rows) if compares else None)
    unit = MatrixVector(product, pe, simd, store)
    x = random.integers(0, 2, (3, columns))
    width = len(unit.output.payload)
    got, _ = stream_through(unit, words_of(x, simd), 3 * rows // pe, gaps=gaps, refusals=refusals, seed=seed)
    np.testing.assert_array_equal(elements_of(got, width, 3, product.result_bits), product.reference(x))


@pytest.mark.parametrize(
    ("width", "depth", "memories"),
    [
        (11, 7, 1), (18, 9, 1), (19, 9, 1), (36, 512, 1), (55, 5, 2), (77, 12, 3), (40, 600, 1), (9, 1500, 1), (20, 1500, 3),
        (9, 2200, 3), (5, 8192, 3), (2, 9000, 2), (2, 20000, 1),
    ],
)  # fmt: skip
def test_words_of_a_table_are_cut_so_that_each_block_has_a_register_of_its_own(width, depth, memories):
    random = np.random.default_rng(width)
    words = [int.from_bytes(random.bytes(16), "little") % (1 << width) for _ in range(depth)]
    m, address, data = Module(), Signal(range(depth)), Signal(width)
    m.d.comb += data.eq(_block_memory(m, address, words, width, "words", Technology("ecp5").port_shapes))
    assert len(m._named_submodules) == memories
    read = []

    async def bench(ctx):
        for place in range(0, depth, 1 + depth // 20):
            ctx.set(address, place)
            await ctx.tick()
            read.append((place, ctx.get(data)))

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert read and all(word == words[place] for place, word in read)


@pytest.mark.parametrize(("pe", "simd", "interval"), [(4, 12, 4), (2, 6, 16), (8, 24, 1), (8, 4, 6)])
def test_a_vector_takes_its_folds_and_no_cycle_more(pe, simd, interval):
    random = np.random.default_rng(0)
    product = Product(random.integers(0, 2, (8, 24)).astype(np.uint8), random.integers(8, 16, 8))
    unit = MatrixVector(product, pe, simd)
    assert unit.folds == interval
    x = random.integers(0, 2, (12, 24))
    _, cycles = stream_through(unit, words_of(x, simd), 12 * 8 // pe)
    ends = cycles[8 // pe - 1 :: 8 // pe]
    assert ends[-1] - ends[1] == 10 * interval


@pytest.mark.parametrize(("bits", "most"), [(16, 2.5), (32, 2.55), (56, 2.6), (64, 2.6), (196, 2.65), (784, 2.7)])
def test_trees_with_weights_from_memory_take_few_tables(bits, most):
    assert best_tree(bits, "memory").tables / bits <= most
    assert best_tree(bits, "constant").tables / bits <= 1.3


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_widths_change_and_bits_stay_in_order(source, result, seed):
    words = np.random.default_rng(seed).integers(0, 2, (source * result * 2, 1, source))
    for unit in converters(source, result):
        wide_in, wide_out = len(unit.input.payload), len(unit.output.payload)
        bits = words.reshape(1, -1)
        got, _ = stream_through(unit, words_of(bits, wide_in), bits.size // wide_out, gaps=0.3, refusals=0.3, seed=seed)
        np.testing.assert_array_equal(elements_of(got, wide_out, 1), bits)


def test_shared_modules_are_emitted_once():
    technology = Technology("ecp5", share=True)
    from amaranth.back import verilog

    product = Product(np.eye(8, 16, dtype=np.uint8))
    text = verilog.convert(MatrixVector(product, 4, 8, "logic", technology), name="unit")
    assert text.count("element_8x5_memory") == 4
    assert technology.shared["element_8x5_memory"].count("module element_8x5_memory(") == 1
