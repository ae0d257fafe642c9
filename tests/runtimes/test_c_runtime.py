"""The C runtime by itself, through the runner of a model written by hand."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from xnorc.runtimes.qemu import find_qemu

from .. import util_elf
from . import fake

HEADER = struct.Struct("<4sIIIQQ")
MODES = {"run": (0, 4000, 8000), "trace": (1, 4000, 12000), "layers": (2, 12000, 12000), "bench": (3, 4000, 24)}
HEAP = {"malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign", "memalign", "strdup", "mmap", "sbrk"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / "runner"
    path.write_bytes(fake.runner("host"))
    path.chmod(0o700)
    return path


def request(verb: str, x: np.ndarray, of: int = 1, **changes: object) -> bytes:
    number, record, _ = MODES[verb]
    fields = {"magic": b"XNRQ", "version": 1, "mode": number, "threads": of, "count": len(x), "record": record}
    return HEADER.pack(*(fields | changes).values()) + x.tobytes()


def call(program: Path, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *arguments], input=data, capture_output=True, timeout=60)


def answer(done: subprocess.CompletedProcess[bytes], mode: str, count: int) -> bytes:
    assert done.returncode == 0 and done.stderr == b""
    magic, version, number, _, records, size = HEADER.unpack_from(done.stdout)
    assert (magic, version, number, records, size) == (b"XNRS", 1, MODES[mode][0], count, MODES[mode][2])
    assert done.stdout[-12:] == b"XNRE" + struct.pack("<Q", count)
    body = done.stdout[HEADER.size : -12]
    assert len(body) == count * size
    return body


@pytest.mark.parametrize("target", ["host", "aarch64", "rpi2"])
@pytest.mark.parametrize("flag", ["-DXNORC_RUNNER", "-DXNORC_NO_THREADS_SUPPORT"])
def test_compiles_without_warnings_and_without_heap(tmp_path: Path, target: str, flag: str) -> None:
    triple = fake.targets.get(target).static_triple
    for name in (*fake.SOURCES, "runner.c"):
        path = tmp_path / f"{name}.o"
        fake.cc("-target", triple, *fake.WARNINGS, flag, "-c", fake.RUNTIME / name, "-o", path)
        needed = util_elf.undefined(path.read_bytes())
        assert not needed & HEAP
        assert flag != "-DXNORC_NO_THREADS_SUPPORT" or not any(symbol.startswith("pthread") for symbol in needed)


def test_backend_functions_stay_inside_the_library() -> None:
    exported = util_elf.symbols(fake.library(), dynamic=True)
    assert exported["fake_model"] and exported["xnorc_run"] and exported["xnorc_serve"]
    assert not any(name.startswith("TVM") for name in exported)


def test_info_is_one_line_of_json(program: Path) -> None:
    done = call(program, "info")
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1
    info = json.loads(done.stdout)
    assert info["name"] == "fake" and info["steps"] == 3 and info["max_threads"] == 4
    assert info["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 1000]}]
    assert info["outputs"][1]["dtype"] == "int32"


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_run(program: Path, threads: int) -> None:
    x = fake.inputs(50)
    body = answer(call(program, "run", "--threads", str(threads), data=request("run", x, threads)), "run", 50)
    rows = np.frombuffer(body, np.float32).reshape(50, 2, 1000)
    np.testing.assert_array_equal(rows[:, 0], x[:, 0] * 2 + 1)
    np.testing.assert_array_equal(rows[:, 1].view(np.int32), (x[:, 0] * 2 + 1).astype(np.int32))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_launch_is_cut_into_shares_for_the_threads_that_were_asked_for(program: Path, threads: int) -> None:
    done = call(program, "trace", "--threads", str(threads), data=request("trace", fake.inputs(1, fake.TEAM), threads))
    assert np.frombuffer(answer(done, "trace", 1), np.float32)[1] == (1 if threads == 1 else 32 * threads)


@pytest.mark.parametrize("target", ["host", "aarch64", "rpi2"])
def test_every_iteration_of_a_loop_runs_once(tmp_path: Path, target: str) -> None:
    path = tmp_path / "launches"
    kind = fake.targets.get(target)
    sources = [
        Path(__file__).with_name("launches.c"),
        *(fake.RUNTIME / name for name in ("threads.c", "tvm_backend.c")),
    ]
    fake.cc("-target", kind.static_triple, "-static", *fake.WARNINGS, *sources, "-o", path)
    emulator = [] if target == "host" else [find_qemu(kind.arch)]
    done = subprocess.run([*emulator, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "every iteration once\n")


def test_trace_layers_bench(program: Path) -> None:
    x = fake.inputs(3)
    y = x * 2 + 1
    trace = np.frombuffer(answer(call(program, "trace", data=request("trace", x)), "trace", 3), np.float32)
    trace = trace.reshape(3, 3, 1000)
    np.testing.assert_array_equal(trace[:, :2], np.concatenate([2 * x, y], axis=1))
    # Each step runs on what is given to it, not on what the step before made.
    reads = np.concatenate([x, x + 1, x + 2], axis=1)
    layers = np.frombuffer(answer(call(program, "layers", data=request("layers", reads)), "layers", 3), np.float32)
    layers = layers.reshape(3, 3, 1000)
    np.testing.assert_array_equal(layers[:, :2], np.concatenate([2 * x, x + 2], axis=1))
    np.testing.assert_array_equal(layers[:, 2].view(np.int32), (x[:, 0] + 2).astype(np.int32))
    times = np.frombuffer(answer(call(program, "bench", data=request("bench", x)), "bench", 3), np.uint64)
    assert (times.reshape(3, 3) > 0).all()


@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        (fake.FAIL, b"a kernel failed"),
        (fake.BAD_BARRIER, b"a kernel failed"),
        (fake.TOO_MUCH, b"more scratch memory than was planned"),
        (fake.WORKER_TOO_MUCH, b"more scratch memory than was planned"),
    ],
)
def test_a_failing_kernel_ends_the_run_with_one_line(program: Path, threads: str, trouble: int, text: bytes) -> None:
    x = np.concatenate([fake.inputs(2), fake.inputs(1, trouble)])
    done = call(program, "run", "--threads", threads, data=request("run", x, int(threads)))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"runner: input 3 of 3: ") and text in done.stderr
    assert len(done.stdout) >= HEADER.size + 2 * 8000, "finished records are sent before the failure"
    assert b"XNRE" not in done.stdout[-12:]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "usage"),
        (["walk"], "usage"),
        (["run", "--threads"], "usage"),
        (["run", "--threads", "0"], "between 1 and 4"),
        (["run", "--threads", "5"], "between 1 and 4"),
        (["run", "--threads", "99999999999999"], "between 1 and 4"),
        (["run", "--threads", "2x"], "between 1 and 4"),
        (["info", "more"], "usage"),
    ],
)
def test_bad_command_lines(program: Path, arguments: list[str], text: str) -> None:
    done = call(program, *arguments)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and text in done.stderr.decode()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"magic": b"XNRS"}, "bad magic"),
        ({"version": 2}, "protocol version"),
        ({"mode": 1}, "another mode"),
        ({"threads": 2}, "--threads"),
        ({"record": 4001}, "records of 4001 bytes, the model needs 4000"),
        ({"count": 3}, "input 3 of 3: the input ended"),
        ({"count": 2**64 - 1}, "the input ended"),
    ],
)
def test_bad_requests(program: Path, changes: dict[str, object], text: str) -> None:
    done = call(program, "run", data=request("run", fake.inputs(2), **changes))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and text in done.stderr.decode()


def test_empty_input_and_no_records(program: Path) -> None:
    assert call(program, "run").returncode == 2
    assert answer(call(program, "run", data=request("run", fake.inputs(0))), "run", 0) == b""


def test_without_thread_support(tmp_path: Path) -> None:
    path = tmp_path / "runner"
    path.write_bytes(fake.runner("host", "-DXNORC_NO_THREADS_SUPPORT"))
    path.chmod(0o700)
    x = fake.inputs(2)
    rows = np.frombuffer(answer(call(path, "run", data=request("run", x)), "run", 2), np.float32).reshape(2, 2, 1000)
    np.testing.assert_array_equal(rows[:, 0], x[:, 0] * 2 + 1)
    np.testing.assert_array_equal(rows[:, 1].view(np.int32), (x[:, 0] * 2 + 1).astype(np.int32))
    done = call(path, "run", "--threads", "2", data=request("run", x, 2))
    assert done.returncode == 2 and b"threads could not be started" in done.stderr


def test_run_checks_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "libfake.so"
    path.write_bytes(fake.library())
    library = ctypes.CDLL(str(path))
    library.fake_model.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.fake_model())
    memory = np.zeros(40000, np.uint8)
    arena = memory.ctypes.data + -memory.ctypes.data % 64
    x, y, z = (np.zeros(1024, np.uint8).repeat(8) for _ in range(3))
    places = [array.ctypes.data + -array.ctypes.data % 16 for array in (x, y, z)]

    def run(model=model, arena=arena, size=36288, source=places[0], target=places[2]) -> int:
        inputs, outputs = (ctypes.c_void_p * 1)(source), (ctypes.c_void_p * 2)(places[1], target)
        return library.xnorc_run(model, ctypes.c_void_p(arena), ctypes.c_size_t(size), inputs, outputs)

    assert run() == 0
    assert run(model=None) == run(arena=0) == run(arena=arena + 16) == run(size=36287) == 1
    assert run(source=0) == run(source=places[0] + 4) == run(target=0) == run(target=places[2] + 8) == 1
    assert library.xnorc_set_threads(0) == library.xnorc_set_threads(100) == 1
    library.xnorc_status_text.restype = ctypes.c_char_p
    assert len({library.xnorc_status_text(status) for status in range(6)}) == 6


def test_served_inputs_may_lie_anywhere_and_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "libfake.so"
    path.write_bytes(fake.library())
    library = ctypes.CDLL(str(path))
    library.fake_model.restype = library.xnorc_scratch_bytes.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.fake_model())
    scratch = np.zeros(library.xnorc_scratch_bytes(model) + 64, np.uint8)
    place = ctypes.c_void_p(scratch.ctypes.data + -scratch.ctypes.data % 64)
    x = fake.inputs(2).reshape(-1)
    for shift in (0, 4, 16):  # aligned for kernels, not aligned, and again
        memory = np.zeros(8100, np.uint8)
        start = -memory.ctypes.data % 16 + shift
        memory[start : start + 8000] = x.view(np.uint8)
        made = np.zeros(4000, np.float32)
        request, response = (ctypes.c_void_p(address) for address in (memory.ctypes.data + start, made.ctypes.data))
        assert library.xnorc_serve(model, 0, request, response, ctypes.c_uint64(2), place) == 0
        np.testing.assert_array_equal(made.reshape(2, 2, 1000)[:, 0].reshape(-1), x * 2 + 1)
        np.testing.assert_array_equal(memory[start : start + 8000], x.view(np.uint8))


def test_many_resizes_of_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "libfake.so"
    path.write_bytes(fake.library())
    library = ctypes.CDLL(str(path))
    for threads in [4, 2, 3, 1, 4, 4, 1] * 30:
        assert library.xnorc_set_threads(threads) == 0
    assert len(list(Path("/proc/self/task").iterdir())) >= 1
