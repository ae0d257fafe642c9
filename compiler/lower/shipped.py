"""The choices that ship: for layers of well-known sizes, what tuning found to be faster than the template's default.

``choices/TARGET.json`` are records of ``xnorc.tuning``, made by ``benchmarks/tune_shipped.py``: measured on an AVX2 machine for
``host``, by modelled cycles (``device`` is ``qemu``) for boards. A layer is looked up by ``Template.key``, so one of other
sizes, epilogue or machine takes the default. What the user tuned goes before.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path


def file(target: str) -> Path:
    """Where the choices for a target lie, if there are any."""
    return Path(__file__).parent / "choices" / f"{target}.json"


@functools.cache
def choices(target: str) -> Mapping[str, Mapping[str, int]]:
    """By key of the layer, its choices by knob."""
    place = file(target)
    if not place.is_file():
        return {}
    layers = json.loads(place.read_text(encoding="utf-8"))["layers"]
    return {key: record["choices"] for key, record in layers.items()}
