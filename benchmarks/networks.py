"""Whole networks, and each of their layers: xnorc on this machine against ONNX Runtime (float32 and int8) and Larq.

    python benchmarks/networks.py                                   # every network, all peers that are here
    python benchmarks/networks.py --models bireal18 --peers xnorc onnxruntime
    python benchmarks/networks.py --pi rpi4 rpi5 rpi3               # with modelled times of boards
    python benchmarks/networks.py --save                            # docs/benchmarks.json, .svg and .md anew
    python benchmarks/networks.py --render                          # docs/benchmarks.md and .svg of the stored result

Machines with AVX-512 have a page of their own, docs/benchmarks_avx512.md (``--page``).

All engines run in turns within one run, so that whatever else the machine does hits them alike: the ratios are what counts.
Larq needs an environment of its own, which ``larq_environment.sh`` makes; without it its column stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import page
from models import NETWORKS, Network, make
from native import numbers
from peers import Engine, Larq, OnnxRuntime, PeerError, Xnorc, quantized

import xnorc

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("xnorc", "xnorc-int8", "onnxruntime", "onnxruntime-int8", "larq")
SIGN_ZERO = {"bireal18": 1, "reactnet": 1, "bibert": 1}
"""Networks whose signs take zero to +1 here, as Larq does; the others' own models say so."""
LAYERS = ("Conv", "Gemm", "MatMul")
RUNS = 3
"""Runs of an engine in a row where layers are timed."""
CHAIN = 5
"""Nodes behind a layer whose names ONNX Runtime may give to the layer that it fused them into."""


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on and with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "features": sorted(xnorc.targets.get("host").features),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "xnorc": xnorc.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


def ceilings() -> dict[str, float] | None:
    """10^9 binary and float32 products a second that one core does at most, by ``ceiling.c``; None where it cannot run."""
    return numbers("ceiling")


