"""No space left, no permission, no folder: one clear line, no partial output, and a file that was there stays as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from xnorc.cli import app
from xnorc.errors import XnorcError
from xnorc.files import atomic_write
from xnorc.package import write

from .test_package import manifest, members

MODEL = '<ir_version: 10, opset_import: ["": 18]> g (float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }'


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KB, where this machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "xnorc-test", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    old = tmp_path / "out"
    old.write_bytes(b"before")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(XnorcError, match=r"cannot write '.*out': No space left on device"):
        atomic_write(old, b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and old.read_bytes() == b"before"


def test_real_full_disk(small_disk: Path) -> None:
    out = small_disk / "net.xnorc"
    write(out, members(), manifest())
    before = out.read_bytes()
    noise = np.random.default_rng(0).bytes(200_000)
    with pytest.raises(XnorcError, match="No space left on device") as caught:
        write(out, {**members(), "lib/noise": noise}, manifest())
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == before and [path.name for path in small_disk.iterdir()] == ["net.xnorc"]


def test_optimize_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(app, ["optimize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p.onnx")])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"xnorc: error: cannot write '{tmp_path}/p.onnx': No space left on device"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "out", b"x")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(XnorcError, match="there is no folder"):
        atomic_write(tmp_path / "none" / "out", b"x")
    with pytest.raises(XnorcError, match="it is a folder"):
        atomic_write(tmp_path, b"x")
    with pytest.raises(XnorcError, match="File name too long"):
        atomic_write(tmp_path / ("x" * 300), b"x")
    with pytest.raises(XnorcError, match="cannot write"):
        atomic_write("a\0b", b"x")
    assert not list(tmp_path.iterdir())


def test_device_files_and_links_are_not_replaced(tmp_path: Path) -> None:
    atomic_write("/dev/null", b"x")
    assert not Path("/dev/null").is_file()
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_written_file_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    atomic_write(tmp_path / "out", b"x")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_that_is_full() -> None:
    with Path("/dev/full").open("w") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "xnorc", "targets"], stdout=sink, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["xnorc: error: cannot read or write: No space left on device"]
