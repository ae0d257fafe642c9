"""What can go wrong on the command line: one line on stderr that says what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from .runtimes.small import build
from .test_cli import TEXT, good, xnorc

DYNAMIC = TEXT.replace("float[1, 4] x", "float[N, 4] x").replace("float[1, 3] y", "float[N, 3] y")
NO_LOWERING = """<ir_version: 10, opset_import: ["": 18]>
net (float[2, 2] x) => (float y) { [volume] y = Det(x) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    onnx.save(onnx.parser.parse_model(TEXT), folder / "net.onnx")
    good("compile", folder / "net.onnx", "-o", folder / "net.xnorc")
    return folder / "net.xnorc"


def bad_inputs(folder: Path, package: Path) -> dict[str, tuple[list[object], str]]:
    """Name of the case → the command and a word of its message."""
    model = folder / "net.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), model)
    (folder / "noise.onnx").write_bytes(b"\xff" * 99)
    (folder / "noise.xnorc").write_bytes(b"\xff" * 99)
    models = bad_models(folder)
    flipped = bytearray(package.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flip.xnorc").write_bytes(flipped)
    (folder / "cut.xnorc").write_bytes(package.read_bytes()[:5000])
    (folder / "noise.npz").write_bytes(b"hello")
    (folder / "x.json").write_text("{")
    np.savez(folder / "wrong.npz", x=np.zeros((1, 5), np.float32))
    np.savez(folder / "double.npz", x=np.zeros((1, 4)))
    np.savez(folder / "other.npz", z=np.zeros((1, 4), np.float32))
    np.savez(folder / "pickle.npz", x=np.array([{}], dtype=object))
    out = folder / "out"
    return {
        "no such verb": (["fly"], "No such command 'fly'"),
        "no argument": (["compile"], "Missing argument"),
        "no output": (["optimize", model], "Missing option"),
        "unknown option": (["compile", model, "--fast"], "No such option"),
        "no such file": (["explain", folder / "none.onnx"], "none.onnx: no such file"),
        "a folder": (["explain", folder], "directory"),
        "not ONNX": (["compile", folder / "noise.onnx", "-o", out], "not an ONNX model"),
        "no such target": (["compile", model, "--target", "rpi44", "-o", out], "did you mean rpi4"),
        "shape is no shape": (["compile", model, "--shape", "x=a", "-o", out], "not of the form"),
        "shape of nothing": (["compile", model, "--shape", "q=1", "-o", out], "'q'"),
        "sign of zero": (["compile", model, "--sign-zero=3", "-o", out], "sign-zero"),
        "name is no identifier": (["compile", model, "--name", "a b", "-o", out], "C identifier"),
        "golden data": (["compile", model, "--golden", folder / "wrong.npz", "-o", out], "[1, 5]"),
        "output folder": (["compile", model, "-o", folder / "none" / "x"], "there is no folder"),
        "output is a folder": (["compile", model, "-o", folder], "it is a folder"),
        "not a package": (["report", folder / "noise.xnorc", "-o", out], "not an xnorc package"),
        "truncated package": (["run", folder / "cut.xnorc", "--input", folder / "wrong.npz", "-o", out], "cut short"),
        "not arrays": (["run", package, "--input", folder / "noise.npz", "-o", out], "neither"),
        "wrong shape": (["run", package, "--input", folder / "wrong.npz", "-o", out], "[1, 5]"),
        "wrong dtype": (["run", package, "--input", folder / "double.npz", "-o", out], "float64"),
        "wrong name": (["run", package, "--input", folder / "other.npz", "-o", out], "no input 'z'"),
        "a pickle": (["run", package, "--input", folder / "pickle.npz", "-o", out], "pickle"),
        "no such device": (["run", package, "--device", "moon", "--input", folder / "wrong.npz", "-o", out], "moon"),
        "too many threads": (["run", package, "--threads", 99, "--input", folder / "wrong.npz", "-o", out], "threads"),
        "validation data": (["validate", package, "--data", folder / "other.npz"], "'z'"),
        "validation device": (["validate", package, "--device", "ssh://"], "ssh://"),
        "not a validation": (["report", package, "-o", out, "--validation", folder / "x.json"], "not JSON"),
        "factory": (["export", "nothing", "--input", "1,4", "-o", out], "does not name a factory"),
        "factory module": (["export", "no_such_module:make", "--input", "1", "-o", out], "cannot import"),
        "export shape": (["export", "torch.nn:ReLU", "--input", "1,x", "-o", out], "not a shape"),
        "weights": (["export", "torch.nn:ReLU", "--input", "1", "--weights", folder / "no.pt", "-o", out], "no.pt"),
        "flipped byte": (["run", folder / "flip.xnorc", "--input", folder / "wrong.npz", "-o", out], "is damaged"),
        **{name: (["compile", folder / f"{name}.onnx", "-o", out], words) for name, words in models.items()},
    }


def bad_models(folder: Path) -> dict[str, str]:
    """Writes models that cannot be compiled. Name of the file and the case → a word of the message."""

    def parsed(change: tuple[str, str] = ("", "")) -> onnx.ModelProto:
        return onnx.parser.parse_model(TEXT.replace(*change))

    def outside(location: str) -> onnx.ModelProto:
        made = parsed()
        tensor = made.graph.initializer[0]
        tensor.CopyFrom(onnx.TensorProto(name="w", dims=[4, 3], data_type=1, data_location="EXTERNAL"))
        tensor.external_data.add(key="location", value=location)
        return made

    new, old = parsed(), parsed()
    new.opset_import[0].version, old.opset_import[0].version = 99, 5
    zero = build(w2=np.where(np.arange(16)[:, None, None, None] == 3, 0, np.ones((16, 8, 3, 3))).astype(np.float32))
    for value in ("nan", "inf"):
        broken = parsed()
        broken.graph.initializer[0].float_data[4] = float(value)
        onnx.save(broken, folder / f"{value}.onnx")
    models = {
        "opset too new": (new, "opset 99"),
        "opset too old": (old, "opset 5"),
        "unknown operator": (parsed(("Relu", "Frobnicate")), "node 'relu' has the unknown operator 'Frobnicate'"),
        "no lowering": (onnx.parser.parse_model(NO_LOWERING), "node 'volume' (Det) cannot be lowered"),
        "dynamic shape": (onnx.parser.parse_model(DYNAMIC), "--shape x="),
        "data outside": (outside("../../etc/passwd"), "outside the model's folder"),
        "data at an absolute path": (outside("/etc/passwd"), "relative"),
        "data missing": (outside("none.bin"), "no file 'none.bin'"),
        "zero channel": (zero, "output channel 3"),
    }
    for name, (made, _) in models.items():
        (folder / f"{name}.onnx").write_bytes(made.SerializeToString())
    whole = parsed().SerializeToString()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    with (folder / "huge.onnx").open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse
    words = {name: words for name, (_, words) in models.items()}
    return words | {"truncated": "truncated", "huge": "2 GiB", "nan": "'w', read by node 'matmul'", "inf": "infinite"}


CASES = """no such verb|no argument|no output|unknown option|no such file|a folder|not ONNX|no such target|shape is no shape
shape of nothing|sign of zero|name is no identifier|golden data|output folder|output is a folder|not a package
truncated package|not arrays|wrong shape|wrong dtype|wrong name|a pickle|no such device|too many threads|validation data
validation device|not a validation|factory|factory module|export shape|weights|flipped byte
opset too new|opset too old|unknown operator|no lowering|dynamic shape|data outside|data at an absolute path|data missing
zero channel|truncated|huge|nan|inf""".replace("\n", "|").split("|")


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(case: str, package: Path, tmp_path: Path) -> None:
    cases = bad_inputs(tmp_path, package)
    assert set(cases) == set(CASES)
    command, words = cases[case]
    before = sorted(tmp_path.iterdir())
    result = xnorc(*command)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("xnorc: error: ") and words in lines[0], result.stderr
    assert "defect" not in lines[0] and "Traceback" not in result.output
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


def test_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xnorc", "explain", str(tmp_path / "none.onnx")], capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_defects_are_one_line_and_debug_shows_more(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xnorc import api
    from xnorc.cli import common

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(api, "explain", broken)
    monkeypatch.setattr(common, "_debug", False)
    result = xnorc("explain", model)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "RuntimeError: two lines (this is a defect of xnorc" in result.stderr
    assert "Traceback" in xnorc("explain", model, "--debug").stderr
    monkeypatch.setattr(common, "_debug", False)
    assert "Traceback" in xnorc("--debug", "explain", model).stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RecursionError])
