"""Kernels that decode weights, on floats of any value: within the a-priori bound of a float32 sum, here and on emulated Pis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lower.kernel_calls import Job, make_job, run_emulated, run_here
from tests.opset.cases import Case
from tests.opset.cases_low_bit import bit_float_case, conv_attrs, low_bit_case, shift_case, sparse_case
from xnorc.runtimes.bound_ops import RULES, Use


def real(case: Case, rng: np.random.Generator) -> Case:
    """The case with activations, scales, zeros and offsets of any value."""
    op, attrs, inputs = case
    made = [rng.standard_normal(x.shape).astype(np.float32) if x.dtype == np.float32 else x for x in inputs]
    return op, attrs, made


def near(job: Job, got: np.ndarray) -> None:
    """The reference rounds the exact sum once: the kernel may be as far from it as the bound allows one evaluation."""
    use = Use(job.call.op, job.call.attrs, job.inputs, job.expected, [0.0] * len(job.inputs), [None] * len(job.inputs))
    bound = RULES[job.call.op](use).error + np.spacing(np.abs(job.expected))
    assert (np.abs(got.astype(np.float64) - job.expected) <= bound).all()


def cases(rng: np.random.Generator) -> Iterator[Case]:
    yield low_bit_case(rng, rows=(5,), k=333, out=45, bits=4, group=64)
    yield low_bit_case(rng, rows=(1,), k=1000, out=24, bits=3)
    yield low_bit_case(rng, bits=2, out=12, conv=((1, 16, 9, 7), conv_attrs()))
    yield shift_case(rng, rows=(2, 3), k=200, out=19)
    yield shift_case(rng, bits=4, out=10, conv=((2, 8, 7, 5), conv_attrs(strides=(2, 2))))
    yield sparse_case(rng, rows=(3,), k=400, out=37, group=128)
    yield bit_float_case(rng, rows=(6,), k=75, out=21, clear=-1)


def test_real_numbers_stay_in_bound() -> None:
    rng = np.random.default_rng(3)
    for case in cases(rng):
        job = make_job("kernel", real(case, rng))
        near(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_real_numbers_stay_in_bound_on_a_pi(target: str, tmp_path) -> None:
    rng = np.random.default_rng(4)
    jobs = [make_job(f"k{i}", real(case, rng), target) for i, case in enumerate(cases(rng))]
    for job, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        near(job, got)


@given(
    st.integers(0, 1000), st.integers(1, 9), st.integers(1, 700), st.integers(1, 70), st.integers(1, 4), st.booleans()
)
@settings(max_examples=12, deadline=None)
def test_random_sizes_are_exact_on_integers(seed: int, rows: int, k: int, out: int, bits: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    job = make_job("kernel", low_bit_case(rng, rows=(rows,), k=k, out=out, bits=bits, group=32 if grouped else None))
    np.testing.assert_array_equal(run_here(job), job.expected)
