"""Single binary layers on the modelled Raspberry Pis: products a cycle, instructions a product, part of the core's limit.

    python benchmarks/arm_layers.py                                  # every layer on every board
    python benchmarks/arm_layers.py --boards rpi4 --layers 3x3-64@56 residual-64@56
    python benchmarks/arm_layers.py --save                           # docs/arm_layers.json and .md anew
    python benchmarks/arm_layers.py --render                         # docs/arm_layers.md of the stored result

A layer is a whole step of the device's program, as it stands in a network: it gathers windows, counts bits, and does what
follows, to packed bits ("3x3", "1x1", "dense", "depthwise": batch norm and sign as one threshold) or to a float shortcut
and the bits of the next layer ("residual": ReLU, batch norm, sum, sign). Needs Debian's qemu-user and llvm; nothing here is
measured on a board.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import xnorc
from xnorc.runtimes.cycles import model_cycles

DOCS = Path(__file__).resolve().parent.parent / "docs"
FACTS = DOCS / "arm_layers.json"
BOARDS = ("rpi4", "rpi5", "rpi3", "rpi2")
RATE, INSTRUCTIONS = 75.0, 0.032
"""What a 3x3 layer of 64 channels at 56x56, 128 at 28, 256 at 14 or 512 at 7 is held against on Cortex-A72 and A76."""
BLOCK_MS = 1.3
"""What such a layer with its shortcut, packing included, is held against on a Pi 4."""


@dataclass(frozen=True)
class Layer:
    """``kind`` tells what it is (see above); [1, channels, size, size] -> [1, out, size, size]; of a dense layer
    ``size`` is the number of rows."""

    kind: str
    channels: int
    size: int
    out: int

    @property
    def name(self) -> str:
        wide = str(self.channels) if self.out == self.channels else f"{self.channels}-{self.out}"
        return f"{self.kind}-{wide}@{self.size}"

    def model(self) -> onnx.ModelProto:
        """A network with the layer in its middle: what it reads comes from another step, and so goes what it writes."""
        rng = np.random.default_rng(0)
        kernel = 1 if self.kind in ("1x1", "dense") else 3
        group = self.channels if self.kind == "depthwise" else 1
        terms = self.channels // group * kernel * kernel
        constants: dict[str, np.ndarray] = {}

        def signs(name: str, *shape: int) -> str:
            constants[name] = np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float32)
            return name

        norm = {
            "scale": rng.random(self.out) + 0.5,
            "shift": rng.normal(size=self.out) * 0.3,
            "mean": rng.normal(size=self.out) * terms**0.5 / 4,
            "variance": (rng.random(self.out) + 0.5) * terms,
        }
        constants |= {name: value.astype(np.float32) for name, value in norm.items()}
        nodes = [helper.make_node("Relu", ["x"], ["r0"])]
        pads = [kernel // 2] * 4
        shape: list[int] = [1, self.channels, self.size, self.size]
        last = [1, self.out, self.size, self.size]
        if self.kind == "residual":
            signs("w", self.out, self.channels, 3, 3)
            for i in range(3):
                nodes += [
                    helper.make_node("Sign", [f"r{i}"], [f"s{i}"]),
                    helper.make_node("Conv", [f"s{i}", "w"], [f"c{i}"], pads=pads, name=f"layer{i}"),
                    helper.make_node("Relu", [f"c{i}"], [f"u{i}"]),
                    helper.make_node("BatchNormalization", [f"u{i}", *norm], [f"n{i}"]),
                    helper.make_node("Add", [f"n{i}", f"r{i}"], ["y" if i == 2 else f"r{i + 1}"]),
                ]
        elif self.kind == "dense":
            shape, last = [self.size, self.channels], [self.size, 8]
            signs("w", self.channels, self.out), signs("w2", self.out, 8)
            nodes += [
                helper.make_node("Sign", ["r0"], ["s0"]),
                helper.make_node("MatMul", ["s0", "w"], ["c0"], name="layer1"),
                helper.make_node("BatchNormalization", ["c0", *norm], ["n0"]),
                helper.make_node("Sign", ["n0"], ["s1"]),
                helper.make_node("MatMul", ["s1", "w2"], ["y"]),
            ]
        else:
            last[1] = 8
            signs("w", self.out, self.channels // group, kernel, kernel), signs("w2", 8, self.out, 1, 1)
            nodes += [
                helper.make_node("Sign", ["r0"], ["s0"]),
                helper.make_node("Conv", ["s0", "w"], ["c0"], pads=pads, group=group, name="layer1"),
                helper.make_node("BatchNormalization", ["c0", *norm], ["n0"]),
                helper.make_node("Sign", ["n0"], ["s1"]),
                helper.make_node("Conv", ["s1", "w2"], ["y"]),
            ]
        ends = [helper.make_tensor_value_info(name, 1, s) for name, s in (("x", shape), ("y", last))]
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
LAYERS = {
    layer.name: layer
    for layer in (
        *(Layer("3x3", channels, size, channels) for channels, size in SHAPES),
        *(Layer("residual", channels, size, channels) for channels, size in SHAPES),
        Layer("3x3", 32, 112, 32),
        Layer("1x1", 64, 56, 64),
        Layer("1x1", 256, 14, 256),
        Layer("depthwise", 64, 56, 64),
        Layer("dense", 1024, 1, 1024),
        Layer("dense", 4096, 1, 1024),
        Layer("dense", 768, 128, 768),
    )
}


def measure(layer: Layer, board: str) -> dict[str, Any]:
    """The layer's step on a board; ``pack``: the step that makes the bits which it reads, where that is its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.xnorc"
        xnorc.compile(layer.model(), board, name="layer", sign_zero=1, output=path)
        package = xnorc.load(path)
        result = model_cycles(package)
    steps = list(zip(package.manifest["steps"], result.steps, strict=True))
    place = next(i for i, (step, _) in enumerate(steps) if any(node.startswith("layer1") for node in step["nodes"]))
    found = steps[place][1]
    record: dict[str, Any] = {
        "board": result.board, "ghz": result.ghz, "op": found.op, "macs": found.macs, "instructions": found.instructions,
        "instructions_per_mac": found.instructions / found.macs, "cycles": found.cycles,
        "mac_per_cycle": found.mac_per_cycle, "of_limit": found.limit, "memory_ms": found.memory_ms, "ms": found.ms,
    }  # fmt: skip
    if layer.kind == "residual":
        before = steps[place - 1][1]
        pack = before if before.op == "Pack" else None
        record["pack_ms"] = None if found.ms is None else (pack.ms if pack else 0.0)
    return record


