"""Integer products with what follows them in their kernel: bits, floats of either layout, residuals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lower.kernel_calls import Job, bits_epilogue, check, float_job, make_job, run_emulated, run_here
from tests.opset.cases_integer import integer_conv_case, integer_gemm_case


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


def test_epilogues() -> None:
    for job in jobs("host"):
        check(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_epilogues_emulated(target: str, tmp_path) -> None:
    made = jobs(target)
    for job, got in zip(made, run_emulated(made, tmp_path), strict=True):
        check(job, got)
