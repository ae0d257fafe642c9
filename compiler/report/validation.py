"""Validation facts as the page shows them. They come from a file: every value is looked at before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..manifest import FLOATS
from .text import short

MAX_ROWS = 1000
"""Longest table that is shown."""


def view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of the facts that ``xnorc validate --json`` wrote; anything else is shown as it is."""
    layers, end = _objects(facts.get("layers")), facts.get("end_to_end")
    if not layers or not isinstance(end, Mapping) or not isinstance(facts.get("ok"), bool):
        return {"known": False, "sections": _sections(facts)}
    reasons: dict[str, int] = {}
    flips = _objects(end.get("flips"))
    return {
        "known": True,
        "ok": facts["ok"],
        "device": _text(facts.get("device")),
        "first_difference": _text(facts.get("first_difference")),
        "tiles": _tiles(layers, end),
        "layers": [_layer(layer, reasons) for layer in layers[:MAX_ROWS]],
        "more": max(0, len(layers) - MAX_ROWS),
        "layer_samples": _count(facts.get("layer_samples")),
        "reasons": list(reasons),
        "passes": [_bits(item, "differing") for item in _objects(facts.get("passes"))[:MAX_ROWS]],
        "flips": [_bits(item, "flips") for item in flips[:MAX_ROWS]],
        "flipped": any(item.get("flips") or item.get("ties") for item in flips),
        "disagreements": [
            {
                "sample": _count(item.get("sample")),
                "expected": _count(item.get("expected")),
                "got": _count(item.get("got")),
                "why": _text(item.get("why")),
                "ok": item.get("explained") is True,
            }
            for item in _objects(end.get("disagreements"))[:MAX_ROWS]
        ],
        "notes": [_text(note) for note in facts["notes"][:MAX_ROWS]] if isinstance(facts.get("notes"), list) else [],
    }


def _tiles(layers: list[Mapping[str, Any]], end: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of the banner, each with what it counts."""
    floats = [layer.get("ok") is True for layer in layers if layer.get("dtype") in FLOATS]
    integers = [layer.get("ok") is True for layer in layers if layer.get("dtype") not in FLOATS]
    tiles = []
    if integers:
        tiles.append((f"{sum(integers)} of {len(integers)}", "integer layers equal, bit for bit"))
    if floats:
        tiles.append((f"{sum(floats)} of {len(floats)}", "float layers within their bound"))
    tiles.append((_count(end.get("samples")), "samples run end to end"))
    tiles.append((_number(end.get("max_error")), "largest error of an output"))
    if _is_number(end.get("agreement")):
        tiles.append((f"{end['agreement']:.2%}", "same class as the original"))
    if _is_number(end.get("device_accuracy")):
        tiles.append((f"{end['device_accuracy']:.2%}", "accuracy on the device"))
    if _is_number(end.get("reference_accuracy")):
        tiles.append((f"{end['reference_accuracy']:.2%}", "accuracy in ONNX Runtime"))
    return tiles


def _layer(layer: Mapping[str, Any], reasons: dict[str, int]) -> dict[str, Any]:
    ok, bits = layer.get("ok") is True, layer.get("dtype") == "bits"
    bounded = not _is_number(layer.get("bound")) or layer["bound"] != 0
    note = reasons.setdefault(_text(layer.get("reason")), len(reasons) + 1) if bounded or not ok else None
    used = layer.get("used")
    return {
        "name": _text(layer.get("name")),
        "op": _text(layer.get("op")).replace("+", " + "),
        "kind": _text(layer.get("kind")),
        "compared": _count(layer.get("compared")) + (" bits" if bits else ""),
        "differing": _count(layer.get("differing")),
        "error": "" if bits else _number(layer.get("max_error")),
        "bound": ("open bits" if bits else f"≤ {_number(layer.get('bound'))}") if bounded else "equal",
        "note": note,
        "used": _share(used) if bounded and not bits and _is_number(used) else "",
        "ok": ok,
    }


def _bits(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = _number(item.get("max_margin")) if item.get(key) else ""
    return {
        "tensor": _text(item.get("tensor")),
        "original": _text(item.get("original")),
        "bits": _count(item.get("bits")),
        "differing": _count(item.get(key)),
        "margin": found,
        "ties": _count(item.get("ties")),
        "ok": item.get("ok") is not False,
    }


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _text(value) or "–"


def _number(value: Any) -> str:
    return f"{value:.3g}" if _is_number(value) else _text(value) or "–"


def _share(used: Any) -> str:
    """The part of a bound that an error takes; a multiple when it is far outside."""
    return f"{used:.1%}" if used < 10 else f"{used:.3g} ×"


def _text(value: Any) -> str:
    return "" if value is None else short(str(value), 300)


def _sections(facts: Mapping[str, Any], title: str = "", depth: int = 0) -> list[dict[str, Any]]:
    """Any facts as titled tables: the scalars of an object first, then each list or object inside it."""
    plain = [(key, _cell(value)) for key, value in facts.items() if not isinstance(value, (dict, list))]
    sections = [{"title": title, "columns": [], "rows": plain[:MAX_ROWS]}] if plain else []
    for key, value in facts.items():
        name = f"{title}, {key}" if title else key
        if isinstance(value, dict) and value and depth < 4:
            sections += _sections(value, name, depth + 1)
        elif isinstance(value, list) and value:
            items = [item if isinstance(item, dict) else {"": item} for item in value[:MAX_ROWS]]
            columns = list(dict.fromkeys(column for item in items for column in item))
            rows = [tuple(_cell(item.get(column)) for column in columns) for item in items]
            if len(value) > MAX_ROWS:
                rows.append((f"… and {len(value) - MAX_ROWS} more", *[""] * (len(columns) - 1)))
            sections.append({"title": name, "columns": columns, "rows": rows})
    return sections


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value)
