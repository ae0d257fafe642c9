"""What a second thread brings: xnorc and ONNX Runtime (float32) with one thread and with more, in turns within one run.

    python benchmarks/threads.py [--models bireal18 quicknet] [--threads 2] [--rounds 40]

Every engine keeps its own pool for the whole run; those that wait sleep. The machine must have that many free cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import onnx
from models import NETWORKS, make
from networks import SIGN_ZERO
from peers import Engine, OnnxRuntime, Xnorc

import xnorc


def measure(name: str, counts: tuple[int, int], rounds: int) -> dict[str, list[list[float]]]:
    """Milliseconds of whole runs: engine → for either count of threads."""
    network = NETWORKS[name]
    inputs = network.inputs()
    model = xnorc.export(make(network), inputs, check=False).model
    feeds = {info.name: value.numpy() for info, value in zip(model.graph.input, inputs, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(model, path)
        package = xnorc.compile(model, "host", name=name, sign_zero=SIGN_ZERO.get(name))
        engines: list[tuple[str, int, Engine]] = []
        for place, threads in enumerate(counts):
            engines += [("xnorc", place, Xnorc(package, feeds, threads)),
                        ("onnxruntime", place, OnnxRuntime(str(path), feeds, threads, "onnxruntime"))]  # fmt: skip
        times: dict[str, list[list[float]]] = {"xnorc": [[], []], "onnxruntime": [[], []]}
        for _, _, engine in engines:
            engine.run(3)
        for _ in range(rounds):
            for kind, place, engine in engines:
                times[kind][place] += [us / 1e3 for us in engine.run(1)]
        for _, _, engine in engines:
            engine.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=["bireal18", "quicknet", "bibert"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    print(
        f"{'network':16} {'engine':12} {'1 thread':>20} {f'{args.threads} threads':>20}  ratio of medians, of the least"
    )
    for name in args.models:
        for engine, (one, more) in measure(name, (1, args.threads), args.rounds).items():
            medians = [statistics.median(found) for found in (one, more)]
            cells = "".join(f"{m:11.2f} ({min(f):.2f})".rjust(21) for m, f in zip(medians, (one, more), strict=True))
            print(
                f"{name:16} {engine:12}{cells}  {medians[0] / medians[1]:.2f}, {min(one) / min(more):.2f}", flush=True
            )


if __name__ == "__main__":
    main()