def short(value: Any) -> Any:
    """Five digits are enough, and make the same text everywhere."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return {key: short(item) for key, item in value.items()} if isinstance(value, dict) else value


def cell(record: dict[str, Any] | None) -> str:
    """What the table says of a layer on a board."""
    if record is None:
        return "–"
    text = f"{record['instructions_per_mac']:.4f}"
    if record["mac_per_cycle"] is None:
        return text
    text = f"**{record['mac_per_cycle']:.1f}** ({record['of_limit']:.0%}), {text}, {record['ms']:.3f} ms"
    return text + (f" + {record['pack_ms']:.3f}" if record.get("pack_ms") else "")


def missed(facts: dict[str, Any]) -> list[str]:
    """Layers that fall short of what they are held against."""
    found = []
    for name, boards in facts.items():
        layer = LAYERS[name]
        if (layer.channels, layer.size) not in SHAPES:
            continue
        for board in ("rpi4", "rpi5"):
            one = boards.get(board)
            if one is None or one["cycles"] is None:
                continue
            if layer.kind == "3x3" and (one["mac_per_cycle"] < RATE or one["instructions_per_mac"] > INSTRUCTIONS):
                found.append(
                    f"{name} on {board}: {one['mac_per_cycle']:.1f} MAC/cycle, {one['instructions_per_mac']:.4f}"
                )
            if layer.kind == "residual" and board == "rpi4" and one["ms"] + one["pack_ms"] > BLOCK_MS:
                found.append(f"{name} on {board}: {one['ms'] + one['pack_ms']:.3f} ms")
    return found


def render(facts: dict[str, Any]) -> str:
    """The page."""
    boards = [board for board in BOARDS if any(board in record for record in facts.values())]
    titles = {board: next(record[board] for record in facts.values() if board in record) for board in boards}
    lines = [
        "# Binary layers on Arm, modelled",
        "",
        "This page is made of `arm_layers.json` by `python benchmarks/arm_layers.py --render`; "
        "`python benchmarks/arm_layers.py --save` counts and prices anew.",
        "",
        "Each layer is one whole step of a compiled network, on one thread: windows gathered, bits counted, and what "
        'follows. "3x3", "1x1", "dense" and "depthwise" end in packed bits (batch norm and sign as one threshold), '
        '"residual" in a float sum (ReLU, batch norm, shortcut) and its signs, in one pass (after the plus sign: packing '
        "its input where another step does it). Instructions are exact, times are modelled (see "
        "[performance](performance.md)). A cell: "
        "binary MAC a cycle (part of the core's limit), executed instructions a MAC, ms. LLVM has no model of "
        "Cortex-A7: instructions alone.",
        "",
        f"Held against, on Cortex-A72 and A76: at least {RATE:g} MAC a cycle and at most {INSTRUCTIONS:g} instructions a MAC "
        f"for the first four; a residual block in {BLOCK_MS:g} ms on a Pi 4, packing included. "
        + ("All are met." if not missed(facts) else "Missed: " + "; ".join(missed(facts)) + "."),
        "",
        "| layer | " + " | ".join(f"{titles[b]['board']}, {titles[b]['ghz']:g} GHz" for b in boards) + " |",
        "|---|" + "---|" * len(boards),
    ]
    lines += [f"| {name} | " + " | ".join(cell(record.get(b)) for b in boards) + " |" for name, record in facts.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", nargs="+", choices=BOARDS, default=list(BOARDS))
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--save", action="store_true", help="put it into docs/arm_layers.json and render the page")
    parser.add_argument("--render", action="store_true", help="model nothing: the page of the stored result")
    args = parser.parse_args(arguments)
    stored = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    if not args.render:
        facts: dict[str, Any] = {}
        for name in args.layers:
            for board in args.boards:
                found = short(measure(LAYERS[name], board))
                facts.setdefault(name, {})[board] = found
                print(f"{name:18} {board:5} {found['macs'] / 1e6:7.1f} M  {cell(found).replace('*', '')}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(facts, indent=1) + "\n")
        print("\n".join(f"missed: {line}" for line in missed(facts)) or "no goal is missed")
        if args.save:
            stored = {name: stored.get(name, {}) | facts.get(name, {}) for name in LAYERS}
            FACTS.write_text(json.dumps({name: found for name, found in stored.items() if found}, indent=1) + "\n")
    if args.save or args.render:
        (DOCS / "arm_layers.md").write_text(render(json.loads(FACTS.read_text())))


if __name__ == "__main__":
    main()
