"""Results of long steps, kept by the hash of what went into them: ``$XNORC_CACHE``, else ``~/.cache/xnorc``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import XnorcError


def folder() -> Path:
    """The folder of the cache; it need not exist."""
    if given := os.environ.get("XNORC_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnorc"


def key(parts: Mapping[str, str | bytes]) -> str:
    """A name for what follows from ``parts``: 32 hexadecimal digits of SHA-256 over names, lengths and contents."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def find(kind: str, name: str) -> Path | None:
    """The folder that ``fresh(kind, name)`` filled, if it did."""
    found = folder() / kind / name
    return found if found.is_dir() else None


@contextlib.contextmanager
def fresh(kind: str, name: str) -> Iterator[Path]:
    """A temporary folder that becomes the entry ``name`` when the block ends without an error, and else goes away.

    Raises ``XnorcError`` when the cache cannot be written.
    """
    parent = folder() / kind
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name[:8]}.", dir=parent))
    except OSError as error:
        raise XnorcError(
            f"cannot write the cache '{parent}': {error.strerror}; set XNORC_CACHE to another folder"
        ) from error
    try:
        yield temporary
        with contextlib.suppress(OSError):  # another process may have been faster: its result is the same
            temporary.rename(parent / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
