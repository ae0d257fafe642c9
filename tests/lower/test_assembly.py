"""The inner loops that LLVM makes of our kernels: vector counts and adds, no spills, nothing done bit by bit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.lower.kernel_calls import bits_epilogue, make_job
from tests.opset.cases import conv_case, gemm_case
from xnorc import targets
from xnorc.lower.kernels import cortex_a53
from xnorc.targets import Target

ARM64 = ("rpi4", "rpi5", "aarch64")


def assembly(target: str, channels: int, rows: int | None = None) -> list[str]:
    """Instructions and labels of a 3x3 convolution (or a product of ``rows``) with bits out, without directives."""
    import tvm

    from xnorc.lower import tir

    rng = np.random.default_rng(0)
    if rows is None:
        case = conv_case(rng, channels=channels, out=channels, h=14, w=14)
    else:
        case = gemm_case(rng, rows=(rows,), k=channels, out=channels)
    job = make_job("kernel", case, target, bits_epilogue(rng, channels, 9 * channels))
    text = tir.assembly(tvm.IRModule({"kernel": job.kernel.func}), job.call.target)
    # TVM adds conversions of float16 to every module, in a section of their own.
    text = text.split(".text.tvm.fp16.conv")[0]
    lines = [line.strip() for line in text.splitlines()]
    jumps = {line.split()[-1] + ":" for line in lines if re.match(r"[bj]\S*\s", line)}
    return [line for line in lines if line and (line in jumps or not line.startswith((".", "@", "//")))]


LABEL = re.compile(r"(\.L(?:BB|tmp)\w+):")
"""A block's, and one in assembly of our own."""


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """Runs of instructions from a label to a branch back to it, with no label in between."""
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        if found := LABEL.match(line):
            labels[found[1]] = i
        elif (found := re.match(r"[bj]\S*\s+(\.L(?:BB|tmp)\w+)$", line)) and found[1] in labels:
            body = lines[labels[found[1]] + 1 : i + 1]
            if not any(LABEL.match(inner) for inner in body):
                loops.append(body)
    return loops


def operations(lines: list[str]) -> dict[str, int]:
    """How often each instruction occurs, width suffixes left out."""
    found: dict[str, int] = {}
    for line in lines:
        name = line.split()[0].split(".")[0]
        found[name] = found.get(name, 0) + 1
    return found


def counting_loop(lines: list[str], count: str) -> list[str]:
    loops = [loop for loop in innermost_loops(lines) if count in operations(loop)]
    assert len(loops) == 1, f"{len(loops)} inner loops count bits"
    return loops[0]


def check_no_scalar_counting(lines: list[str]) -> None:
    text = "\n".join(lines).lower()
    assert "popcount" not in text and "uaddlv" not in text
    for constant in ("0x55555555", "1431655765", "#21845", "0x33333333", "858993459"):  # the scalar bit trick
        assert constant not in text
    calls = {line.split()[1] for line in lines if re.match(r"(bl|blx|blr)\s", line)}
    ours = {"TVMBackendParallelLaunch", "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace", "xnorc_tasks"}
    assert calls <= ours | {"TVMFFIEnvModRegisterSystemLibSymbol"}, calls


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("target", ARM64)
def test_arm64(target: str, channels: int) -> None:
    lines = assembly(target, channels)
    check_no_scalar_counting(lines)
    loop = counting_loop(lines, "cnt")
    ops = operations(loop)
    steps = ops["cnt"] // 32  # LLVM may unroll
    assert ops["cnt"] == ops["eor"] == 32 * steps
    assert ops["addp"] == 28 * steps and ops["uadalp"] == 4 * steps
    assert all(".16b" in line or ".8h" in line for line in loop if line.split()[0] in ("cnt", "eor", "addp", "uadalp"))
    assert len(loop) <= 112 * steps, f"{len(loop)} instructions for {steps} x 4096 bit products"
    assert not any("[sp" in line for line in loop), "the accumulators do not fit the registers"
    assert not set(ops) & {"fmov", "umov", "ins", "dup", "mov", "addv"}, "values leave the vector registers"


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("target", ["rpi3", "rpi-zero2w"])
def test_cortex_a53(target: str, channels: int) -> None:
    """The loop is what was written: 8 pixels, nothing on the stack, four registers of weights at a time."""
    lines = assembly(target, channels)
    check_no_scalar_counting(lines)
    loops = [loop for loop in innermost_loops(lines) if "cnt" in operations(loop)]
    assert len(loops) == 1
    ops = operations(loops[0])
    assert ops["cnt"] == ops["eor"] == 64 and ops["addp"] == 56 and ops["uadalp"] == 8
    assert ops["ld1"] == 2 and ops["ldr"] == 8
    assert len(loops[0]) == 192 + 10 + 4, "8192 bit products"
    assert not any("[sp" in line for line in loops[0])


@pytest.mark.parametrize("target", ["rpi4", "rpi3"])
def test_one_row(target: str) -> None:
    """A pixel alone against four blocks of channels: all in registers."""
    loops = [loop for loop in innermost_loops(assembly(target, 1024, rows=1)) if "uadalp" in operations(loop)]
    ops = operations(max(loops, key=len))
    assert ops["cnt"] == ops["eor"] == 32 and ops["addp"] == 28 and ops["uadalp"] == 4
    assert ops["ld1"] == 8 and sum(ops.values()) == 4 * 24 + 8 + 8 + 3
    assert not any("[sp" in line for loop in loops for line in loop)


