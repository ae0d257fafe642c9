"""Runs in a process of its own, so that a crash of a kernel or of TVM takes nobody along.

``lower <jobs> <results>``: lowers pickled models one by one, a JSON line for each. ``run <job> <results>``: compiles one
pickled model, feeds it, and pickles what it gives.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import onnx

from xnorc import targets
from xnorc.errors import UnsupportedError, XnorcError
from xnorc.lower.build import lower

from .harness import run_on_host


def lower_all(jobs: Path, results: Path) -> None:
    target = targets.get("host")
    with results.open("a") as file:
        for key, data in pickle.loads(jobs.read_bytes()):
            line = {"key": key, "refused": "", "crashed": ""}
            try:
                lower(onnx.ModelProto.FromString(data), target, "model")
            except XnorcError as error:
                line["refused"] = f"{error.op}: {error.reason}" if isinstance(error, UnsupportedError) else str(error)
            except Exception as error:
                line["crashed"] = f"{type(error).__name__}: {error}"
            file.write(json.dumps(line) + "\n")
            file.flush()


def run(job: Path, results: Path) -> None:
    data, feeds = pickle.loads(job.read_bytes())
    results.write_bytes(pickle.dumps(run_on_host(onnx.ModelProto.FromString(data), feeds)))


if __name__ == "__main__":
    {"lower": lower_all, "run": run}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
