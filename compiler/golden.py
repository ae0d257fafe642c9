"""ONNX Runtime as the judge: what a model computes, and what any tensor inside it holds.

Sessions run on the CPU with every graph optimization disabled, so that each node computes what the graph says, in the
graph's own order. ONNX Runtime is imported when the first session is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from .errors import InputError, ModelError
from .opset import DOMAIN, IR_VERSION, STANDARD_OPSET, VERSION, functions

if TYPE_CHECKING:
    import onnxruntime

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported: it would report to its maker

_FLOATS = (np.float32, np.float64, np.float16)


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of an error of another library on one line, at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def with_outputs(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` whose graph outputs are exactly ``outputs``, which may be any tensors of the graph.

    Raises ``ModelError`` when the graph has no tensor of that name.
    """
    known = {info.name: info for info in [*model.graph.input, *model.graph.value_info, *model.graph.output]}
    defined = {name for node in model.graph.node for name in node.output}
    defined |= set(known) | {tensor.name for tensor in model.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for name in outputs:
        if name not in defined:
            raise ModelError(f"the model has no tensor '{name}'")
        info = known.get(name)
        copy.graph.output.append(info if info is not None else onnx.ValueInfoProto(name=name))
    return copy


def session(
    model: onnx.ModelProto, outputs: Sequence[str] | None = None, *, threads: int = 1
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, graph optimizations disabled, ``threads`` threads (0: ONNX Runtime chooses).

    ``outputs`` replaces the model's outputs; inner tensors are allowed. Raises ``ModelError`` when ONNX Runtime refuses
    the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Prepacked weights take another GEMM path: without this a weight gives other bits when it is constant.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4  # a failure raises: without this it is printed as well
    try:
        proto = model if outputs is None else with_outputs(model, outputs)
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error
    except Exception as error:
        # The classes of onnxruntime's binding share no public base class but Exception.
        if type(error).__module__.startswith("onnxruntime"):
            raise ModelError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error
        raise


def run(
    model: onnx.ModelProto | onnxruntime.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Run a model (or a session) once; returns output name → array.

    With a model, ``outputs`` may name any tensor inside it; with a session, only the session's own outputs. Raises
    ``InputError`` when the feeds do not fit, ``ModelError`` when the model cannot be loaded.
    """
    active = session(model, outputs) if isinstance(model, onnx.ModelProto) else model
    expected = {arg.name for arg in active.get_inputs()}
    if missing := sorted(expected - set(feeds)):
        raise InputError(f"no data for input '{missing[0]}': the model reads {', '.join(sorted(expected))}")
    names = list(outputs) if outputs is not None else [arg.name for arg in active.get_outputs()]
    if not names:
        return {}
    used: dict[str, Any] = {name: np.asarray(value) for name, value in feeds.items() if name in expected}
    try:
        values = active.run(names, used)
    except Exception as error:
        if isinstance(error, (RuntimeError, ValueError)) or type(error).__module__.startswith("onnxruntime"):
            raise InputError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        raise
    return dict(zip(names, (np.asarray(value) for value in values), strict=True))


def small_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    opset: int = STANDARD_OPSET,
    initializers: Mapping[str, np.ndarray] | None = None,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of ``nodes`` (topologically sorted), with inputs typed like the given arrays.

    ``domains``: versions of the domains other than the standard one and ``ai.xnorc`` that the nodes use.
    """
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    graph = helper.make_graph(
        nodes, "part", infos, [onnx.ValueInfoProto(name=name) for name in outputs], initializer=constants
    )
    own = sorted({node.op_type for node in nodes if node.domain == DOMAIN})
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(DOMAIN, VERSION)] if own else [])
    imports += [helper.make_opsetid(domain, version) for domain, version in sorted((domains or {}).items())]
    return helper.make_model(
        graph, opset_imports=imports, functions=functions(own, opset), ir_version=IR_VERSION, producer_name="xnorc"
    )


def evaluate(
    nodes: Sequence[onnx.NodeProto] | onnx.GraphProto,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    opset: int = STANDARD_OPSET,
    domains: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Run a part of a graph on arrays: ``nodes`` in topological order, ``feeds`` for every tensor they do not compute.

    A ``GraphProto`` brings its nodes and initializers. Nodes of domain ``ai.xnorc`` run through their function bodies.
    For many runs of one part, make a ``session`` of ``small_model`` once. Raises as ``run`` does.
    """
    initializers: dict[str, np.ndarray] = {}
    if isinstance(nodes, onnx.GraphProto):
        initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in nodes.initializer}
        nodes = list(nodes.node)
    arrays = {name: np.asarray(value) for name, value in feeds.items() if name not in initializers}
    model = small_model(nodes, arrays, outputs, opset=opset, initializers=initializers, domains=domains)
    return run(model, arrays)


def random_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Random data for every input of ``model``: normal for floats, 0 or 1 for integers and booleans.

    Raises ``ModelError`` for an input that is not a tensor of static shape.
    """
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    data = {}
    for info in model.graph.input:
        if info.name in constants:
            continue
        kind = info.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            raise ModelError(f"input '{info.name}' has no static shape: pass --shape {info.name}=…")
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values = rng.standard_normal(shape) if dtype in _FLOATS else rng.integers(0, 2, shape)
        data[info.name] = np.asarray(values).astype(dtype)
    return data
