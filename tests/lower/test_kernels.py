"""Every kernel against its operator's NumPy reference, bit for bit: here, and on emulated 64- and 32-bit Arm."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lower.kernel_calls import (
    HOSTS,
    Job,
    bits_epilogue,
    check,
    describe,
    float_epilogue,
    float_job,
    make_job,
    operand_jobs,
    run_emulated,
    run_here,
)
from tests.opset.cases import Case, cases, conv_case, gemm_case, pack_case, pool_case, random_bits
from xnorc import targets
from xnorc.errors import UnsupportedError
from xnorc.lower.kernel import Epilogue, EpilogueStep
from xnorc.lower.kernels import micro, product, table_product
from xnorc.opset import REGISTRY, pack_bits

CASES = list(cases())


def pack_edges() -> Iterator[Case]:
    """Values next to the threshold, both zeros, denormals, infinities and NaN, in either direction of packing."""
    tiny = np.float32(1e-40)
    values = np.array([0.0, -0.0, tiny, -tiny, 2 * tiny, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 3.4e38], np.float32)
    limits = np.array([0.0, -0.0, tiny, -tiny, 1, -1, np.inf, -np.inf, 0.5, 3.4e38], np.float32)
    for strict in (0, 1):
        rows = np.repeat(values[:, None], len(limits), 1)
        flip = np.zeros(len(limits), np.uint8)
        yield "Pack", {"perm": [0, 1], "strict": strict}, [rows, limits, flip]
        yield "Pack", {"perm": [1, 0], "strict": strict}, [np.ascontiguousarray(rows.T), limits, flip]


def opposite(case: Case) -> Case:
    """The same with every sign of x +1 and every weight −1: the largest counts."""
    op, attrs, (x, w) = case
    bits = attrs["channels"] if op == "BinaryConv" else attrs["k"]
    ones = np.broadcast_to(pack_bits(np.ones(bits)), x.shape)
    return op, attrs, [np.ascontiguousarray(ones), np.zeros_like(w)]


def more_cases() -> list[Case]:
    """Shapes that make the kernels take their other paths: threads, several chunks, tails, odd strides."""
    rng = np.random.default_rng(5)
    return [
        conv_case(rng, channels=128, out=136, h=14, w=14, n=2),  # threads over pixels and channels
        conv_case(rng, channels=512, out=24, h=4, w=4),  # more steps than byte lanes hold
        conv_case(rng, channels=136, out=8, h=1, w=3, kernel=(1, 1), pads=(0, 0, 0, 0)),  # a half step, read in place
        conv_case(rng, channels=64, out=16, h=6, w=6, group=2, kernel=(3, 2), pads=(1, 0, 1, 1)),
        conv_case(rng, channels=24, out=48, h=5, w=5, group=3, pad_value=1),
        conv_case(rng, channels=48, out=12, h=5, w=5, group=4, pad_value=-1),  # 12 channels, groups not aligned
        conv_case(rng, channels=36, out=32, h=5, w=4, group=4),  # 9 channels a group: masks, whole blocks in a group
        conv_case(rng, channels=96, out=96, h=9, w=9, group=96, strides=(2, 2)),
        conv_case(rng, channels=8, out=8, h=1, w=1, kernel=(3, 3)),  # all but one tap is padding
        conv_case(rng, channels=11, out=3, h=33, w=2, kernel=(2, 5), pads=(0, 3, 1, 3), strides=(3, 2), pad_value=1),
        conv_case(rng, channels=1024, out=9, h=8, w=9, kernel=(1, 1), pads=(0, 0, 0, 0)),
        gemm_case(rng, rows=(1,), k=70000, out=9),  # counts past 16 bits
        gemm_case(rng, rows=(5,), k=65535, out=8),
        gemm_case(rng, rows=(2,), k=65534, out=8),
        opposite(conv_case(rng, channels=512, out=8, h=4, w=4)),
        opposite(conv_case(rng, channels=440, out=8, h=3, w=3)),
        opposite(conv_case(rng, channels=440, out=40, h=3, w=3)),  # tables: the largest counts of a byte lane
        opposite(gemm_case(rng, rows=(3,), k=65528, out=64)),
        gemm_case(rng, rows=(2,), k=3, out=33),
        gemm_case(rng, rows=(9,), k=248, out=96),  # three lookups, no two share a table
        *(opposite(gemm_case(rng, rows=(3,), k=k, out=8)) for k in (31 * 128, 32 * 128, 65534, 65535, 65600, 200000)),
        gemm_case(rng, rows=(1,), k=4096, out=1000),  # threads over channels
        gemm_case(rng, rows=(130,), k=200, out=24),
        gemm_case(rng, rows=(), k=200, out=24),
        pool_case(rng, h=31, w=31, channels=136, kernel=(5, 5), strides=(1, 1), pads=(2, 2, 2, 2)),  # a loop over taps
        pool_case(rng, h=3, w=3, channels=8, kernel=(3, 3), dilations=(2, 2), pads=(3, 3, 3, 3), strides=(1, 1)),
        pack_case(rng, shape=(1, 64, 60, 60)),  # one image, much of it
        pack_case(rng, shape=(2, 16, 1, 1)),
        pack_case(rng, shape=(3, 5, 17, 20), perm=(3, 0, 2, 1)),
        pack_case(rng, shape=(9, 4, 17), perm=(1, 2, 0), dtype="int32"),
        pack_case(rng, shape=(8,), perm=(0,)),
        *pack_edges(),
        ("Unpack", {"channels": 100, "perm": [3, 1, 0, 2]}, [random_bits(rng, 2, 17, 4, 100)]),
        ("Unpack", {"channels": 5, "perm": [0, 2, 1]}, [random_bits(rng, 2, 40, 5)]),
        ("Unpack", {"channels": 1, "perm": [0, 1]}, [random_bits(rng, 40, 1)]),
        ("Binarize", {"zero": 1}, [rng.integers(-2, 3, (3, 1111)).astype(np.float32)]),
    ]


def epilogue_jobs(target: str) -> list[Job]:
    """Bits and floats after convolutions and products, with odd channel counts, borders and residuals."""
    rng = np.random.default_rng(9)
    jobs: list[Job] = []

    def name() -> str:
        return f"e{len(jobs)}"

    for case, k in (
        (conv_case(rng, channels=64, out=64, h=14, w=14), 576),
        (conv_case(rng, channels=40, out=21, h=5, w=7), 360),
        (conv_case(rng, channels=16, out=3, h=4, w=4, pad_value=1), 144),
        (conv_case(rng, channels=32, out=16, group=4), 72),
        (conv_case(rng, channels=20, out=20, group=20), 9),
        (conv_case(rng, channels=136, out=136, group=136, h=5, w=7, kernel=(5, 3), strides=(2, 1), pad_value=-1), 15),
        (conv_case(rng, channels=64, out=64, group=64, n=2, h=9, w=9), 9),
        (gemm_case(rng, rows=(1,), k=1024, out=10), 1024),
        (gemm_case(rng, rows=(1,), k=712, out=88), 712),
        (gemm_case(rng, rows=(7,), k=120, out=33, holes=11), 120),
        (gemm_case(rng, rows=(3,), k=70000, out=9), 70000),
    ):
        out = case[2][1].shape[0]
        jobs.append(make_job(name(), case, target, bits_epilogue(rng, out, k)))
        plain = dataclasses.replace(bits_epilogue(rng, out, k), flip=np.zeros(out, np.uint8))
        jobs.append(make_job(name(), case, target, plain))
    for case in (
        conv_case(rng, channels=64, out=32, h=14, w=14),
        conv_case(rng, n=2, channels=24, out=13, h=5, w=5),
        conv_case(rng, n=2, channels=8, out=5, h=1, w=3, kernel=(1, 1), pads=(0, 0, 0, 0)),
        conv_case(rng, channels=16, out=12, group=4, h=3, w=3),
    ):
        jobs += [float_job(name(), case, rng, target, channels_first=False)]
        jobs += [float_job(name(), case, rng, target, channels_first=True)]
    jobs.append(float_job(name(), gemm_case(rng, rows=(6,), k=200, out=27), rng, target, False))
    jobs.append(float_job(name(), gemm_case(rng, rows=(2, 3, 2), k=40, out=10), rng, target, True, residuals=1))
    jobs.append(make_job(name(), gemm_case(rng), target, Epilogue("float")))
    tiny = np.full(17, 1e-39, np.float32)  # denormal: must not become zero
    steps = (EpilogueStep("mul", tiny), EpilogueStep("add", tiny))
    jobs.append(make_job(name(), gemm_case(rng), target, Epilogue("float", steps=steps)))
    for case in (
        conv_case(rng, n=2, channels=24, out=13, h=5, w=5),
        conv_case(rng, n=1, channels=8, out=16, h=4, w=8),
        gemm_case(rng, rows=(2, 3, 2), k=40, out=10),
    ):
        jobs += operand_jobs(name(), case, rng, target)
    return jobs


@pytest.mark.parametrize("case", CASES, ids=describe)
@pytest.mark.parametrize("host", HOSTS)
def test_case(case: Case, host: str) -> None:
    job = make_job("kernel", case, host)
    check(job, run_here(job))


@pytest.mark.parametrize("case", more_cases(), ids=describe)
@pytest.mark.parametrize("host", HOSTS)
def test_other_paths(case: Case, host: str) -> None:
    job = make_job("kernel", case, host)
    check(job, run_here(job))


@pytest.mark.parametrize("host", HOSTS)
def test_epilogues(host: str) -> None:
    for job in epilogue_jobs(host):
        check(job, run_here(job))


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_emulated(target: str, tmp_path) -> None:
    every = [*CASES, *more_cases()]
    jobs = [make_job(f"k{i}", case, target) for i, case in enumerate(every)] + epilogue_jobs(target)
    for job, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        check(job, got)


COUNTING = ("BinaryConv", "BinaryGemm", "BitSerialConv", "BitSerialGemm", "BinaryMatMul", "AndMatMul", "HammingTopK")


def test_emulated_cortex_a53(tmp_path) -> None:
    """The loop in assembly, at every number of pixels, steps and planes."""
    jobs: list[Job] = []
    for case in [c for c in (*CASES, *more_cases()) if c[0] in COUNTING][::3]:
        jobs.append(make_job(f"k{len(jobs)}", case, "rpi3"))
    rng = np.random.default_rng(3)
    for rows in (1, 2, 3, 5, 8, 9, 15, 16, 17):
        jobs.append(make_job(f"k{len(jobs)}", gemm_case(rng, rows=(rows,), k=128 * (rows % 3) + 128, out=16), "rpi3"))
    for job, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        check(job, got)


def test_wide_tiles_emulated(tmp_path) -> None:
    """Eight pixels in assembly on a core that starts out of order: every number of whole steps, with and without a half one."""
    rng = np.random.default_rng(6)
    jobs: list[Job] = []
    for k in (64, 128, 200, 256, 288, 448, 576, 1100):
        for rows in (3, 8, 21):
            case = gemm_case(rng, rows=(rows,), k=k, out=20)
            epilogue = bits_epilogue(rng, 20, k) if rows != 8 else None
            jobs.append(make_job(f"w{len(jobs)}", case, "rpi4", epilogue, choices={"wide": 1}))
    case = conv_case(rng, channels=32, out=32, h=9, w=10)
    jobs.append(make_job("conv", case, "rpi4", bits_epilogue(rng, 32, 288)))  # chosen without being asked for
    for job, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        assert job.call.knobs.values["wide"] == 1
        check(job, got)


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi2"])
@given(data=st.data())
@settings(max_examples=2, deadline=None)
def test_random_products_emulated(target: str, data: st.DataObject) -> None:
    """Random shapes and epilogues, several in one emulated program."""

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    jobs: list[Job] = []
    for i in range(6):
        rng = np.random.default_rng(draw(0, 1000))
        if i % 3:
            kernel = (draw(1, 3), draw(1, 3))
            case = conv_case(
                rng, n=draw(1, 2), h=draw(3, 12), w=draw(3, 12), channels=draw(1, 300), out=draw(1, 70), kernel=kernel,
                strides=(draw(1, 2), draw(1, 2)), pads=tuple(draw(0, 2) for _ in range(4)), pad_value=draw(-1, 1),
            )  # fmt: skip
            k = kernel[0] * kernel[1] * case[1]["channels"]
        else:
            k = draw(1, 3000)
            case = gemm_case(rng, rows=(draw(1, 20),), k=k, out=draw(1, 70), holes=draw(0, 20))
        out, kind = case[2][1].shape[0], draw(0, 3)
        if kind < 2:
            jobs.append(make_job(f"r{i}", case, target, bits_epilogue(rng, out, k) if kind else None))
        else:
            jobs.append(float_job(f"r{i}", case, rng, target, channels_first=kind == 2, residuals=1))
    with tempfile.TemporaryDirectory() as folder:
        for job, got in zip(jobs, run_emulated(jobs, Path(folder)), strict=True):
            check(job, got)


def test_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The micro-kernel of machines that no other is for."""
    monkeypatch.setattr(micro, "select", lambda target: micro.PORTABLE)
    for case in [c for c in (*CASES, *more_cases()) if c[0] in ("BinaryConv", "BinaryGemm")]:
        job = make_job("kernel", case)
        check(job, run_here(job))