def summary(times: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, the least and the quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": middle / 1e3, "least_ms": min(times) / 1e3, "quartiles_ms": [low / 1e3, high / 1e3]}  # type: ignore[dict-item]


def names_of_layers(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, list[str]]]:
    """Layer of the model → its node, and the names that an engine may know it by: its own, then of what follows it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in model.graph.node:
        if node.op_type in LAYERS:
            names, last = [node.name, node.output[0]], node
            for _ in range(CHAIN):
                following = readers.get(last.output[0], [])
                if len(following) != 1 or following[0].op_type in LAYERS:
                    break
                last = following[0]
                names += [last.name, last.output[0]]
            found[node.name] = node, names
    return found


def layer_times(model: onnx.ModelProto, times: dict[str, float]) -> dict[str, float]:
    """Microseconds of the model's layers, from those of ONNX Runtime's nodes. Layers that cannot be told are left out."""
    plain: dict[str, float] = {}
    for name, spent in times.items():
        key = re.sub(r"(_nchwc|_quant|_token_\d+|/\w+Fusion/?)+$", "", name)
        plain[key] = plain.get(key, 0.0) + spent
    taken: set[str] = set()
    found = {}
    for layer, (_, names) in names_of_layers(model).items():
        key = next((name for name in names if name in plain and name not in taken), None)
        if key is not None:
            found[layer] = plain[key]
            taken.add(key)
    return found


def shape_text(node: onnx.NodeProto, types: dict[str, tuple[int, ...]]) -> str:
    """The layer in short: ``3x3 64-128 /2 @28``."""
    x, w, y = (types.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type != "Conv":
        return "x".join(map(str, x)) + (f" -> {y[-1]}" if y else "")
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    stride = next(iter(attrs.get("strides", [1])))
    group = f" group {attrs['group']}" if attrs.get("group", 1) != 1 else ""
    return f"{w[2]}x{w[3]} {x[1]}-{y[1]}" + (f" /{stride}" if stride != 1 else "") + f" @{y[2]}" + group


def layers_of(model: onnx.ModelProto, engines: dict[str, Engine], rounds: int) -> list[dict[str, Any]]:
    """Every layer of the model with each engine's time, which take turns. xnorc's covers whatever its kernel does too: scale,
    shortcut, bits."""
    ours = engines.get("xnorc")
    if not isinstance(ours, Xnorc):
        return []
    profiles = {
        name: profile
        for name, engine in engines.items()
        if name not in page.OURS[1:] and (profile := engine.profile()) is not None
    }
    for _ in range(rounds):
        for profile in profiles.values():
            profile.run(RUNS)
    found = {name: profile.times() for name, profile in profiles.items()}
    times = found.pop("xnorc")
    types = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    types |= {t.name: tuple(t.dims) for t in model.graph.initializer}
    others = {name: layer_times(model, spent) for name, spent in found.items()}
    steps = ours.package.manifest["steps"]
    rows = []
    for layer, (node, _) in names_of_layers(model).items():
        mine = [i for i, s in enumerate(steps) if any(n == layer or n.startswith(f"{layer}/") for n in s["nodes"])]
        product = max(mine, key=lambda i: steps[i]["macs"], default=None)
        row: dict[str, Any] = {"layer": layer, "op": node.op_type, "shape": shape_text(node, types), "us": {}}
        if product is not None:
            row |= {"kernel": steps[product]["op"].split("+")[0], "macs": max(steps[i]["macs"] for i in mine)}
            row["us"]["xnorc"] = sum(times[str(i)] for i in mine)
        for name, spent in others.items():
            if layer in spent:
                row["us"][name] = spent[layer]
        rows.append(row)
    return rows


def start(network: Network, model: onnx.ModelProto, feeds: dict[str, np.ndarray], args: argparse.Namespace,
          folder: Path) -> tuple[dict[str, Engine], dict[str, str]]:  # fmt: skip
    """The engines that can run this network, and why the others cannot."""
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name in args.peers:
        try:
            if name == "xnorc":
                package = xnorc.compile(model, "host", name=network.name, sign_zero=SIGN_ZERO.get(network.name))
                engines[name] = Xnorc(package, feeds, args.threads)
            elif name == "xnorc-int8":
                package = xnorc.compile(
                    model, "host", name=network.name, sign_zero=SIGN_ZERO.get(network.name),
                    float_layers="int8", calibration=feeds,
                )  # fmt: skip
                if not any(step["op"].startswith("Integer") for step in package.manifest["steps"]):
                    raise PeerError("it has no float layers to make int8")
                engines[name] = Xnorc(package, feeds, args.threads)
            elif name == "onnxruntime":
                onnx.save(model, folder / "float.onnx")
                engines[name] = OnnxRuntime(str(folder / "float.onnx"), feeds, args.threads, name)
            elif name == "onnxruntime-int8":
                engines[name] = OnnxRuntime(str(quantized(model, feeds, folder)), feeds, args.threads, name)
            elif not network.larq:
                missing[name] = network.note
            else:
                engines[name] = Larq(args.larq, network.name, args.threads)
        except PeerError as error:
            missing[name] = str(error)
    return engines, missing


def measure(network: Network, args: argparse.Namespace) -> dict[str, Any]:
    """One network on all engines, in turns."""
    module, inputs = make(network), network.inputs()
    # Quantizers of random networks have values on their edges: what is run is checked layer by layer, below.
    model = xnorc.export(module, inputs, check=False).model
    feeds = {info.name: value.numpy() for info, value in zip(model.graph.input, inputs, strict=True)}
    with tempfile.TemporaryDirectory() as temporary:
        engines, missing = start(network, model, feeds, args, Path(temporary))
        times: dict[str, list[float]] = {name: [] for name in engines}
        try:
            for engine in engines.values():
                engine.run(2)
            for _ in range(args.rounds):
                for name, engine in engines.items():
                    times[name] += engine.run(1)
            record: dict[str, Any] = {
                "title": network.title,
                "rounds": args.rounds,
                "sign_zero": SIGN_ZERO.get(network.name),
                "engines": {name: summary(found) | {"bytes": engines[name].bytes} for name, found in times.items()},
                "missing": missing,
                "layers": layers_of(model, engines, max(3, args.rounds // 3)),
            }
            if isinstance(ours := engines.get("xnorc"), Xnorc):
                steps = ours.package.manifest["steps"]
                record["macs"] = sum(step["macs"] for step in steps)
                record["memory"] = {k: v for k, v in ours.package.manifest["memory"].items() if k != "plan"}
                result = ours.package.validate("host", model=model)
                record["validated"] = bool(result.ok)
        finally:
            for engine in engines.values():
                engine.close()
        boards = {}
        for board in args.pi:
            boards[board] = modelled(network, model, board, Path(temporary))
        if boards:
            record["modelled"] = boards
    return record


def modelled(network: Network, model: onnx.ModelProto, board: str, folder: Path) -> dict[str, Any]:
    """A board's modelled time (see docs/performance.md)."""
    from xnorc.runtimes.cycles import model_cycles

    path = folder / f"{board}.xnorc"
    xnorc.compile(model, board, name=network.name, sign_zero=SIGN_ZERO.get(network.name), output=path)
    result = model_cycles(xnorc.load(path))
    binary = [step for step in result.steps if step.op.startswith(("BinaryConv", "BinaryGemm")) and step.cycles]
    cycles, macs = sum(step.cycles or 0.0 for step in binary), sum(step.macs for step in binary)
    return {
        "board": result.board, "ghz": result.ghz, "ms": result.ms, "instructions": result.instructions,
        "memory_ms": sum(step.memory_ms for step in result.steps),
        "binary_mac_per_cycle": macs / cycles if cycles else None,
    }  # fmt: skip


