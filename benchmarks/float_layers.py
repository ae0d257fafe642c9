"""Float layers on this machine: xnorc (target ``host``) against ONNX Runtime, both float32 on one thread.

Each layer is a model of one node. Both sides are measured in turns, so that what else the machine does hits both.

    python benchmarks/float_layers.py [--rounds 30] [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from xnorc import targets
from xnorc.lower.build import compile_model
from xnorc.opset import IR_VERSION, STANDARD_OPSET

ALIGNMENT = 64


@dataclass(frozen=True)
class Layer:
    """One node: ``shape`` is the input's, ``constants`` those of its other inputs; ``macs`` where it multiplies."""

    name: str
    op: str
    shape: tuple[int, ...]
    constants: tuple[tuple[int, ...] | list[int], ...] = ()
    attrs: dict[str, Any] | None = None
    second: tuple[int, ...] | None = None
    """Shape of a second input that is not constant."""


def conv(name: str, channels: int, out: int, size: int, kernel: int, stride: int = 1, group: int = 1) -> Layer:
    attrs = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
    return Layer(name, "Conv", (1, channels, size, size), ((out, channels // group, kernel, kernel), (out,)), attrs)


LAYERS = [
    conv("stem 7x7/2 3-64 @224", 3, 64, 224, 7, 2),
    conv("stem 3x3/2 3-32 @224", 3, 32, 224, 3, 2),
    conv("stem 3x3/2 3-16 @224", 3, 16, 224, 3, 2),
    conv("quicknet stem 3x3/2 dw 16 @112", 16, 16, 112, 3, 2, 16),
    conv("quicknet stem 1x1 16-64 @56", 16, 64, 56, 1),
    conv("conv 3x3 3-32 @32", 3, 32, 32, 3),
    conv("conv 3x3 64-64 @56", 64, 64, 56, 3),
    conv("conv 3x3 256-256 @14", 256, 256, 14, 3),
    conv("conv 1x1 64-128 @28", 64, 128, 28, 1),
    conv("conv 1x1/2 128-256 @28", 128, 256, 28, 1, 2),
    conv("depthwise 3x3 128 @28", 128, 128, 28, 3, 1, 128),
    conv("conv 1x1 256-512 @7", 256, 512, 7, 1),
    conv("depthwise 3x3/2 64 @112", 64, 64, 112, 3, 2, 64),
    conv("depthwise 5x5 96 @14", 96, 96, 14, 5, 1, 96),
    Layer("gemm 1x512-1000", "Gemm", (1, 512), ((512, 1000), (1000,))),
    Layer("gemm 1x1024-1000", "Gemm", (1, 1024), ((1024, 1000), (1000,))),
    Layer("matmul 128x768x768", "MatMul", (128, 768), ((768, 768),)),
    Layer("matmul 12x(128x64x128)", "MatMul", (12, 128, 64), second=(12, 64, 128)),
    Layer("softmax 12x128x128", "Softmax", (12, 128, 128), attrs={"axis": -1}),
    Layer("layernorm 128x768", "LayerNormalization", (128, 768), ((768,), (768,)), {"axis": -1}),
    Layer("maxpool 3x3/2 64 @112", "MaxPool", (1, 64, 112, 112),
          attrs={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    Layer("averagepool 2x2/2 64 @56", "AveragePool", (1, 64, 56, 56), attrs={"kernel_shape": [2, 2], "strides": [2, 2]}),
    Layer("maxpool 2x2/2 128 @28", "MaxPool", (1, 128, 28, 28), attrs={"kernel_shape": [2, 2], "strides": [2, 2]}),
    Layer("reduce mean 512 @7", "ReduceMean", (1, 512, 7, 7), ([2, 3],), {"keepdims": 0}),
    Layer("relu 64 @56", "Relu", (1, 64, 56, 56)),
    Layer("batchnorm 64 @56", "BatchNormalization", (1, 64, 56, 56), ((64,),) * 4),
]  # fmt: skip


def model_of(layer: Layer) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal(layer.shape, np.float32)}
    if layer.second:
        feeds["x2"] = rng.standard_normal(layer.second, np.float32)
    values = [
        np.array(shape, np.int64) if isinstance(shape, list) else rng.uniform(0.1, 1, shape).astype(np.float32)
        for shape in layer.constants
    ]
    constants = [numpy_helper.from_array(value, f"c{i}") for i, value in enumerate(values)]
    node = helper.make_node(layer.op, [*feeds, *(c.name for c in constants)], ["y"], name="layer", **layer.attrs or {})
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, feed.shape) for name, feed in feeds.items()]
    graph = helper.make_graph([node], "layer", inputs, [helper.make_empty_tensor_value_info("y")], constants)
    opsets = [helper.make_opsetid("", STANDARD_OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True), feeds


def aligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    made = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def xnorc_runner(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> Callable[[], np.ndarray]:
    built = compile_model(model, targets.get("host"), "layer")
    library_file = folder / "liblayer.so"
    library_file.write_bytes(built.members["liblayer.so"])
    library = ctypes.CDLL(str(library_file))
    library.layer_model.restype = ctypes.c_void_p
    library.xnorc_run.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2
    tensors = built.manifest["tensors"]
    arena = aligned(np.zeros(built.manifest["memory"]["arena_bytes"], np.uint8))
    inputs = [aligned(feeds[tensors[i]["name"]]) for i in built.manifest["inputs"]]
    output = tensors[built.manifest["outputs"][0]]
    result = aligned(np.zeros(output["shape"], output["dtype"]))
    pointers = (ctypes.c_void_p * len(inputs))(*[x.ctypes.data for x in inputs])
    results = (ctypes.c_void_p * 1)(result.ctypes.data)

    def run(kept: list[np.ndarray] = inputs) -> np.ndarray:  # the pointers alone do not keep the inputs
        if library.xnorc_run(library.layer_model(), arena.ctypes.data, arena.nbytes, pointers, results):
            raise RuntimeError("xnorc_run failed")
        return result

    return run


def onnxruntime_runner(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, feed in feeds.items():
        binding.bind_cpu_input(name, feed)
    binding.bind_output("y")

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    return run


def measure(layer: Layer, rounds: int) -> dict[str, Any]:
    model, feeds = model_of(layer)
    with tempfile.TemporaryDirectory() as folder:
        runners = [xnorc_runner(model, feeds, Path(folder)), onnxruntime_runner(model, feeds)]
        ours, theirs = (run() for run in runners)
        error = float(np.abs(ours - theirs).max() / max(1e-30, float(np.abs(theirs).max())))
        start = time.perf_counter()
        runners[0]()
        repeats = max(1, int(0.003 / max(1e-7, time.perf_counter() - start)))
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for run, found in zip(runners, times, strict=True):
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                found.append((time.perf_counter() - start) / repeats)
    ours_ms, theirs_ms = (statistics.median(found) * 1e3 for found in times)
    macs = 0
    if layer.op == "Conv":
        macs = int(ours.size * np.prod(layer.constants[0][1:]))
    elif layer.op in ("Gemm", "MatMul"):
        macs = int(ours.size * layer.shape[-1])
    return {"layer": layer.name, "macs": macs, "xnorc_ms": ours_ms, "onnxruntime_ms": theirs_ms,
            "ratio": theirs_ms / ours_ms, "relative_error": error}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each side of each layer")
    parser.add_argument("--only", nargs="*", default=[], help="layers whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args()
    print(f"{'layer':31} {'xnorc ms':>9} {'ORT ms':>9} {'ORT/xnorc':>9} {'GMAC/s':>7}")
    rows = []
    for layer in LAYERS:
        if arguments.only and not any(word in layer.name for word in arguments.only):
            continue
        row = measure(layer, arguments.rounds)
        rows.append(row)
        speed = f"{row['macs'] / row['xnorc_ms'] / 1e6:7.1f}" if row["macs"] else ""
        print(f"{row['layer']:31} {row['xnorc_ms']:9.3f} {row['onnxruntime_ms']:9.3f} {row['ratio']:9.2f} {speed}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