@pytest.mark.parametrize(
    "which",
    [micro.AARCH64, micro.CORTEX_A53, micro.ARMV7, micro.AVX2, micro.AVX512, micro.PORTABLE],
    ids=lambda m: m.name,
)
def test_narrow_lanes_never_overflow(which: micro.Micro) -> None:
    """``longest`` steps of all-different bits still fit a lane of ``part``."""
    dtype, lanes = which.part
    in_a_lane = which.unit * micro.CHANNELS * 8 // lanes
    assert which.longest * in_a_lane <= np.iinfo(dtype).max


@pytest.mark.parametrize("name", targets.NAMES)
def test_select(name: str) -> None:
    target = targets.get(name)
    chosen = micro.select(target)
    names = {"aarch64": ("aarch64", "cortex-a53"), "arm": ("armv7",)}.get(target.arch, (chosen.name,))
    assert chosen.name in names and (chosen.name == "cortex-a53") == (target.llvm["mcpu"] == "cortex-a53")
    assert chosen.grain in (8, 16) and (chosen.half is None) == (chosen.grain == chosen.unit)


def test_rows_of_task_leaves_whole_tiles() -> None:
    for lanes in (1, 2, 4):
        for pixels in range(lanes, 400):
            for most in (4, 8, 16, 64):
                rows = product.rows_of_task(pixels, lanes, most)
                last = pixels % rows
                assert rows % lanes == 0 and (last == 0 or last >= lanes or pixels < rows), (pixels, lanes, most)