def best(one: dict[str, float] | None, other: dict[str, float] | None) -> dict[str, float] | None:
    """Of several tries of the ceilings the best: another program may have had the core."""
    return {key: max(value, other[key]) for key, value in one.items()} if one and other else one or other


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """What is newly known of a network, and what was not measured or modelled this time as it was."""
    if old is None:
        return new
    boards = {**old.get("modelled", {}), **new.get("modelled", {})}
    return (new if new["engines"] else old) | ({"modelled": boards} if boards else {})


def say(record: dict[str, Any], ceiling: dict[str, float] | None) -> None:
    """Print one network."""
    print(f"\n{record['title']}", flush=True)
    base = record["engines"].get("xnorc", {}).get("median_ms")
    for name, found in record["engines"].items():
        low, high = found["quartiles_ms"]
        ratio = f"{found['median_ms'] / base:6.2f} x xnorc" if base else ""
        print(
            f"  {name:17} {found['median_ms']:9.3f} ms  (quartiles {low:.3f}-{high:.3f}, "
            f"least {found['least_ms']:.3f})  {ratio}"
        )
    for name, why in record["missing"].items():
        print(f"  {name:17} not measured: {why}")
    for board, found in record.get("modelled", {}).items():
        print(
            f"  {board:17} {found['ms']:9.3f} ms  modelled, not measured: {found['board']} at {found['ghz']:g} GHz, 1 thread"
        )
    names = [name for name in record["engines"] if any(name in row["us"] for row in record["layers"])]
    if record["layers"]:
        print(
            f"  {'layer':34} {'kernel':16}" + "".join(f"{name + ' us':>21}" for name in names) + "  GMAC/s  of ceiling"
        )
    for row in record["layers"]:
        cells = "".join(f"{row['us'][name]:21.1f}" if name in row["us"] else f"{'':21}" for name in names)
        rate = row.get("macs", 0) / row["us"]["xnorc"] / 1e3 if row["us"].get("xnorc") else 0.0
        part = page.part_of_ceiling(row, ceiling)
        print(
            f"  {row['shape']:34} {row.get('kernel', ''):16}{cells}  {rate:6.1f}  {'' if part is None else format(part, '.0%')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=list(PEERS),
        help="engines; with none given only boards are modelled",
    )
    parser.add_argument("--rounds", type=int, default=30, help="runs of each engine, in turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pi", nargs="*", default=[], help="boards whose time is modelled (rpi4, rpi5, rpi3, ...)")
    parser.add_argument("--larq", type=Path, default=ROOT / "build" / "larq", help="Larq's environment")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--svg", type=Path, help="draw the networks here")
    parser.add_argument("--save", action="store_true", help="put the result into docs/ and render the page")
    features = xnorc.targets.get("host").features
    parser.add_argument("--page", choices=page.PAGES, default=page.page_of(features), help="in docs/ [this machine's]")
    parser.add_argument("--render", action="store_true", help="measure nothing: the page of the stored result")
    args = parser.parse_args()
    path = page.path_of(args.page)
    stored = json.loads(path.read_text()) if path.exists() else {}
    if args.render:
        if not stored:
            parser.error(f"there is no {path}: measure with --save")
        page.write(stored, args.page)
        return
    if args.rounds < 2:
        parser.error("--rounds must be at least 2")
    facts: dict[str, Any] = {"machine": machine(args.threads), "ceiling": ceilings(), "networks": {}}
    print(", ".join(f"{key} {value}" for key, value in facts["machine"].items() if key != "features"))
    print(f"ceiling of one core: {facts['ceiling']}")
    for name in args.models:
        facts["networks"][name] = measure(NETWORKS[name], args)
        facts["ceiling"] = best(facts["ceiling"], ceilings())
        say(facts["networks"][name], facts["ceiling"])
        if args.json:
            args.json.write_text(page.text(facts))
    if args.svg:
        args.svg.write_text(page.picture(facts))
    if args.save:
        kept = stored.get("networks", {})
        facts["networks"] = {**kept, **{name: merged(kept.get(name), one) for name, one in facts["networks"].items()}}
        if not args.peers and stored:
            facts |= {key: stored[key] for key in ("machine", "ceiling")}
        elif set(kept) - set(args.models):  # the ceiling of all that the page has: the best of the tries so far
            facts["ceiling"] = best(facts["ceiling"], stored.get("ceiling"))
        facts["networks"] = {name: facts["networks"][name] for name in NETWORKS if name in facts["networks"]}
        path.write_text(page.text(facts))
        page.write(json.loads(path.read_text()), args.page)  # of the figures as they are stored


if __name__ == "__main__":
    main()
