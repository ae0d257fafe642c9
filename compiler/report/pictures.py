"""Layout of the report's pictures: plain numbers and classes, which the template draws as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..manifest import FLOATS

WIDTH = 1040
ROW = 30
"""Height of a row of the table of steps, and of the piece of the graph beside it."""
_DOT, _LANE, MAX_LANES = 12, 13, 8
_HEIGHT, _LEFT, _TOP, _CHAR = 320, 76, 8, 6.6


def rails(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Who reads whose output, as a graph beside a list: row 0 is the inputs, row n the n-th step.

    What the next row reads runs straight down. What a later row reads leaves to the right, runs down a lane of its own and
    comes back there. Each row is drawn alone: ``paths`` are SVG paths inside a row.
    """
    steps = manifest["steps"]
    maker = dict.fromkeys(manifest["inputs"], 0)
    straight: set[int] = set()
    late: dict[int, list[int]] = {}
    for row, step in enumerate(steps, 1):
        for source in sorted({maker[index] for index in step["reads"] if index in maker}):
            if source == row - 1:
                straight.add(row)
            else:
                late.setdefault(source, []).append(row)
        maker.update(dict.fromkeys(step["writes"], row))
    lanes = _lanes(late)
    paths: list[list[str]] = [[] for _ in range(len(steps) + 1)]
    middle = ROW / 2
    for row in straight:
        paths[row - 1].append(f"M{_DOT} {middle}V{ROW}")
        paths[row].append(f"M{_DOT} 0V{middle}")
    for source, lane in lanes.items():
        x, ends = _DOT + _LANE * (lane + 1), late[source]
        paths[source].append(f"M{_DOT} {middle}C{x} {middle} {x} {middle} {x} {ROW}")
        for row in range(source + 1, ends[-1] + 1):
            if row < ends[-1]:
                paths[row].append(f"M{x} 0V{ROW}")
            if row in ends:
                paths[row].append(f"M{x} 0C{x} {middle} {x} {middle} {_DOT} {middle}")
    width = _DOT + _LANE * (max(lanes.values(), default=-1) + 1) + 10
    return {"width": width, "height": ROW, "x": _DOT, "y": middle, "paths": [" ".join(path) for path in paths]}


def _lanes(late: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """A lane for every row that is read late; rows beyond the last lane are left out."""
    free: list[int] = []  # the row down to which a lane is taken
    found = {}
    for source in sorted(late):
        lane = next((lane for lane, until in enumerate(free) if until <= source), len(free))
        if lane == MAX_LANES:
            continue
        free[lane : lane + 1] = [late[source][-1]]
        found[source] = lane
    return found


def memory(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars over steps × arena offsets: how long each tensor lives and where. None when the package has no plan."""
    plan, steps, tensors = manifest["memory"].get("plan") or [], manifest["steps"], manifest["tensors"]
    count = max(1, len(steps))
    top = max((entry["offset"] + entry["bytes"] for entry in plan), default=0)
    if not top:
        return None
    writer = {index: step["name"] for step in steps for index in step["writes"]}
    across, down = (WIDTH - _LEFT) / count, _HEIGHT / top
    bars = []
    for entry in plan:
        tensor = tensors[entry["tensor"]]
        first, last = max(0, min(entry["first"], count - 1)), max(0, min(entry["last"], count - 1))
        width, height = max(2.0, (last - first + 1) * across - 2), max(1.5, entry["bytes"] * down - 1.5)
        name, label = _names(entry, manifest, writer)
        shape = " × ".join(map(str, tensor["shape"])) or "scalar"
        bars.append(
            {
                "x": round(_LEFT + first * across + 1, 1),
                "y": round(_TOP + _HEIGHT - entry["offset"] * down - height, 1),
                "width": round(width, 1),
                "height": round(height, 1),
                "kind": "float" if tensor["dtype"] in FLOATS else "integer",
                "label": _fitting(label, width) if height >= 15 else "",
                "title": f"{name}: {tensor['dtype']} {shape}, {entry['bytes']:,} bytes at {entry['offset']:,}, "
                f"step {first + 1} to {last + 1}",
            }
        )
    marks = [{"y": round(_TOP + _HEIGHT * (1 - part / 4), 1), "bytes": top * part // 4} for part in range(5)]
    every = -(-count // 40)
    ticks = [{"x": round(_LEFT + (step + 0.5) * across, 1), "label": step + 1} for step in range(0, count, every)]
    return {
        "width": WIDTH,
        "height": _TOP + _HEIGHT + 40,
        "left": _LEFT,
        "base": _TOP + _HEIGHT,
        "bars": bars,
        "marks": marks,
        "ticks": ticks,
    }


def _names(entry: Mapping[str, Any], manifest: Mapping[str, Any], writer: Mapping[int, str]) -> tuple[str, str]:
    """What to call a tensor, at length and in a bar: the step that writes it, else what a step keeps for itself."""
    if found := writer.get(entry["tensor"]):
        return found, found
    if entry["tensor"] in manifest["inputs"] or not 0 <= entry["first"] < len(manifest["steps"]):
        name = str(manifest["tensors"][entry["tensor"]]["name"])
        return name, name
    return f"scratch of {manifest['steps'][entry['first']]['name']}", "scratch"


def _fitting(name: str, width: float) -> str:
    """As much of a name as a bar has room for; nothing rather than a stump."""
    room = int((width - 6) / _CHAR)
    return name if len(name) <= room else f"{name[: room - 1]}…" if room >= 5 else ""
