"""The engines that ``networks.py`` sets side by side: each runs one network on demand and says how long it took."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnxruntime

import xnorc
from xnorc.runtimes.device import Mode, parse_device

WORKER = Path(__file__).resolve().parent / "larq_worker.py"
CALIBRATION_SAMPLES = 8


class PeerError(RuntimeError):
    """A peer cannot run here, or not this network."""


class Engine:
    """One network on one engine. ``run`` gives times of whole runs in microseconds; ``close`` when done."""

    name = ""
    bytes = 0
    """What it keeps on disk for this network: weights and, for xnorc, the code."""

    def run(self, count: int) -> list[float]:
        raise NotImplementedError

    def profile(self) -> Profile | None:
        """A way to time its layers, where the engine can tell."""
        return None

    def close(self) -> None:
        """Give everything back."""


class Profile:
    """Times of a network's layers. ``times`` closes it: medians in microseconds, by the engine's names."""

    def run(self, count: int) -> None:
        """Run so often more."""
        raise NotImplementedError

    def times(self) -> dict[str, float]:
        raise NotImplementedError


class Xnorc(Engine):
    """A package for this machine, in this process."""

    name = "xnorc"

    def __init__(self, package: xnorc.Package, feeds: Mapping[str, np.ndarray], threads: int) -> None:
        self.package, self.feeds = package, {name: value[None] for name, value in feeds.items()}
        self.bytes = len(package.member(f"lib/lib{package.name}.so"))
        self._stack = ExitStack()
        self.session = self._stack.enter_context(parse_device("host").open(package, threads))
        names = [package.manifest["tensors"][index]["name"] for index in package.manifest["inputs"]]
        self._request = b"".join(np.ascontiguousarray(feeds[name]).tobytes() for name in names)

    def run(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self.session.exchange(Mode.RUN, self._request, 1)
            times.append((time.perf_counter() - start) * 1e6)
        return times

    def profile(self) -> Profile:
        return XnorcProfile(self)

    def close(self) -> None:
        self._stack.close()


class OnnxRuntime(Engine):
    """ONNX Runtime with all its graph optimizations, inputs bound once."""

    def __init__(self, model: str, feeds: Mapping[str, np.ndarray], threads: int, name: str) -> None:
        self.name, self.model, self.feeds, self.threads = name, model, feeds, threads
        self.bytes = Path(model).stat().st_size
        self._run, _ = self._bound(self._options())

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.threads > 1 else "0")
        options.log_severity_level = 3
        return options

    def _bound(self, options: onnxruntime.SessionOptions):
        session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, feed in self.feeds.items():
            binding.bind_cpu_input(name, feed)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        return (lambda: session.run_with_iobinding(binding)), session

    def run(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self._run()
            times.append((time.perf_counter() - start) * 1e6)
        return times

    def profile(self) -> Profile:
        return OnnxRuntimeProfile(self)


class XnorcProfile(Profile):
    """By the number of the step."""

    def __init__(self, engine: Xnorc) -> None:
        self._engine = engine
        self._found: list[np.ndarray] = []

    def run(self, count: int) -> None:
        self._found += list(self._engine.session.bench(self._engine.feeds, count, 1))

    def times(self) -> dict[str, float]:
        return {str(i): float(time) / 1000 for i, time in enumerate(np.median(self._found, axis=0))}


class OnnxRuntimeProfile(Profile):
    """By the name in ONNX Runtime's own graph: its products (convolution, Gemm, MatMul)."""

    def __init__(self, engine: OnnxRuntime) -> None:
        self._folder = tempfile.TemporaryDirectory()
        options = engine._options()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(self._folder.name) / "profile")
        self._run, self._session = engine._bound(options)

    def run(self, count: int) -> None:
        for _ in range(count):
            self._run()

    def times(self) -> dict[str, float]:
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_text())
        found: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
                continue
            if any(product in event["args"]["op_name"] for product in ("Conv", "Gemm", "MatMul")):
                found.setdefault(event["name"].removesuffix("_kernel_time"), []).append(float(event["dur"]))
        return {name: float(np.median(times)) for name, times in found.items()}


class Larq(Engine):
    """Larq Compute Engine in a process of its own."""

    name = "larq"

    def __init__(self, environment: Path, network: str, threads: int) -> None:
        python = environment / "bin" / "python"
        if not python.exists():
            raise PeerError(f"there is no {python}: benchmarks/larq_environment.sh makes it")
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, WORKER, network, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        first = self._line()
        if not first.startswith("ready "):
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise PeerError(f"Larq failed: {lines[-1] if lines else 'it said nothing'}")
        self.bytes = int(first.split()[1])

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, count: int) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        times = [float(word) for word in self._line().split()]
        if len(times) != count:
            raise PeerError("Larq stopped")
        return times

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        self._errors.close()


def quantized(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], folder: Path) -> Path:
    """ONNX Runtime's static int8 form of a model (QDQ, a scale a channel), calibrated on noise like ``feeds``."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = CALIBRATION_SAMPLES

        def get_next(self) -> dict[str, np.ndarray] | None:
            if not self.left:
                return None
            self.left -= 1
            rng = np.random.default_rng(self.left)
            return {name: rng.permutation(feed.reshape(-1)).reshape(feed.shape) for name, feed in feeds.items()}

    logging.getLogger().setLevel(logging.ERROR)  # it warns of every vector that has no second axis
    source, prepared, target = folder / "float.onnx", folder / "prepared.onnx", folder / "int8.onnx"
    onnx.save(model, source)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, target, Noise(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target
