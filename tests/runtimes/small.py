"""A small binary network, and a device that runs its packed model node by node in ONNX Runtime, with faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import xnorc
from xnorc import golden
from xnorc.runtimes.device import Device, Mode, Session
from xnorc.targets import get

Fault = Callable[[str, np.ndarray, Mode], np.ndarray]
"""Called with the name of a tensor that a step wrote, its value, and the mode; returns what the device has in its place."""


def build(seed: int = 0, **replaced: np.ndarray) -> onnx.ModelProto:
    """``x [1, 2, 6, 6] → Conv → sign → Conv ±1 → · scale → sign → Conv ±1 → · scale → Gemm → logits [1, 3]``."""
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.standard_normal((8, 2, 3, 3)).astype(np.float32),
        "b1": rng.standard_normal(8).astype(np.float32),
        "w2": np.where(rng.integers(0, 2, (16, 8, 3, 3)) > 0, 1, -1).astype(np.float32),
        "s2": (rng.standard_normal((16, 1, 1)) / 8).astype(np.float32),
        "w3": np.where(rng.integers(0, 2, (5, 16, 3, 3)) > 0, 1, -1).astype(np.float32),
        "s3": (rng.standard_normal((5, 1, 1)) / 8).astype(np.float32),
        "w4": (rng.standard_normal((3, 20)) / 4).astype(np.float32),
        "b4": rng.standard_normal(3).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "one": np.ones((), np.float32),
        "minus": -np.ones((), np.float32),
    } | replaced

    def sign(x: str, name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Greater", [x, "zero"], [f"{name}_above"], f"{name}_greater"),
            helper.make_node("Where", [f"{name}_above", "one", "minus"], [name], f"{name}_where"),
        ]

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv1"], "conv1_node", pads=[1, 1, 1, 1]),
        *sign("conv1", "sign1"),
        helper.make_node("Conv", ["sign1", "w2"], ["conv2"], "conv2_node"),
        helper.make_node("Mul", ["conv2", "s2"], ["scaled2"], "scale2_node"),
        *sign("scaled2", "sign2"),
        helper.make_node("Conv", ["sign2", "w3"], ["conv3"], "conv3_node"),
        helper.make_node("Mul", ["conv3", "s3"], ["scaled3"], "scale3_node"),
        helper.make_node("Flatten", ["scaled3"], ["flat"], "flatten_node"),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], "gemm_node", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def data(samples: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, 1, 2, 6, 6)).astype(np.float32)


@dataclass
class SmallPackage:
    """A package without code: every node of the packed model is a step, run by ``SmallDevice``."""

    original: onnx.ModelProto
    packed_model: onnx.ModelProto
    manifest: dict[str, Any]
    name: str = "small"
    target = get("rpi4")

    @staticmethod
    def of(original: onnx.ModelProto, packed: onnx.ModelProto | None = None) -> SmallPackage:
        packed = packed or xnorc.optimize(original).model
        values = everything(packed, {"x": data(1)[0]})
        names = list(values)
        tensors = [{"name": n, "dtype": str(v.dtype), "shape": list(v.shape)} for n, v in values.items()]
        steps = [
            {
                "name": node.name,
                "op": node.op_type,
                "kind": "integer" if values[node.output[0]].dtype.kind in "iu" else "float",
                "reads": [names.index(name) for name in node.input if name in names],
                "writes": [names.index(node.output[0])],
                "nodes": [node.name],
                "macs": 1_000_000,
            }
            for node in packed.graph.node
        ]
        memory = {"arena_bytes": 0, "workspace_bytes": 0, "max_threads": 1}
        manifest = {
            "tensors": tensors,
            "steps": steps,
            "memory": memory,
            "inputs": [0],
            "outputs": [names.index("logits")],
        }
        return SmallPackage(original, packed, manifest)

    def model(self) -> onnx.ModelProto:
        return self.original

    def packed(self) -> onnx.ModelProto:
        return self.packed_model

    def golden(self) -> dict[str, np.ndarray]:
        return {"input/x": data(2), "output/logits": np.zeros((2, 1, 3), np.float32)}


def everything(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [name for node in model.graph.node for name in node.output]
    return {**feeds, **golden.run(model, feeds, names)}


class SmallDevice(Device):
    name = "small"

    def __init__(self, fault: Fault = lambda name, value, mode: value) -> None:
        self.fault = fault

    def open(self, package: Any, threads: int = 1) -> SmallSession:
        return SmallSession(package, self.fault)


class SmallSession(Session):
    def __init__(self, package: SmallPackage, fault: Fault) -> None:
        super().__init__("small", package, 1)  # type: ignore[arg-type]
        self.fault = fault
        graph = package.packed_model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.sessions: dict[str, Any] = {}
        self.nodes = list(graph.node)

    def close(self) -> None:
        pass

    def _step(self, node: onnx.NodeProto, values: dict[str, np.ndarray], mode: Mode) -> np.ndarray:
        feeds = {name: values[name] if name in values else self.constants[name] for name in node.input}
        if node.name not in self.sessions:
            model = golden.small_model([node], feeds, node.output)
            self.sessions[node.name] = golden.session(model)
        value = golden.run(self.sessions[node.name], feeds)[node.output[0]]
        return np.ascontiguousarray(self.fault(node.output[0], value.copy(), mode))

    def exchange(self, mode: Mode, request: Any, count: int, progress: Any = None) -> bytes:
        tensors, steps = self.package.manifest["tensors"], self.package.manifest["steps"]
        data, out = memoryview(request), []

        def take(index: int) -> np.ndarray:
            nonlocal data
            shape, dtype = tensors[index]["shape"], np.dtype(tensors[index]["dtype"])
            size = int(np.prod(shape)) * dtype.itemsize
            value, data = np.frombuffer(data[:size], dtype).reshape(shape), data[size:]
            return value

        for _ in range(count):
            values = {} if mode is Mode.LAYERS else {tensors[0]["name"]: take(0)}
            for step, node in zip(steps, self.nodes, strict=True):
                if mode is Mode.LAYERS:
                    values = {tensors[index]["name"]: take(index) for index in step["reads"]}
                values[node.output[0]] = self._step(node, values, mode)
                if mode in (Mode.TRACE, Mode.LAYERS):
                    out.append(values[node.output[0]].tobytes())
                if mode is Mode.BENCH:
                    out.append(np.uint64(2000).tobytes())
            if mode is Mode.RUN:
                out.append(values["logits"].tobytes())
        return b"".join(out)
