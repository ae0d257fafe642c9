"""Files: outputs that appear whole or not at all, and arrays read from files that nobody vouches for."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, XnorcError

if TYPE_CHECKING:
    import numpy as np

MAX_ARRAY_FILE = 4 << 30
"""Largest .npy or .npz, in bytes after decompression, that is read."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


def atomic_write(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` to ``path`` so that the file is either complete or, after an error, as it was before.

    The bytes go to a temporary file in the same folder, which then replaces ``path``. Raises ``XnorcError`` (one line)
    when the folder is missing, the disk is full, or anything else of the kind.
    """
    given = Path(path)
    try:
        final = given.resolve()
        if final.exists() and not stat.S_ISREG(final.stat().st_mode):
            if final.is_dir():
                raise XnorcError(f"cannot write '{given}': it is a folder")
            with final.open("wb") as device:  # /dev/null, a pipe: replacing it by a file would be wrong
                device.write(data)
            return
        if not final.parent.is_dir():
            raise XnorcError(f"cannot write '{given}': there is no folder '{given.parent}'")
        handle, temporary = tempfile.mkstemp(prefix=f".{final.name[:100]}.", suffix=".part", dir=final.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # some file systems say that they are full only now
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(mode & ~mask)
            Path(temporary).replace(final)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise XnorcError(f"cannot write '{given}': {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise XnorcError(f"cannot write {str(given)!r}: {error}") from error


def read_bytes(path: str | os.PathLike[str], limit: int, error: type[XnorcError] = InputError) -> bytes:
    """Content of a regular file of at most ``limit`` bytes; anything else raises ``error`` with one line."""
    given = Path(path)
    try:
        info = given.stat()
        if stat.S_ISDIR(info.st_mode):
            raise error(f"cannot read '{given}': it is a folder")
        if not stat.S_ISREG(info.st_mode):
            raise error(f"cannot read '{given}': it is not a regular file")
        if info.st_size > limit:
            raise error(f"cannot read '{given}': {info.st_size} bytes, more than the limit of {limit}")
        with given.open("rb") as file:
            return file.read(min(limit, info.st_size))  # read() sets aside what it is asked for
    except OSError as problem:
        raise error(f"cannot read '{given}': {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise error(f"cannot read {str(given)!r}: {problem}") from problem


def zip_bytes(members: Mapping[str, bytes], executable: frozenset[str] = frozenset(), level: int = 6) -> bytes:
    """A zip of ``members`` in which nothing depends on when, where or in what order it was made."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | (0o755 if name in executable else 0o644)) << 16
            archive.writestr(info, members[name], zipfile.ZIP_DEFLATED, level)
    return out.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file. Arrays of Python objects are refused."""
    import numpy as np

    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), allow_pickle=False)
    return out.getvalue()


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as a deterministic .npz file (NumPy's own ``savez`` cannot write an array called ``file``)."""
    return zip_bytes({f"{name}.npy": npy_bytes(value) for name, value in arrays.items()}, level=1)


def _parse_npy(data: bytes, what: str) -> np.ndarray:
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        reader: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, fortran, dtype = reader(stream)
    except KeyError:
        raise InputError(f"{what}: unknown .npy version") from None
    except Exception as error:  # NumPy parses the header with ast: many kinds of error, all of them "damaged"
        raise InputError(f"{what}: not a .npy array") from error
    if dtype.hasobject:
        raise InputError(f"{what}: holds Python objects (a pickle), which xnorc does not load")
    count = 1
    for size in shape:
        count *= size
    body = data[stream.tell() :]
    if count < 0 or count * dtype.itemsize != len(body):
        raise InputError(f"{what}: damaged, shape {shape} of {dtype} does not fit {len(body)} bytes")
    flat = np.frombuffer(body, dtype, count)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def parse_npz(data: bytes, what: str, limit: int = MAX_ARRAY_FILE) -> dict[str, np.ndarray]:
    """Arrays of an .npz held in memory. Never unpickles; decompresses at most ``limit`` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > limit:
                raise InputError(f"{what}: more than {limit} bytes when decompressed")
            arrays = {}
            for info in infos:
                if not info.filename.endswith(".npy"):
                    raise InputError(f"{what}: member '{info.filename}' is not an array")
                name = info.filename[: -len(".npy")]
                if name in arrays:
                    raise InputError(f"{what}: array '{name}' appears twice")
                with archive.open(info) as member:
                    arrays[name] = _parse_npy(member.read(info.file_size), f"{what}, array '{name}'")
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds on damaged data
        raise InputError(f"{what}: not a readable .npz ({error})".splitlines()[0]) from error
    return arrays


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | np.ndarray:
    """What a .npz (a dict) or a .npy (one array) holds; the kind is seen from the content. Never unpickles."""
    data = read_bytes(path, MAX_ARRAY_FILE)
    if data[:6] == b"\x93NUMPY":
        return _parse_npy(data, f"'{path}'")
    if data[:2] == b"PK":
        return parse_npz(data, f"'{path}'")
    raise InputError(f"'{path}' is neither a .npz nor a .npy file")
