"""The units of feature maps against NumPy, under random back-pressure."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnorc.runtimes.fpga.units.depthwise import Depthwise
from xnorc.runtimes.fpga.units.largest import Largest
from xnorc.runtimes.fpga.units.matvec import Border, MatrixVector, Product
from xnorc.runtimes.fpga.units.pool import MaxPool
from xnorc.runtimes.fpga.units.window import Sliding, Window

from .streams import elements_of, stream_through, words_of

SLIDINGS = [
    (Sliding(5, 6, 4, (3, 3), (1, 1)), 2, 1),
    (Sliding(5, 6, 4, (3, 3), (1, 1), (1, 1, 1, 1)), 4, 1),
    (Sliding(5, 4, 1, (3, 3), (1, 1), (1, 1, 1, 1), 1), 1, 1),
    (Sliding(7, 5, 3, (3, 3), (2, 2), (1, 1, 1, 1)), 3, 2),
    (Sliding(6, 6, 2, (2, 2), (2, 2)), 1, 8),
    (Sliding(4, 4, 2, (4, 4), (1, 1)), 2, 1),
    (Sliding(7, 7, 1, (3, 3), (3, 3), (0, 1, 0, 1)), 1, 1),
    (Sliding(6, 6, 1, (1, 1), (2, 2)), 1, 1),
    (Sliding(5, 20, 64, (3, 3), (1, 1), (1, 1, 1, 1)), 64, 1),  # in block memory
]


@pytest.mark.parametrize(("sliding", "simd", "bits"), SLIDINGS)
@pytest.mark.parametrize(("gaps", "refusals"), [(0.0, 0.0), (0.4, 0.4)])
def test_windows_equal_numpy(sliding, simd, bits, gaps, refusals):
    shape = (3, sliding.height, sliding.width, sliding.channels)
    x = np.random.default_rng(0).integers(0, 1 << bits, shape)
    want = np.stack([sliding.reference(image) for image in x]).reshape(3, -1)
    got, _ = stream_through(
        Window(sliding, simd, bits), words_of(x.reshape(3, -1), simd * bits, bits), want.size // simd,
        gaps=gaps, refusals=refusals,
    )  # fmt: skip
    np.testing.assert_array_equal(elements_of(got, simd * bits, 3, bits), want)


@pytest.mark.parametrize(("size", "channels"), [(6, 2), (14, 64)])
def test_a_window_unit_gives_a_word_a_cycle(size, channels):
    sliding = Sliding(size, size, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    x = np.random.default_rng(0).integers(0, 2, (3, size * size * channels))
    count = size * size * 9
    _, cycles = stream_through(Window(sliding, channels), words_of(x, channels), 3 * count)
    assert cycles[-1] - cycles[count - 1] == 2 * count


@pytest.mark.parametrize(
    ("height", "width", "channels", "kernel", "simd"),
    [(4, 4, 4, (2, 2), 2), (5, 7, 4, (2, 2), 4), (6, 6, 3, (3, 3), 1), (4, 6, 2, (2, 3), 1)],
)
def test_pools_equal_numpy(height, width, channels, kernel, simd):
    random = np.random.default_rng(1)
    x, flip = random.integers(0, 2, (3, height, width, channels)), random.integers(0, 2, channels)
    (kh, kw), (rows, columns) = kernel, (height // kernel[0], width // kernel[1])
    cut = (x ^ flip)[:, : rows * kh, : columns * kw].reshape(3, rows, kh, columns, kw, channels)
    want = (cut.max((2, 4)) ^ flip).reshape(3, -1)
    unit = MaxPool(height, width, kernel, flip, simd)
    got, _ = stream_through(unit, words_of(x.reshape(3, -1), simd), want.size // simd, gaps=0.3, refusals=0.3)
    np.testing.assert_array_equal(elements_of(got, simd, 3), want)


class Windowed(wiring.Component):
    """A window unit and the largest of each of its windows."""

    def __init__(self, sliding, flip, simd, bits, is_signed):
        self.window = Window(sliding, simd, bits)
        self.largest = Largest(sliding.kernel[0] * sliding.kernel[1], flip, simd, bits, is_signed)
        width = stream.Signature(simd * bits)
        super().__init__({"input": In(width), "output": Out(width)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.window, m.submodules.largest = self.window, self.largest
        wiring.connect(m, wiring.flipped(self.input), self.window.input)
        wiring.connect(m, self.window.output, self.largest.input)
        wiring.connect(m, self.largest.output, wiring.flipped(self.output))
        return m


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([((3, 3), (2, 2), (1, 1, 1, 1)), ((3, 3), (1, 1), (1, 1, 1, 1)), ((2, 2), (2, 2), (0, 1, 1, 0)),
                     ((3, 2), (1, 2), (0, 0, 0, 0)), ((2, 2), (1, 1), (0, 0, 0, 0))]),
    st.sampled_from([(2, 1), (2, 2), (4, 2), (1, 1)]), st.sampled_from([(1, False), (2, False), (4, True), (8, True)]),
    st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.4]), st.integers(0, 1000),
)  # fmt: skip
def test_pools_of_any_window_and_any_bits_equal_numpy(form, lanes, numbers, gaps, refusals, seed):
    random = np.random.default_rng(seed)
    (kernel, strides, pads), (channels, simd), (bits, is_signed) = form, lanes, numbers
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    flip, (height, width) = random.integers(0, 2, channels), random.integers(4, 7, 2)
    fills = tuple(np.where(flip, high, low).tolist())
    sliding = Sliding(int(height), int(width), channels, kernel, strides, pads, fills=fills)
    x = random.integers(low, high + 1, (2, height, width, channels))
    padded = np.pad(x.astype(float), ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)), constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))[:, :: strides[0], :: strides[1]]
    want = np.where(flip, np.nanmin(views, (-1, -2)), np.nanmax(views, (-1, -2))).astype(np.int64).reshape(2, -1)
    unit = Windowed(sliding, flip, simd, bits, is_signed)
    words = words_of(x.reshape(2, -1), simd * bits, bits)
    got, _ = stream_through(unit, words, want.size // simd, gaps=gaps, refusals=refusals, seed=seed)
    np.testing.assert_array_equal(elements_of(got, simd * bits, 2, bits), want % (1 << bits))


@settings(max_examples=14, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([(9, 4, 2), (4, 4, 4), (9, 2, 1), (1, 3, 3), (1, 1, 1), (6, 5, 1), (9, 16, 1), (25, 16, 1)]),
    st.sampled_from([(1, False), (2, False), (4, True), (8, True)]), st.sampled_from([1, 3, 127]),
    st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.4]), st.integers(0, 1000),
)  # fmt: skip
def test_depthwise_products_equal_numpy(form, numbers, reach, gaps, refusals, seed):
    random = np.random.default_rng(seed)
    (positions, channels, simd), (bits, is_signed) = form, numbers
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    weights = (
        random.integers(-reach, reach + 1, (positions, channels)) if reach > 1 else random.choice([-1, 1], form[:2])
    )
    x = random.integers(low, high + 1, (4, positions, channels))
    x[0], x[1] = np.where(weights > 0, high, low), np.where(weights > 0, low, high)
    unit = Depthwise(weights, simd, bits, is_signed)
    words = words_of(x.reshape(4, -1), simd * bits, bits)
    got, _ = stream_through(unit, words, 4 * channels // simd, gaps=gaps, refusals=refusals, seed=seed)
    want = (x * weights).sum(1)
    assert unit.result_signed or want.min() >= 0
    found = elements_of(got, len(unit.output.payload), 4, unit.result_bits)
    np.testing.assert_array_equal(found, want % (1 << unit.result_bits))


@pytest.mark.parametrize(
    ("planes", "pe", "simd", "compares"), [(2, 4, 6, True), (8, 2, 4, True), (4, 2, 6, False), (3, 1, 1, True)]
)
def test_inputs_of_several_bits(planes, pe, simd, compares):
    random = np.random.default_rng(planes)
    weights, most = random.integers(0, 2, (8, 12)).astype(np.uint8), 12 * ((1 << planes) - 1)
    product = Product(weights, random.integers(0, most + 2, 8) if compares else None, planes)
    x = random.integers(0, 1 << planes, (4, 12))
    unit = MatrixVector(product, pe, simd)
    got, _ = stream_through(unit, words_of(x, simd * planes, planes), 4 * 8 // pe, gaps=0.2, refusals=0.2)
    found = elements_of(got, len(unit.output.payload), 4, product.result_bits)
    np.testing.assert_array_equal(found, product.reference(x))


@pytest.mark.parametrize(("pe", "simd", "store"), [(4, 6, "logic"), (2, 3, "block"), (1, 1, "logic"), (4, 12, "block")])
def test_pixels_at_the_border_have_thresholds_of_their_own(pe, simd, store):
    random = np.random.default_rng(3)
    border = Border((1, 0, 0, 2), (1, 0, 2))
    weights = random.integers(0, 2, (4, 12)).astype(np.uint8)
    product = Product(weights, random.integers(0, 14, (9, 4)), 1, border)
    x = random.integers(0, 2, (2, 12, 12))
    unit = MatrixVector(product, pe, simd, store)
    got, _ = stream_through(unit, words_of(x.reshape(24, 12), simd), 24 * 4 // pe, gaps=0.2, refusals=0.3)
    want = np.stack([product.reference(image) for image in x]).reshape(24, 4)
    np.testing.assert_array_equal(elements_of(got, len(unit.output.payload), 24), want)
