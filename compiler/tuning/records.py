"""The file of tuned choices: JSON, one entry a layer, named by ``Template.key``.

A record is only used for a layer of equal operator, sizes, epilogue and machine, so one file may serve many models.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_write, read_bytes
from ..lower.templates import Choices
from ..targets import Target

FORMAT = 1
MAX_FILE = 64 << 20


@dataclass(frozen=True)
class LayerRecord:
    """What tuning found for a layer. Times in µs: of the shipped schedule and of the choices, measured in turns."""

    layer: str
    target: str
    device: str
    choices: dict[str, int]
    us: float
    shipped_us: float
    trials: int


def default_file(target: Target) -> Path:
    """Where tuned choices of a target are kept unless told otherwise: ``$XDG_CACHE_HOME/xnorc/tuned/<target>.json``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "xnorc" / "tuned" / f"{target.name}.json"


class Records:
    """The records of one file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.layers: dict[str, LayerRecord] = {}

    @classmethod
    def read(cls, path: str | os.PathLike[str], missing_ok: bool = False) -> Records:
        """The content of ``path``. Raises ``InputError`` when it is not such a file."""
        made = cls(path)
        if missing_ok and not made.path.exists():
            return made
        data = read_bytes(path, MAX_FILE)
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"tuned choices '{path}': not JSON ({str(error).splitlines()[0]})") from error
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or not isinstance(content.get("layers"), dict)
        ):
            raise InputError(
                f"tuned choices '{path}': not a file of format {FORMAT} that `xnorc compile --tune` writes"
            )
        for key, entry in content["layers"].items():
            made.layers[key] = _record(entry, f"tuned choices '{path}', layer '{key[:40]}'")
        return made

    def choices(self) -> Choices:
        """By layer."""
        return {key: record.choices for key, record in self.layers.items()}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {"format": FORMAT, "layers": {key: asdict(record) for key, record in sorted(self.layers.items())}}
        atomic_write(self.path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _record(entry: Any, where: str) -> LayerRecord:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not an object")
    texts, numbers = ("layer", "target", "device"), ("us", "shipped_us")
    good = all(isinstance(entry.get(key), str) for key in texts)
    good = good and all(
        isinstance(entry.get(key), (int, float)) and not isinstance(entry[key], bool) for key in numbers
    )
    choices = entry.get("choices")
    if not good or not isinstance(choices, dict) or not isinstance(entry.get("trials"), int):
        raise InputError(f"{where}: an entry is missing or of a wrong type")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in choices.values()):
        raise InputError(f"{where}: 'choices' must hold whole numbers")
    return LayerRecord(**{key: entry[key] for key in (*texts, *numbers, "choices", "trials")})