def test_interruption_and_exhaustion(model: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    from xnorc import api

    def stopped(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "explain", stopped)
    result = xnorc("explain", model)
    assert result.exit_code == (130 if error is KeyboardInterrupt else 2)
    assert len(result.stderr.splitlines()) == 1


def interruptible() -> None:
    """For a child process: Ctrl-C counts there, even where a shell started the tests in the background, which ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_compile_leaves_nothing(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xnorc", "compile", str(model), "-o", str(tmp_path / "out.xnorc")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=interruptible
    ) as process:
        while process.poll() is None and "tvm" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "xnorc: error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_an_interruption_that_a_library_swallows_ends_the_next_stage(model: Path, tmp_path: Path) -> None:
    """Here it hits while an object is finalized, where Python only says so on stderr."""
    program = """
import os, signal, sys
from xnorc.cli import main
from xnorc.lower import build
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def lower(*args, then=build.lower):
    sys.unraisablehook = lambda _: None
    Dying()
    return then(*args)
build.lower = lower
main()
"""
    command = [sys.executable, "-c", program, "compile", str(model), "-o", str(tmp_path / "out.xnorc")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=interruptible)
    assert done.returncode == 130 and done.stderr == "xnorc: error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_libraries_are_silent_unless_debugging(tmp_path: Path) -> None:
    """TVM warns, on stderr and from C++, when the lowering of a model is given up."""
    onnx.save(onnx.parser.parse_model(NO_LOWERING), tmp_path / "det.onnx")
    command = [sys.executable, "-m", "xnorc", "compile", str(tmp_path / "det.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "(Det) cannot be lowered" in done.stderr
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr and "(Det) cannot be lowered" in done.stderr


@pytest.mark.parametrize(
    "command", [("compile", "MODEL", "--target", "icebreaker", "-o", "FOLDER/net.xnorc"),
                ("compile", "MODEL", "--target", "icebreaker", "--estimate"),
                ("validate", "PACKAGE", "--device", "sim")],
)  # fmt: skip
def test_missing_fpga_tools_are_named(
    command: tuple[str, ...], model: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "amaranth" else find(name, *rest)
    )
    places = {"MODEL": str(model), "PACKAGE": str(package)}
    result = xnorc(*(places.get(word, word.replace("FOLDER", str(tmp_path))) for word in command))
    assert result.exit_code == 2
    assert "'amaranth', which is missing: pip install 'xnorc[fpga]'" in result.stderr
    assert not (tmp_path / "net.xnorc").exists()


def test_a_full_temporary_folder_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xnorc import api

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(api, "explain", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    result = xnorc("explain", model)
    assert result.exit_code == 2
    assert re.fullmatch(
        r"xnorc: error: cannot write temporary files in '.+' \(set TMPDIR .*\): No space left .*\n", result.stderr
    )


def test_a_device_that_goes_away_in_mid_run(model: Path, tmp_path: Path) -> None:
    good("compile", model, "--target", "aarch64", "-o", tmp_path / "net.xnorc")
    np.save(tmp_path / "x.npy", np.zeros((3_000_000, 4), np.float32))
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "xnorc", "run", "net.xnorc", "--device", "qemu", "--input", "x.npy", "-o", "y.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        children, before_that = Path(f"/proc/{process.pid}/task/{process.pid}/children"), [""]
        while process.poll() is None and (now := children.read_text().split()[:1]) != before_that:
            before_that = now or [""]  # a child that is there twice is the emulated runner, and no probe
            time.sleep(0.2)
        os.kill(int(now[0]), signal.SIGKILL)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert re.fullmatch(r"xnorc: error: device 'qemu' went away after \d+ of 3000000 inputs: .*signal 9\n", errors)
    assert sorted(tmp_path.iterdir()) == before


def test_a_reader_that_goes_away(model: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m xnorc explain {model} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
