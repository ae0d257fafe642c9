"""The cost model, the kernels that it chooses among for several planes, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lower.kernel_calls import (
    HOSTS,
    Job,
    bits_epilogue,
    check,
    float_job,
    make_job,
    run_emulated,
    run_here,
    with_copies,
)
from tests.opset.cases_levels import serial_conv_case, serial_gemm_case
from tests.passes.mini import RealNet
from xnorc import targets
from xnorc.cli import app
from xnorc.lower import costs
from xnorc.lower.kernels import decoded_product, plane_tables


def layer(x: int, w: int, pixels: int = 784) -> costs.Work:
    return costs.Work(x, w, 1152, 128, pixels)


@pytest.mark.parametrize("name", targets.NAMES)
def test_bits_for_few_planes_integers_for_many(name: str) -> None:
    target = targets.get(name)
    assert costs.choose(target, layer(1, 1)) in ("popcount", "table")
    assert costs.choose(target, layer(1, 1, pixels=1)) == "popcount"
    assert costs.choose(target, layer(2, 1)) == ("table" if costs.rates(target).table else "popcount")
    assert costs.choose(target, layer(2, 1, pixels=1)) == "popcount"
    assert costs.choose(target, layer(8, 8)) == "int8"
    order = [costs.choose(target, layer(n, m)) for n, m in ((1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))]
    assert order == sorted(order, key=lambda kernel: kernel == "int8"), "once integers win, they win for more planes"


def test_a_pi_5_multiplies_where_a_pi_4_counts() -> None:
    assert costs.choose(targets.get("rpi5"), layer(4, 4)) == "int8"
    assert costs.choose(targets.get("rpi4"), layer(4, 4)) == "popcount"


def job(draw, rng: np.random.Generator, number: int, target: str) -> Job:
    """A layer of random sizes, planes and epilogue."""
    n, m = draw(1, 4), draw(1, 4)
    bipolar = draw(0, 1)
    w_coeffs = [1 << i for i in range(m)]
    if not bipolar and draw(0, 1):
        w_coeffs[-1] = -w_coeffs[-1]
    given = {
        "x_coeffs": [1 << i for i in range(n)], "x_offset": draw(-2, 2), "w_coeffs": w_coeffs, "bipolar": bipolar,
        "out": draw(1, 40),
    }  # fmt: skip
    if draw(0, 1):
        case = serial_conv_case(
            rng,
            n=draw(1, 2),
            h=draw(3, 8),
            w=draw(3, 8),
            channels=draw(1, 40),
            strides=(draw(1, 2), draw(1, 2)),
            **given,
        )
    else:
        case = serial_gemm_case(rng, rows=(draw(1, 70),), k=draw(1, 300), **given)
    kind = draw(0, 2)
    if kind == 2:
        return float_job(f"k{number}", case, rng, target, channels_first=False)
    return make_job(f"k{number}", case, target, bits_epilogue(rng, given["out"], 500) if kind else None)


@pytest.fixture
def decode_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_product, "choose", lambda target, work: "int8")


@pytest.mark.usefixtures("decode_always")
@pytest.mark.parametrize("host", HOSTS)
def test_decoded_planes_give_the_same_sums(host: str) -> None:
    @given(data=st.data())
    @settings(max_examples=10, deadline=None)
    def run(data: st.DataObject) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        one = job(draw, np.random.default_rng(draw(0, 1000)), 0, host)
        check(one, run_here(one))

    run()


@pytest.mark.parametrize("wide", [False, True])
def test_tables_of_planes_give_the_same_sums(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    """Every number of planes and kind of coefficients; the largest sums of a byte lane."""
    if "avx2" not in targets.get("host").features:
        pytest.skip("lookups are for AVX2")
    monkeypatch.setattr(plane_tables, "_cheapest", lambda *given: True)

    @given(data=st.data())
    @settings(max_examples=6, deadline=None)
    def run(data: st.DataObject) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        rng = np.random.default_rng(draw(0, 1000))
        if not wide:
            one = job(draw, rng, 0, "host")
        else:
            n, m, bipolar = draw(1, 4), draw(1, 2), draw(0, 1)
            x_coeffs = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 8, -1, -2, -8]), min_size=n, max_size=n))
            case = serial_conv_case(
                rng, n=1, h=4, w=5, channels=draw(100, 300), out=draw(25, 100), x_coeffs=x_coeffs, x_offset=draw(-2, 2),
                w_coeffs=[1, 2][:m], bipolar=bipolar,
            )  # fmt: skip
            op, attrs, (x, w) = case
            tail = np.packbits(np.ones(attrs["channels"], np.uint8), bitorder="little")
            if draw(0, 1):
                x = np.broadcast_to(tail, x.shape).copy()
                w = np.broadcast_to(0 if bipolar and draw(0, 1) else tail, w.shape).astype(np.uint8)
            kind = draw(0, 2)
            case = (op, attrs, [x, w])
            if kind == 2:
                one = with_copies(rng, float_job("k0", case, rng, "host", channels_first=False), True)
            else:
                one = make_job("k0", case, "host", bits_epilogue(rng, w.shape[1], 500) if kind else None)
        check(one, run_here(one))

    run()


@pytest.mark.slow
@pytest.mark.usefixtures("decode_always")
@pytest.mark.parametrize("target", ["rpi4", "rpi5", "rpi2"])
def test_decoded_planes_on_arm(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    jobs: Sequence[Job] = [job(draw, rng, i, target) for i in range(6)]
    for one, got in zip(jobs, run_emulated(jobs, tmp_path), strict=True):
        check(one, got)


def test_explain_prints_costs(tmp_path: Path) -> None:
    net = RealNet((1, 32, 6, 6))
    path, found = tmp_path / "m.onnx", tmp_path / "m.json"
    path.write_bytes(net.model(net.conv(net.sign("x"), 32, 40, pads=[1] * 4)).SerializeToString())
    done = CliRunner().invoke(app, ["explain", str(path), "--costs", "rpi5", "--json", str(found)])
    assert done.exit_code == 0 and "chosen kernel with a star" in done.output, done.output
    (one,) = json.loads(found.read_text())["costs"]["layers"]
    assert one["macs"] == 32 * 9 * 40 * 36 and one["chosen"] == "popcount" and one["mcycles"]["table"] is None
    done = CliRunner().invoke(app, ["explain", str(path), "--costs", "rpi9"])
    assert done.exit_code == 2 and "unknown target 'rpi9'" in done.output
