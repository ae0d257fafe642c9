"""The products of run-time bits with every epilogue: here, and on emulated Pis."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lower.kernel_calls import Job, bits_epilogue, check, float_job, make_job, run_emulated, run_here
from tests.opset.cases_products import pair_case
from xnorc.errors import UnsupportedError
from xnorc.lower.kernels import micro


def jobs(target: str) -> list[Job]:
    rng = np.random.default_rng(3)
    found: list[Job] = []
    for op in ("BinaryMatMul", "AndMatMul"):
        for lead, m, n, k in (((2,), 9, 21, 100), ((1, 2), 33, 64, 64), ((), 1, 5, 300), ((2, 3), 6, 9, 40)):
            case = pair_case(rng, op, lead, m, n, k)
            known = {"constants": ()}
            found.append(make_job(f"k{len(found)}", case, target, bits_epilogue(rng, n, k), **known))
            found.append(float_job(f"k{len(found)}", case, rng, target, False, residuals=1))
            if len(lead) == 2:
                found.append(float_job(f"k{len(found)}", case, rng, target, True, residuals=1))
    return found


def test_epilogues() -> None:
    for job in jobs("host"):
        check(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_epilogues_emulated(target: str, tmp_path) -> None:
    made = jobs(target)
    for job, got in zip(made, run_emulated(made, tmp_path), strict=True):
        check(job, got)


def test_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "select", lambda target: micro.PORTABLE)
    for job in jobs("host"):
        check(job, run_here(job))


def test_transposed_result_needs_four_axes() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UnsupportedError, match="four axes"):
        float_job("k", pair_case(rng, "AndMatMul", (2,), 4, 4, 8), rng, "host", True)
