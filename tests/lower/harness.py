"""Compile a packed (or plain float) model for the host and call it through its C interface, without a package."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx

from xnorc import targets
from xnorc.lower.build import compile_model
from xnorc.runtimes.device import parse_device


def aligned_buffer(size: int, alignment: int = 64) -> np.ndarray:
    raw = np.zeros(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size]


def run_on_host(model: onnx.ModelProto, feeds: dict[str, np.ndarray], name: str = "model") -> dict[str, np.ndarray]:
    built = compile_model(model, targets.get("host"), name)
    manifest = built.manifest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"lib{name}.so"
        path.write_bytes(built.members[f"lib{name}.so"])
        library = ctypes.CDLL(str(path))
        get_model = getattr(library, f"{name}_model")
        get_model.restype = ctypes.c_void_p
        library.xnorc_run.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2
        arena = aligned_buffer(manifest["memory"]["arena_bytes"])
        inputs, outputs = [], []
        for index in manifest["inputs"]:
            tensor = manifest["tensors"][index]
            inputs.append(aligned_buffer(max(1, np.dtype(tensor["dtype"]).itemsize * int(np.prod(tensor["shape"])))))
            value = np.ascontiguousarray(feeds[tensor["name"]])
            assert str(value.dtype) == tensor["dtype"]
            inputs[-1][: value.nbytes] = value.reshape(-1).view(np.uint8)
        for index in manifest["outputs"]:
            tensor = manifest["tensors"][index]
            size = np.dtype(tensor["dtype"]).itemsize * int(np.prod(tensor["shape"]))
            outputs.append(aligned_buffer(max(1, size))[:size])
        pointers = (ctypes.c_void_p * len(inputs))(*[x.ctypes.data for x in inputs])
        results = (ctypes.c_void_p * len(outputs))(*[x.ctypes.data for x in outputs])
        status = library.xnorc_run(get_model(), arena.ctypes.data, arena.nbytes, pointers, results)
        assert status == 0
    described = [manifest["tensors"][index] for index in manifest["outputs"]]
    return {
        tensor["name"]: data.view(tensor["dtype"]).reshape(tensor["shape"])
        for tensor, data in zip(described, outputs, strict=True)
    }


def run_emulated(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], target: str, name: str = "model"
) -> dict[str, np.ndarray]:
    """The same for another target, under QEMU."""
    built = compile_model(model, targets.get(target), name)
    package = SimpleNamespace(
        name=name,
        path=name,
        target=targets.get(target),
        manifest=built.manifest,
        member=lambda member: built.members[member.split("/", 1)[1]],
    )
    with parse_device("qemu").open(package) as session:
        return {key: value[0] for key, value in session.run({k: v[None] for k, v in feeds.items()}).items()}
