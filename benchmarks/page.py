"""The pages of docs/ and their pictures, made of the stored results; and a result as JSON text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
ENGINES = {
    "xnorc": ("xnorc", "#2f6f4f"),
    "xnorc-int8": ("xnorc, float layers in int8", "#7fb596"),
    "onnxruntime": ("ONNX Runtime fp32", "#7a8699"),
    "onnxruntime-int8": ("ONNX Runtime int8", "#b5bdc9"),
    "larq": ("Larq Compute Engine", "#c58b4b"),
}
"""Engine → what people call it, and its colour."""
OURS = ("xnorc", "xnorc-int8")
BINARY = ("BinaryConv", "BinaryGemm")
PAGES = {"benchmarks": "Benchmarks", "benchmarks_avx512": "Benchmarks with AVX-512"}
"""A page's name → its title."""


def page_of(features: Sequence[str]) -> str:
    """The page for machines of this kind."""
    return "benchmarks_avx512" if "avx512f" in features else "benchmarks"


def path_of(name: str) -> Path:
    """The stored result of a page."""
    return DOCS / f"{name}.json"


def text(facts: dict[str, Any]) -> str:
    """The result as JSON, a line a layer."""

    def shorter(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: shorter(item) for key, item in value.items()}
        return [shorter(item) for item in value] if isinstance(value, list) else value

    whole = json.dumps(shorter(facts), indent=1)
    whole = re.sub(r'\{\s+"layer": .*?\}\s*[^{}]*\}', lambda found: " ".join(found[0].split()), whole, flags=re.S)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", whole) + "\n"


def part_of_ceiling(row: dict[str, Any], ceiling: dict[str, float] | None) -> float | None:
    """Which part of the core's ceiling a binary layer reaches, all that its step does besides included."""
    if ceiling is None or row.get("kernel") not in BINARY or not row["us"].get("xnorc"):
        return None
    return float(row["macs"] / row["us"]["xnorc"] / 1e3 / ceiling["binary_gmacs"])


def measured(facts: dict[str, Any]) -> list[str]:
    """The engines that anything was measured on or is said of, in the order of ``ENGINES``."""
    return [name for name in ENGINES if any(name in (*r["engines"], *r["missing"]) for r in facts["networks"].values())]


def write(facts: dict[str, Any], name: str) -> None:
    """Write the page ``name`` and its picture."""
    (DOCS / f"{name}.md").write_text(render(facts, name))
    (DOCS / f"{name}.svg").write_text(picture(facts))


def _ratio(record: dict[str, Any], name: str) -> str:
    ours, theirs = (record["engines"].get(key, {}).get("median_ms") for key in ("xnorc", name))
    return f"{theirs / ours:.2f}" if ours and theirs else "–"


def render(facts: dict[str, Any], name: str) -> str:
    """The page ``name``."""
    machine, engines = facts["machine"], measured(facts)
    peers = [name for name in engines if name not in OURS]
    lines = [
        f"# {PAGES[name]}",
        "",
        f"This page is made of `{name}.json` by `python benchmarks/networks.py --render`; "
        "`python benchmarks/networks.py --save` measures anew.",
        "",
        f"Measured on {machine['processor']} ({', '.join(machine['features'])}), {machine['threads']} thread"
        f"{'' if machine['threads'] == 1 else 's'}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f". The machine is shared (load {machine['load']} at the start): the engines run in turns, the table has "
        "medians, and the ratios say more than the numbers. Weights are random. ONNX Runtime runs with all graph "
        "optimizations; its int8 form is static (QDQ, a scale a channel). "
        + ("xnorc's has `--float-layers int8`. " if "xnorc-int8" in engines else "")
        + "Larq Compute Engine is optimized for Arm: on x86-64 "
        "it falls back on portable code.",
        "",
        f"![Times of the networks]({name}.svg)",
        "",
        "## Whole networks",
        "",
        "ms for one sample (least, half of the runs between); the ratio is a peer's median to xnorc's.",
        "",
        "| network | G binary MAC | " + " | ".join(ENGINES[name][0] for name in engines) + " | ratios |",
        "|---|---|---|" + "---|" * len(engines),
    ]
    for record in facts["networks"].values():
        binary = sum(
            row.get("macs", 0) for row in record["layers"] if row.get("kernel", "").startswith(("Binary", "BitSerial"))
        )
        cells = []
        for name in engines:
            found = record["engines"].get(name)
            if found is None:
                cells.append("–")
                continue
            low, high = found["quartiles_ms"]
            cells.append(f"**{found['median_ms']:.2f}** ({found['least_ms']:.2f}; {low:.2f}–{high:.2f})")
        ratios = " / ".join(_ratio(record, name) for name in peers)
        lines.append(f"| {record['title']} | {binary / 1e9:.2f} | " + " | ".join(cells) + f" | {ratios} |")
    lines += ["", *_notes(facts), *_boards(facts), *_layers(facts)]
    return "\n".join(lines) + "\n"


