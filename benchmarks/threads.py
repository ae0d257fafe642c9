"""What a second thread brings: xnorc and ONNX Runtime (float32) with one thread and with more, in turns within one run.

    python benchmarks/threads.py [--models bireal18 quicknet] [--threads 2] [--rounds 40]

Every engine keeps its own pool for the whole run; those that wait sleep. In its turn an engine runs a few times in a row,
all of which count. The machine must have that many free cores. How free they were, and what they can give at most, is in
the line "apart": as many engines of one thread each beside one, each on inputs of its own at the same time.

How many times faster more threads are is said in three ways: by the medians of all runs; by turns, which is the median over
the rounds of what a round's own turns say, so that a clock that changes from one second to the next hits both sides alike;
and by the least times, where nothing else had a core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
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


REST = 0.05
"""Seconds between rounds: the threads of ONNX Runtime, which comes last, spin on for a while."""


def by_turns(one: Sequence[float], more: Sequence[float]) -> float:
    """How many times faster ``more`` is: the median of what neighbouring turns of `RUNS` say."""
    turns = [[sum(times[i : i + RUNS]) for i in range(0, len(times), RUNS)] for times in (one, more)]
    return statistics.median(a / b for a, b in zip(*turns, strict=True))


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
            ("xnorc", 1, Xnorc(package, feeds, counts[1])),
            ("apart", 1, Apart([Xnorc(package, feeds, 1) for _ in range(counts[1])])),
            ("onnxruntime", 0, OnnxRuntime(str(path), feeds, counts[0], "onnxruntime")),
            ("onnxruntime", 1, OnnxRuntime(str(path), feeds, counts[1], "onnxruntime")),
        ]
        times: dict[str, list[list[float]]] = {kind: [[], []] for kind in ("xnorc", "onnxruntime", "apart")}
        for _, _, engine in engines:
            engine.run(3)
        for _ in range(rounds):
            for kind, place, engine in engines:
                times[kind][place] += [us / 1e3 for us in engine.run(RUNS)]
            time.sleep(REST)
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
    threads = f"{args.threads} threads"
    print(f"{'network':16} {'engine':12} {'1 thread':>20} {threads:>20}  times: by medians, by turns, by the least")
    for name in args.models:
        for engine, (one, more) in measure(name, (1, args.threads), args.rounds).items():
            medians = [statistics.median(found) for found in (one, more)]
            cells = "".join(f"{m:11.2f} ({min(f):.2f})".rjust(21) for m, f in zip(medians, (one, more), strict=True))
            print(
                f"{name:16} {engine:12}{cells}  {medians[0] / medians[1]:.2f}, "
                f"{by_turns(one, more):.2f}, {min(one) / min(more):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