def test_weights_must_be_constant() -> None:
    rng = np.random.default_rng(0)
    for case in (conv_case(rng), gemm_case(rng), pool_case(rng), pack_case(rng)):
        with pytest.raises(UnsupportedError, match="must be a constant"):
            make_job("kernel", case, constants=())


def test_scratch_is_bounded() -> None:
    """No kernel asks a thread for more than a gathered block of rows and its classes."""
    from xnorc.lower import tir

    rng = np.random.default_rng(0)
    for channels in (64, 512):
        job = make_job("kernel", conv_case(rng, channels=channels, out=64, h=14, w=14), "rpi4")
        import tvm

        workspace = tir.build(tvm.IRModule({"kernel": job.kernel.func}), job.call.target).workspace["kernel"]
        assert workspace <= product.ROWS_BYTES + 4 * product.MOST_PIXELS + 1024


@pytest.mark.parametrize("host", HOSTS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_random_conv(host: str, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 1000))
    group = data.draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    kernel, dilations = (draw(1, 4), draw(1, 4)), (draw(1, 2), draw(1, 2))
    case = conv_case(
        rng, n=draw(1, 2), h=draw(7, 12), w=draw(7, 12), channels=group * draw(1, 40), out=group * draw(1, 20),
        kernel=kernel, strides=(draw(1, 3), draw(1, 3)), dilations=dilations, pads=tuple(draw(0, 3) for _ in range(4)),
        group=group, pad_value=draw(-1, 1),
    )  # fmt: skip
    out = case[2][1].shape[0]
    k = kernel[0] * kernel[1] * case[1]["channels"] // group
    kind = draw(0, 3)
    if kind < 2:
        job = make_job("kernel", case, host, epilogue=bits_epilogue(rng, out, k) if kind else None)
    else:
        job = float_job("kernel", case, rng, host, channels_first=kind == 2, residuals=1)
    check(job, run_here(job))


