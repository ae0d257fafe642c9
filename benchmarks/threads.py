"""What a second thread brings: xnorc and ONNX Runtime (float32) with one thread and with more, in turns within one run.

    python benchmarks/threads.py [--models bireal18 quicknet] [--threads 2] [--rounds 40]

Every engine keeps its own pool for the whole run; those that wait sleep. In its turn an engine runs a few times in a row,
all of which count. The machine must have that many free cores. How free they were, and what they can give at most, is in
the line "apart": as many engines of one thread each beside one, each on inputs of its own at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
from models import NETWORKS, make
from networks import SIGN_ZERO
from peers import Engine, OnnxRuntime, Xnorc

import xnorc

RUNS = 5
"""Runs of an engine in a row, in every turn."""


class Apart(Engine):
    """Engines that run at the same time; a run's time is that of the slowest, by their number."""

    name = "apart"

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self._pool = ThreadPoolExecutor(len(engines))

    def run(self, count: int) -> list[float]:
        times = list(self._pool.map(lambda engine: engine.run(count), self.engines))
        return [max(together) / len(self.engines) for together in zip(*times, strict=True)]

    def close(self) -> None:
        self._pool.shutdown()
        for engine in self.engines:
            engine.close()


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
        engines: list[tuple[str, int, Engine]] = [
            ("xnorc", 0, Xnorc(package, feeds, counts[0])),
            ("onnxruntime", 0, OnnxRuntime(str(path), feeds, counts[0], "onnxruntime")),
            ("xnorc", 1, Xnorc(package, feeds, counts[1])),
            ("apart", 1, Apart([Xnorc(package, feeds, 1) for _ in range(counts[1])])),
            # The last one: its threads spin on for a while.
            ("onnxruntime", 1, OnnxRuntime(str(path), feeds, counts[1], "onnxruntime")),
        ]
        times: dict[str, list[list[float]]] = {kind: [[], []] for kind in ("xnorc", "onnxruntime", "apart")}
        for _, _, engine in engines:
            engine.run(3)
        for _ in range(rounds):
            for kind, place, engine in engines:
                times[kind][place] += [us / 1e3 for us in engine.run(RUNS)]
        for _, _, engine in engines:
            engine.close()
    times["apart"][0] = times["xnorc"][0]
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