def _notes(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, record in facts["networks"].items():
        for peer, why in record["missing"].items():
            lines.append(f"* {name}: no {ENGINES[peer][0]}: {why}.")
        if record.get("sign_zero"):
            lines.append(f"* {name}: compiled with `--sign-zero=+1`, as Larq has it.")
        if not record.get("validated", True):
            lines.append(f"* {name}: validation FAILED: the times say nothing.")
    return [*lines, ""] if lines else []


def _boards(facts: dict[str, Any]) -> list[str]:
    found = {name: record["modelled"] for name, record in facts["networks"].items() if record.get("modelled")}
    if not found:
        return []
    boards = sorted({board for record in found.values() for board in record})
    titles = {board: next(r[board] for r in found.values() if board in r) for board in boards}
    lines = [
        "## Boards, modelled",
        "",
        "Not measured: exact instruction counts under emulation, priced by llvm-mca, and a stated memory term "
        "(see [performance](performance.md)). ms for one sample, one thread; in brackets binary MAC per cycle over all binary "
        "layers with their epilogues.",
        "",
        "| network | " + " | ".join(f"{titles[b]['board']}, {titles[b]['ghz']:g} GHz" for b in boards) + " |",
        "|---|" + "---|" * len(boards),
    ]
    for name, record in found.items():
        cells = []
        for board in boards:
            one = record.get(board)
            rate = one and one["binary_mac_per_cycle"]
            cells.append("–" if one is None else f"{one['ms']:.1f}" + (f" ({rate:.1f})" if rate else ""))
        lines.append(f"| {facts['networks'][name]['title']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _layers(facts: dict[str, Any]) -> list[str]:
    ceiling = facts["ceiling"]
    lines = [
        "## Layers",
        "",
        "µs, median over the layers of a shape; xnorc's time is that of all that the layer's steps do (packing, scale, batch "
        "norm, activation, shortcut), ONNX Runtime's that of the node it made of the layer. The engines take "
        "turns, a few runs each; the ratio is ONNX Runtime fp32's median to xnorc's. ",
    ]
    if ceiling:
        lines[-1] += (
            f"Ceiling: {ceiling['binary_gmacs']:.0f} G binary MAC/s, what one core does with the vector instructions of "
            f"an inner loop alone, all operands in registers (`benchmarks/ceiling.c`, same run); "
            f"float32: {ceiling['float_gmacs']:.0f}."
        )
    for record in facts["networks"].values():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in record["layers"]:
            groups.setdefault((row["shape"], row.get("kernel", row["op"])), []).append(row)
        if not groups:
            continue
        names = [name for name in ENGINES if any(name in row["us"] for row in record["layers"])]
        lines += ["", f"### {record['title']}", ""]
        lines.append(
            "| layer | kernel | count | "
            + " | ".join(ENGINES[name][0] for name in names)
            + " | ratio | GMAC/s | of ceiling |"
        )
        lines.append("|---|---|---|" + "---|" * (len(names) + 3))
        for (shape, kernel), rows in groups.items():
            times = {name: [row["us"][name] for row in rows if name in row["us"]] for name in names}
            cells = [f"{median(found):,.1f}" if found else "–" for found in times.values()]
            ours, theirs = (times.get(name) for name in ("xnorc", "onnxruntime"))
            cells.append(f"{median(theirs) / median(ours):.2f}" if ours and theirs else "–")
            rates = [
                row["macs"] / row["us"]["xnorc"] / 1e3 for row in rows if row.get("macs") and row["us"].get("xnorc")
            ]
            parts = [part for row in rows if (part := part_of_ceiling(row, ceiling)) is not None]
            rate, part = f"{median(rates):.1f}" if rates else "", f"{median(parts):.0%}" if parts else ""
            lines.append(f"| {shape} | {kernel} | {len(rows)} | " + " | ".join(cells) + f" | {rate} | {part} |")
    return lines


def picture(facts: dict[str, Any]) -> str:
    """Bars on a logarithmic axis, in SVG."""
    left, width, bar, gap = 230, 520, 13, 14
    records = list(facts["networks"].values())
    values = [found["median_ms"] for record in records for found in record["engines"].values()]
    low = 10 ** math.floor(math.log10(min(values, default=1)))
    high = 10 ** math.ceil(math.log10(max(values, default=10) * 1.001))

    def place(value: float) -> float:
        return left + width * math.log(value / low) / math.log(high / low)

    parts: list[str] = []
    y = 34.0
    for record in records:
        top = y
        for name, (_, colour) in ENGINES.items():
            found = record["engines"].get(name)
            if found is None:
                continue
            end = place(found["median_ms"])
            parts.append(f'<rect x="{left}" y="{y:.0f}" width="{end - left:.1f}" height="{bar - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{end + 5:.1f}" y="{y + 9:.0f}" font-size="10">{found["median_ms"]:.2f} ms</text>')
            y += bar
        middle = (top + y) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.0f}" text-anchor="end">{escape(record["title"])}</text>')
        y += gap
    axis, value = [], low
    while value <= high * 1.001:
        x = place(value)
        axis.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="28" y2="{y - gap + 4:.0f}" stroke="#ddd"/>')
        axis.append(f'<text x="{x:.1f}" y="{y + 6:.0f}" text-anchor="middle" font-size="10">{value:g} ms</text>')
        value *= 10
    legend, x = [], 10
    for title, colour in (ENGINES[name] for name in measured(facts)):
        legend.append(
            f'<rect x="{x}" y="8" width="11" height="11" fill="{colour}"/><text x="{x + 16}" y="18">{title}</text>'
        )
        x += 40 + 7 * len(title)
    body = "\n".join([*axis, *parts, *legend])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{y + 16:.0f}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
