"""Packed copies: a kernel stores its numbers and, in the same pass, the bits or levels that the next layer reads."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import xnorc
from tests.lower.kernel_calls import Job, check, float_job, make_job, run_emulated, run_here, with_copies
from tests.opset.cases import Case, cases, conv_case, gemm_case
from tests.opset.cases_levels import serial_conv_case
from xnorc import golden
from xnorc.errors import UnsupportedError
from xnorc.lower.kernel import Epilogue, EpilogueStep, PackedCopy
from xnorc.opset import REGISTRY
from xnorc.package import Package

from .harness import run_emulated as model_emulated
from .harness import run_on_host

EVERYWHERE = ["host", "rpi2", pytest.param("rpi4", marks=pytest.mark.slow)]
"""Targets: what is tested on one emulated board by default is tested on both in the slow suite."""


def jobs_of(target: str) -> list[Job]:
    """Every anchor, on accumulators and on floats; odd numbers of channels; the floats kept or not."""
    rng = np.random.default_rng(21)
    anchors: dict[str, Case] = {case[0]: case for case in cases() if REGISTRY[case[0]].anchor}
    given = [
        *anchors.values(),
        conv_case(rng, channels=64, out=64, h=9, w=7),
        conv_case(rng, n=2, channels=24, out=13, h=5, w=5),
        conv_case(rng, channels=128, out=40, h=14, w=14),
        gemm_case(rng, rows=(1,), k=1024, out=70),
        gemm_case(rng, rows=(2, 3), k=40, out=10),
        serial_conv_case(rng, n=2, h=5, w=6, channels=40, out=33),
    ]
    jobs: list[Job] = []
    for i, case in enumerate(given):
        plain = [make_job(f"a{i}", case, target), float_job(f"f{i}", case, rng, target, False, residuals=1)]
        for j, job in enumerate(plain):
            jobs.append(with_copies(rng, job, kept=(i + j) % 2 == 0))
    return jobs


def test_copies_on_host() -> None:
    for job in jobs_of("host")[::4]:
        check(job, run_here(job))


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 2, 3])
def test_more_copies_on_host(start: int) -> None:
    for job in jobs_of("host")[start::4]:
        check(job, run_here(job))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
def test_copies_emulated(target: str, tmp_path: Path) -> None:
    jobs = jobs_of(target)
    for job, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        check(job, got)


@pytest.mark.parametrize("target", ["host", "rpi3", "rpi2"])
def test_random_copies(target: str) -> None:
    @given(data=st.data())
    @settings(max_examples=4 if target == "host" else 1, deadline=None)
    def run(data: st.DataObject) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        rng = np.random.default_rng(draw(0, 1000))
        jobs = []
        for i in range(1 if target == "host" else 4):
            case = conv_case(
                rng, n=draw(1, 2), h=draw(3, 9), w=draw(3, 9), channels=draw(1, 150), out=draw(1, 90),
                kernel=(draw(1, 3), draw(1, 3)), pads=tuple(draw(0, 2) for _ in range(4)), pad_value=draw(-1, 1),
            )  # fmt: skip
            plain = float_job(f"r{i}", case, rng, target, False, residuals=draw(0, 2))
            jobs.append(with_copies(rng, plain if draw(0, 3) else make_job(f"r{i}", case, target), bool(draw(0, 1))))
        if target == "host":
            check(jobs[0], run_here(jobs[0]))
            return
        with tempfile.TemporaryDirectory() as folder:
            for job, got in zip(jobs, run_emulated(jobs, Path(folder)), strict=True):
                check(job, got)

    run()


def test_edges_of_floats(tmp_path: Path) -> None:
    """Zeros of both signs, denormals and infinities as thresholds and values: outcomes as `Pack` has them everywhere."""
    rng = np.random.default_rng(2)
    case = gemm_case(rng, rows=(4,), k=64, out=24)
    shape = REGISTRY[case[0]].reference(case[2], case[1]).shape
    edges = np.array([0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, np.inf, -np.inf], np.float32)
    values = rng.choice(edges, shape).astype(np.float32)
    steps = (EpilogueStep("mul", np.full(24, 1e-45, np.float32)), EpilogueStep("mul", np.full(24, 1e-45, np.float32)))
    copies = (
        PackedCopy(np.resize(edges, 24)[None], np.zeros(24, np.uint8)),
        PackedCopy(np.full((1, 24), np.nan, np.float32), np.ones(24, np.uint8)),
    )
    epilogue = Epilogue("float", steps=(*steps, EpilogueStep("add", 0)), copies=copies)
    here = make_job("edges", case, "host", epilogue, [values])
    check(here, run_here(here))
    for target in ("rpi4", "rpi2"):
        there = make_job("edges", case, target, epilogue, [values])
        (tmp_path / target).mkdir()
        check(there, run_emulated([there], tmp_path / target)[0])


def half_jobs(target: str) -> list[Job]:
    """Residuals and sums as float16: ties, numbers below and above its range, denormals of it, and the bits beside them."""
    rng = np.random.default_rng(8)
    jobs = []
    for i, case in enumerate(
        (
            conv_case(rng, channels=64, out=32, h=6, w=6),
            conv_case(rng, channels=24, out=13, h=5, w=3),
            gemm_case(rng, rows=(5,), k=72, out=40),
            serial_conv_case(rng, n=1, h=5, w=4, channels=20, out=33),
        )
    ):
        shape = REGISTRY[case[0]].reference(case[2], case[1]).shape
        residual = np.exp2(rng.uniform(-26, 17, shape)) * rng.choice([-1, 1], shape)
        with np.errstate(over="ignore"):
            residual = np.where(rng.random(shape) < 0.3, rng.integers(0, 2049, shape) / 2.0**24, residual).astype(
                np.float16
            )
        scale = np.exp2(rng.integers(-26, 8, shape[-1])).astype(np.float32)
        steps = (EpilogueStep("mul", scale), EpilogueStep("add", 0))
        for half in (True, False):
            epilogue = Epilogue("float", steps=steps, half=half)
            job = make_job(f"h{i}{int(half)}", case, target, epilogue, [residual])
            jobs.append(with_copies(rng, job, True) if i % 2 else job)
    return jobs


@pytest.mark.parametrize("target", EVERYWHERE)
def test_halves(target: str, tmp_path: Path) -> None:
    jobs = half_jobs(target)
    found = [run_here(job) for job in jobs] if target == "host" else run_emulated(jobs, tmp_path)
    for job, got in zip(jobs, found, strict=True):
        check(job, got)


def test_no_copies_of_channels_first() -> None:
    rng = np.random.default_rng(0)
    case = conv_case(rng)
    job = with_copies(rng, float_job("k", case, rng, "host", False, residuals=0), True)
    epilogue = dataclasses.replace(job.call.epilogue, channels_first=True)
    with pytest.raises(UnsupportedError, match="channels last"):
        make_job("k", case, "host", epilogue, job.extra)


def network(levels: bool) -> onnx.ModelProto:
    """Three residual blocks; the last one's sum is read by its binary layer alone, and by it a second time unchanged."""
    rng = np.random.default_rng(5)
    constants: dict[str, np.ndarray] = {
        "low": np.float32(0), "high": np.float32(3), "one": np.float32(1), "minus": np.float32(-1),
        "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attrs: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], f"{output}_node", **attrs))
        return output

    def layer(x: str, name: str, channels: int) -> str:
        if levels:
            sign = add("Round", [add("Clip", [x, "low", "high"], f"{name}_clip")], f"{name}_sign")
        else:
            sign = add("Where", [add("GreaterOrEqual", [x, "low"], f"{name}_above"), "one", "minus"], f"{name}_sign")
        constants[f"{name}_w"] = rng.choice([-1, 1], (channels, channels, 3, 3)).astype(np.float32)
        constants[f"{name}_a"] = (rng.standard_normal((1, channels, 1, 1)) / 20).astype(np.float32)
        constants[f"{name}_s"] = rng.standard_normal((channels, 1, 1)).astype(np.float32)
        y = add("Conv", [sign, f"{name}_w"], f"{name}_conv", pads=[1, 1, 1, 1])
        return add("PRelu", [add("Mul", [y, f"{name}_a"], f"{name}_scaled"), f"{name}_s"], f"{name}_out")

    x = "x"
    for i in range(3):
        x = add("Add", [layer(x, f"b{i}", 20), x], f"sum{i}")
    x = layer(x, "last", 20)  # PRelu with slopes of both signs: no integer threshold, yet only a sign reads it
    x = layer(x, "end", 20)
    add("ReduceMean", [x, "axes"], "y", keepdims=0)
    graph = helper.make_graph(
        nodes, "copies", [helper.make_tensor_value_info("x", 1, [1, 20, 9, 11])],
        [helper.make_tensor_value_info("y", 1, [1, 20])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("levels", [False, True], ids=["signs", "levels"])
def test_blocks_pack_their_sums_in_one_pass(levels: bool) -> None:
    """Only the input is packed by a step of its own; what only signs read is not stored as floats."""
    package = xnorc.compile(network(levels), "host")
    ops = [step["op"] for step in package.manifest["steps"]]
    alone = [op for op in ops if op in ("Pack", "PackLevels")]
    assert len(alone) == 1 and sum(op.endswith(("+Pack", "+PackLevels")) for op in ops) == 4
    names = {package.manifest["tensors"][i]["name"] for step in package.manifest["steps"] for i in step["writes"]}
    assert {"sum0", "sum1"} <= names and not {"sum2", "last_out"} & names


@pytest.mark.parametrize("target", EVERYWHERE)
def test_blocks_on_device(target: str) -> None:
    run = run_on_host if target == "host" else partial(model_emulated, target=target)
    for levels in (False, True):
        model = network(levels)
        packed = xnorc.optimize(model).model
        feeds = {"x": (np.random.default_rng(1).standard_normal((1, 20, 9, 11)) * 3).astype(np.float32)}
        expected = golden.run(packed, feeds)
        for name, value in run(packed, feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4)  # a mean: sums in another order


def test_blocks_validate() -> None:
    package: Package = xnorc.compile(network(False), "host")
    assert package.validate("host").ok
