"""What goes to the device: small, the same bytes every time, no heap, nothing but the C library underneath."""

from __future__ import annotations

from pathlib import Path

import pytest

import xnorc
from tests.util_elf import symbols

MODEL = Path(__file__).parent.parent.parent / "examples" / "mnist" / "model.onnx"

HEAP = {
    "malloc",
    "calloc",
    "realloc",
    "free",
    "aligned_alloc",
    "posix_memalign",
    "memalign",
    "_Znwm",
    "_Znam",
    "mmap",
    "sbrk",
}
ALLOWED_PREFIXES = ("pthread_", "__aeabi_", "sem_")
ALLOWED = {
    "memcpy", "memmove", "memset", "memcmp", "strlen", "clock_gettime", "__clock_gettime64",
    "nanosleep", "sched_yield", "sched_getaffinity", "syscall", "sysconf",
    "expf", "exp", "logf", "log", "log2f", "powf", "sqrtf", "tanhf", "erff", "sinf", "cosf", "fabsf", "floorf", "ceilf",
    "roundf", "rintf", "nearbyintf", "truncf", "fmaxf", "fminf", "fmodf", "fmaf",
    "_GLOBAL_OFFSET_TABLE_", "__tls_get_addr", "_DYNAMIC",
}  # fmt: skip


def archive_members(data: bytes) -> dict[str, bytes]:
    """Object files of a Unix archive (``ar``), GNU names."""
    assert data[:8] == b"!<arch>\n"
    place, members, names = 8, {}, b""
    while place < len(data):
        name, size = data[place : place + 16].decode().strip(), int(data[place + 48 : place + 58])
        body = data[place + 60 : place + 60 + size]
        if name == "//":
            names = body
        elif name not in ("/", "/SYM64/"):
            if name.startswith("/"):
                start = int(name[1:])
                name = names[start : names.index(b"\n", start)].decode()
            members[name.rstrip("/")] = body
        place += 60 + size + size % 2
    return members


@pytest.fixture(scope="module", params=["host", "rpi4", "rpi2"])
def package(request):
    return xnorc.compile(MODEL, request.param, name="mnist")


def test_library_needs_no_heap_and_only_the_c_library(package):
    members = archive_members(package.member("lib/libmnist.a"))
    assert {"model.o", "kernels.o", "xnorc.o", "threads.o", "tvm_backend.o"} == set(members)
    needed, defined = set(), set()
    for data in members.values():
        for name, here in symbols(data).items():
            (defined if here else needed).add(name)
    outside = needed - defined
    assert not outside & HEAP
    assert {name for name in outside if name not in ALLOWED and not name.startswith(ALLOWED_PREFIXES)} == set()


def test_library_exports_only_the_model_and_the_runtime(package):
    exported = {name for name, here in symbols(package.member("lib/libmnist.so"), dynamic=True).items() if here}
    assert {"mnist_model", "xnorc_run", "xnorc_serve"} <= exported
    assert not {name for name in exported if name.startswith("TVM")}


def test_device_payload_is_small(package):
    assert package.device_bytes() < 400_000
    assert len(package.member("lib/libmnist.so")) < 400_000


def test_compiling_twice_gives_the_same_bytes(package, tmp_path):
    paths = [tmp_path / "a.xnorc", tmp_path / "b.xnorc"]
    for path in paths:
        xnorc.compile(MODEL, package.target.name, name="mnist", output=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_arena_is_close_to_the_lower_bound(package):
    memory = package.manifest["memory"]
    assert memory["tensor_bytes"] <= 1.1 * memory["lower_bound_bytes"]
    assert memory["arena_bytes"] == memory["tensor_bytes"] + memory["max_threads"] * memory["workspace_bytes"]
