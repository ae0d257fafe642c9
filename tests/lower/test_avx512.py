"""The kernels of processors with AVX-512, as compiled, against the operators' NumPy references: on a PC that Bochs emulates.

Where this machine has AVX-512 itself, ``test_kernels`` runs them here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lower.bare_x86 import pc
from tests.lower.kernel_calls import Job, check, make_job
from tests.lower.test_assembly import AVX512, x86
from tests.lower.test_kernels import CASES, epilogue_jobs, more_cases
from xnorc import targets


@pytest.mark.slow
def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Bochs refuses gathers whose index register is 16 above their destination: it does not read the index's fifth bit.
    monkeypatch.setattr(targets, "get", lambda name: x86(*AVX512, "prefer-no-gather"))
    jobs: list[Job] = [make_job(f"k{i}", case, "x86") for i, case in enumerate([*CASES, *more_cases()])]
    jobs += epilogue_jobs("x86")
    for job, got in zip(jobs, pc.run(jobs, tmp_path), strict=True):
        check(job, got)