@pytest.mark.parametrize("host", HOSTS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_random_table_products(host: str, data: st.DataObject) -> None:
    """Convolutions wide enough for lookups: odd numbers of channels, pixels and bytes, every epilogue."""

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 1000))
    kernel = (draw(1, 3), draw(1, 3))
    case = conv_case(
        rng, n=draw(1, 2), h=draw(4, 11), w=draw(4, 11), channels=draw(1, 300), out=draw(25, 200), kernel=kernel,
        strides=(draw(1, 2), draw(1, 2)), pads=tuple(draw(0, 2) for _ in range(4)), pad_value=draw(-1, 1),
    )  # fmt: skip
    out, k = case[2][1].shape[0], kernel[0] * kernel[1] * case[1]["channels"]
    kind = draw(0, 3)
    if kind < 2:
        job = make_job("kernel", case, host, epilogue=bits_epilogue(rng, out, k) if kind else None)
    else:
        job = float_job("kernel", case, rng, host, channels_first=kind == 2, residuals=1)
    check(job, run_here(job))


@pytest.mark.parametrize("host", HOSTS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_random_depthwise(host: str, data: st.DataObject) -> None:
    """Counters across channels: every number of digits, borders, tails."""

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 1000))
    channels, kernel = draw(1, 300), (draw(1, 5), draw(1, 5))
    case = conv_case(
        rng, n=draw(1, 2), h=draw(5, 9), w=draw(5, 9), channels=channels, out=channels, group=channels, kernel=kernel,
        strides=(draw(1, 2), draw(1, 2)), pads=tuple(draw(0, 2) for _ in range(4)), pad_value=draw(-1, 1),
    )  # fmt: skip
    taps = kernel[0] * kernel[1]
    epilogue = dataclasses.replace(
        bits_epilogue(rng, channels, taps), threshold=rng.integers(-taps - 1, taps + 3, channels).astype(np.int32)
    )
    job = make_job("kernel", case, host, epilogue=epilogue)
    check(job, run_here(job))


def test_without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that counts byte by byte, where this machine would look up."""
    monkeypatch.setattr(table_product, "suits", lambda call, product: False)
    for case in [c for c in more_cases() if c[0] in ("BinaryConv", "BinaryGemm")][::3]:
        job = make_job("kernel", case, HOSTS[-1])
        check(job, run_here(job))


@pytest.mark.parametrize("host", HOSTS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_random_gemm(host: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    k, out = data.draw(st.integers(1, 1500)), data.draw(st.integers(1, 40))
    case = gemm_case(rng, rows=rows, k=k, out=out, holes=data.draw(st.integers(0, 20)))
    epilogue = [None, bits_epilogue(rng, out, k), float_epilogue(rng, out, 0, False)][data.draw(st.integers(0, 2))]
    job = make_job("kernel", case, host, epilogue=epilogue)
    check(job, run_here(job))


def test_registry_names_a_kernel_for_every_operator() -> None:
    assert {case[0] for case in CASES} == set(REGISTRY)