def test_the_schedule_of_cortex_a53_never_waits() -> None:
    """One vector instruction a cycle, each result before it is read, each register until then."""
    pattern, reads = cortex_a53.PATTERN, cortex_a53.sources()
    period = cortex_a53.PERIOD
    assert pattern.keys() == reads.keys() and len(pattern) == period
    assert {moment % period for moment in pattern.values()} == set(range(period))
    for name, used in reads.items():
        assert all(pattern[name] - pattern[read] >= cortex_a53.LATENCY for read in used), name
    where = cortex_a53.registers()
    held = [(where[name], m % period) for name, reader in cortex_a53.readers().items()
            for m in range(pattern[name], pattern[reader])]  # fmt: skip
    assert len(held) == len(set(held)), "a register is written before it is read"
    last = {half: max(pattern[f"eor{c}"] for c in range(4 * half, 4 * half + 4)) for half in (0, 1)}
    first = {half: min(pattern[f"eor{c}"] for c in range(4 * half, 4 * half + 4)) for half in (0, 1)}
    assert last[0] <= cortex_a53.FIRST_WEIGHTS <= first[0] + period - cortex_a53.LATENCY - 1
    assert last[1] <= cortex_a53.LAST_WEIGHTS <= first[1] + period - cortex_a53.LATENCY - 1
    assert max(last.values()) <= cortex_a53.ROW < period
    everything = [cortex_a53.TOTALS, cortex_a53.WEIGHTS, cortex_a53.ROWS, cortex_a53.POOL]
    assert sorted(register for some in everything for register in some) == sorted(f"v{i}" for i in range(32))


@pytest.mark.parametrize("channels", [64, 128])
def test_arm32(channels: int) -> None:
    lines = assembly("rpi2", channels)
    check_no_scalar_counting(lines)
    loop = counting_loop(lines, "vcnt")
    ops = operations(loop)
    assert ops["vcnt"] == ops["veor"] == ops["vadd"] == 16
    assert ops["vpadd"] == 14 and ops["vaddw"] == 2
    assert ops["vld1"] == 6 and len(loop) == 72, f"{len(loop)} instructions for 2048 bit products"
    assert not any("sp" in line or line.startswith("vst") for line in loop), "spilled"


def test_half_steps_of_arm32_stay_in_registers() -> None:
    """What follows the loop: no sums go over the stack but those that the loop hands over."""
    lines = assembly("rpi2", 64)
    end = next(i for i in range(len(lines) - 1, 0, -1) if "vcnt" in lines[i])
    start = next(i for i in range(end, 0, -1) if lines[i].startswith("bne"))
    assert not any("[sp" in line and "vst" in line for line in lines[start:end])


def x86(*features: str) -> Target:
    """A processor of x86-64 with these features, whatever machine this is."""
    llvm = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "mattr": [f"+{f}" for f in features]}
    return Target("x86", "", "x86_64", llvm, "", "", "max", 32, frozenset(features))


@pytest.mark.parametrize("channels", [64, 128])
def test_avx2_looks_counts_up(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """Two lookups and two additions for 8 bits of 32 channels and a pixel, all in registers."""
    monkeypatch.setattr(targets, "get", lambda name: x86("avx2", "fma"))
    loops = [loop for loop in innermost_loops(assembly("x86", channels)) if "vpshufb" in operations(loop)]
    assert loops  # the first bytes, those that add to what there is, what remains
    for loop in loops:
        ops = operations(loop)
        steps = ops["vpshufb"] // 16
        assert ops["vpshufb"] == ops["vpaddb"] == 16 * steps and ops["vbroadcasti128"] == 8 * steps
        assert len(loop) <= 64 * steps, f"{len(loop)} instructions for {steps} x 2048 bit products"
        assert not any("ymm" in line and line.endswith("(%rsp)") for line in loop), "the sums do not fit the registers"


AVX512 = ("avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512vpopcntdq", "avx512vnni")
"""Features of processors that count the bits of words and multiply bytes."""


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_avx512_counts_words(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """Three instructions for 512 products, all in registers of 64 bytes. ``test_avx512`` runs it."""
    monkeypatch.setattr(targets, "get", lambda name: x86(*AVX512))
    loops = [loop for loop in innermost_loops(assembly("x86", channels)) if "vpopcntq" in operations(loop)]
    assert loops
    for loop in loops:
        ops = operations(loop)
        assert ops["vpxorq"] == ops["vpopcntq"] >= ops["vpaddq"] > 0 and "vpshufb" not in ops
        assert all("zmm" in line for line in loop if line.startswith(("vpxorq", "vpopcntq", "vpaddq")))
        assert not any("zmm" in line and line.endswith("(%rsp)") and line.startswith("vmov") for line in loop), (
            "spilled"
        )


def test_no_multiply_add_in_floats() -> None:
    """Each float step rounds by itself: LLVM must not make one instruction of a multiplication and an addition."""
    import tvm

    from tests.lower.kernel_calls import float_job
    from xnorc.lower import tir

    rng = np.random.default_rng(0)
    for target in ("host", "rpi4", "rpi2"):
        job = float_job("kernel", gemm_case(rng, rows=(8,), k=64, out=64), rng, target, channels_first=False)
        text = tir.assembly(tvm.IRModule({"kernel": job.kernel.func}), job.call.target)
        assert re.search(r"\bv?f?mul(\.f32|ps|\s)", text), "the multiplications are not where they were looked for"
        assert not re.search(r"\b(vfn?m(add|sub|a|s)\w*|fn?m(add|sub|la|ls))(\s|\.)", text), target
