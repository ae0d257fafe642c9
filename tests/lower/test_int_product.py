"""Integer products with what follows them in their kernel: bits, floats of either layout, residuals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lower.kernel_calls import HOSTS, Job, bits_epilogue, check, float_job, make_job, run_emulated, run_here
from tests.opset.cases_integer import integer_conv_case, integer_gemm_case
from tests.opset.cases_low_bit import ternary_case
from xnorc.lower.kernels import int_inner


def jobs(target: str) -> list[Job]:
    rng = np.random.default_rng(3)
    made: list[Job] = []
    for case in (
        integer_conv_case(rng, channels=24, out=21, h=9, w=5),
        integer_conv_case(rng, channels=16, out=16, group=4, h=3, w=3, dtype="uint8"),
        integer_gemm_case(rng, rows=(70,), k=100, out=24),
        integer_gemm_case(rng, rows=(3,), k=33, out=10, shift=4),
    ):
        out = case[2][1].shape[0]
        made.append(make_job(f"i{len(made)}", case, target, bits_epilogue(rng, out, 50000)))
        first = case[0].endswith("Conv")
        made.append(float_job(f"i{len(made)}", case, rng, target, channels_first=first))
    return made


def random_jobs(target: str, count: int, seed: int) -> list[Job]:
    """Random shapes; every second one with the largest sums that its inner loop may meet."""
    rng = np.random.default_rng(seed)
    made: list[Job] = []
    for number in range(count):
        dtype = "uint8" if number % 5 == 4 else "int8"
        if number % 2:
            rows = tuple(int(size) for size in rng.integers(1, 9, int(rng.integers(0, 3))))
            case = integer_gemm_case(
                rng, rows=rows, k=int(rng.integers(1, 90)), out=int(rng.integers(1, 40)), dtype=dtype
            )
        else:
            group = int(rng.choice([1, 1, 2, 5]))
            case = integer_conv_case(
                rng, n=int(rng.integers(1, 3)), h=int(rng.integers(3, 9)), w=int(rng.integers(3, 20)), group=group,
                channels=group * int(rng.integers(1, 13)), out=group * int(rng.integers(1, 12)), dtype=dtype,
                strides=rng.integers(1, 3, 2).tolist(), pads=rng.integers(0, 3, 4).tolist(),
                kernel=tuple(rng.integers(1, 4, 2).tolist()),
            )  # fmt: skip
        x, w = case[2]
        w = np.maximum(w, -127) if number % 3 else w
        if number % 4 == 3:
            x = np.full_like(x, np.iinfo(dtype).min or np.iinfo(dtype).max)
            w = np.full_like(w, -127 if number % 3 else -128)
        made.append(make_job(f"r{number}", (case[0], case[1], [x, w]), target))
    return made


@pytest.mark.parametrize("host", HOSTS)
def test_epilogues(host: str) -> None:
    for job in [*jobs(host), *random_jobs(host, 24, 1)]:
        check(job, run_here(job))


@pytest.mark.parametrize("host", HOSTS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_random_ternary_products(host: str, data: st.DataObject) -> None:
    """Rows from one to more than a tile, tails of channels and terms, the largest sums."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows, k, out = (data.draw(st.integers(1, most)) for most in (11, 400, 70))
    case = ternary_case(rng, rows=(rows,), k=k, out=out, extreme=data.draw(st.booleans()))
    job = make_job("kernel", case, host, bits_epilogue(rng, out, 128 * k) if data.draw(st.booleans()) else None)
    check(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2", "rpi5"])
def test_emulated(target: str, tmp_path) -> None:
    made = [*jobs(target), *random_jobs(target, 24, 2)]
    for job, got in zip(made, run_emulated(made, tmp_path), strict=True):
        check(job, got)


def test_inner_loops() -> None:
    """Which inner loop each core and operand gets."""
    rng = np.random.default_rng(0)
    case = integer_gemm_case(rng, dtype="int8")
    small, least = np.full((2, 3), -127, np.int8), np.full((2, 3), -128, np.int8)
    of_bytes = integer_gemm_case(rng, dtype="uint8")
    for target, of, weights, name in (
        ("rpi4", case, small, "smull"),
        ("rpi4", case, least, "wide"),  # two products of −128 and −128 do not fit 16 bits
        ("rpi4", of_bytes, small, "wide"),
        ("rpi2", case, small, "smull"),
        ("rpi5", case, least, "sdot"),
    ):
        assert int_inner.select(make_job("k", of, target).call, weights).name == name
