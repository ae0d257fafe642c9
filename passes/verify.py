"""Checks that a packed graph is well formed. Changes nothing.

Checked, for every model: names and tensors are defined once and before use, every input and output of the model has a static
type. For ``ai.xnorc`` operators: they are in the registry, have exactly the declared attributes and number of inputs, the
declared type of the output is the inferred one; weights, thresholds and flips are constant; flips are 0 or 1; bits that do not
count are zero in weights; thresholds are not NaN. Groups and origins name nodes and tensors that exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..errors import ModelError, UnsupportedError, XnorcError
from ..opset import DOMAIN, REGISTRY, TensorType, unpack_bits
from ..opset.sparse_residual import SparseResidualGemm
from .base import Context, Pass, constant, producer, static_shape
from .chain import is_anchor
from .graph import export_graph, import_graph


class Verify(Pass):
    """See the module. Raises ``PassError`` (through the manager) when anything is wrong."""

    name: ClassVar[str] = "verify"

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Nothing to change: ``ensures`` does the work."""
        return False

    def ensures(self, graph: gs.Graph, ctx: Context) -> str | None:
        """The first problems. Raises ``UnsupportedError`` for an output whose shape only the data decide (NonZero)."""
        for tensor in graph.outputs:
            node = producer(tensor)
            if node is not None and not _is_static(tensor):
                raise UnsupportedError(
                    node.name, node.op, f"the shape of its output '{tensor.name}' depends on the data"
                )
        problems = verify(graph) + _references(graph, ctx)
        return "; ".join(problems[:3]) or None


def verify(model: gs.Graph | onnx.ModelProto) -> list[str]:
    """What is wrong with a packed graph, one line a problem; empty when it is well formed."""
    if isinstance(model, gs.Graph):
        return [*_structure(model), *(problem for node in model.nodes for problem in _node(node))]
    undefined = list(_definitions(model.graph))
    if undefined:
        return undefined
    try:
        graph, ctx = import_graph(model)
    except (XnorcError, ValueError, TypeError, KeyError) as error:
        return [f"the model cannot be read: {error}"]
    return [*verify(graph), *_references(graph, ctx), *_bodies(model, graph, ctx)]


def check_packed(model: onnx.ModelProto) -> None:
    """For loading: raise ``ModelError`` with the first problem of a packed model."""
    problems = verify(model)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"not a well-formed packed model: {problems[0]}{more}; pack the original model again")


def _definitions(graph: onnx.GraphProto) -> Iterator[str]:
    """Single definitions, in topological order, nothing dangling."""
    defined = {tensor.name for tensor in graph.initializer} | {""}
    for info in graph.input:
        if info.name in defined:
            yield f"tensor '{info.name}' is defined twice"
        defined.add(info.name)
    names: set[str] = set()
    for node in graph.node:
        if node.name in names:
            yield f"two nodes are named '{node.name}'"
        names.add(node.name)
        for name in node.input:
            if name not in defined:
                yield f"node '{node.name}' reads '{name}', which nothing before it computes"
        for name in node.output:
            if name and name in defined:
                yield f"tensor '{name}' is defined twice"
            defined.add(name)
    for info in graph.output:
        if info.name not in defined:
            yield f"output '{info.name}' is not computed"


def _structure(graph: gs.Graph) -> Iterator[str]:
    seen: dict[str, gs.Tensor] = {}
    done: set[int] = {id(tensor) for tensor in graph.inputs}
    names: set[str] = set()
    for tensor in [*graph.inputs, *graph.outputs]:
        if tensor.dtype is None or not _is_static(tensor):
            yield f"tensor '{tensor.name}' has no static type"
    for node in graph.nodes:
        if node.name in names:
            yield f"two nodes are named '{node.name}'"
        names.add(node.name)
        for tensor in [*node.inputs, *node.outputs]:
            if not tensor.is_empty() and seen.setdefault(tensor.name, tensor) is not tensor:
                yield f"two tensors are named '{tensor.name}'"
        for tensor in node.inputs:
            if not (tensor.is_empty() or isinstance(tensor, gs.Constant) or id(tensor) in done):
                yield f"node '{node.name}' reads '{tensor.name}', which nothing before it computes"
        for tensor in node.outputs:
            if len(tensor.inputs) != 1 or id(tensor) in done:
                yield f"tensor '{tensor.name}' is defined twice"
            done.add(id(tensor))
    for tensor in graph.outputs:
        if id(tensor) not in done and not isinstance(tensor, gs.Constant):
            yield f"output '{tensor.name}' is not computed"


def _is_static(tensor: gs.Tensor) -> bool:
    return tensor.shape is not None and all(isinstance(size, (int, np.integer)) for size in tensor.shape)


def _node(node: gs.Node) -> Iterator[str]:
    if node.domain != DOMAIN:
        return
    where = f"node '{node.name}' ({node.op})"
    op = REGISTRY.get(node.op)
    if op is None:
        yield f"{where}: no operator of {DOMAIN}"
        return
    if len(node.inputs) != len(op.inputs) or len(node.outputs) != 1 or any(t.is_empty() for t in node.inputs):
        yield f"{where}: has {len(node.inputs)} inputs and {len(node.outputs)} outputs, needs {len(op.inputs)} and 1"
        return
    try:
        op.check_attributes(node.attrs, node.name)
        types = [TensorType(static_shape(tensor), np.dtype(tensor.dtype)) for tensor in node.inputs]
        inferred = op.infer(types, node.attrs)
        declared = TensorType(static_shape(node.outputs[0]), np.dtype(node.outputs[0].dtype))
    except (ModelError, ValueError, TypeError) as error:
        yield f"{where}: {error}"
        return
    if inferred != declared:
        yield f"{where}: output '{node.outputs[0].name}' is declared as {declared} and is {inferred}"
    yield from (f"{where}: {problem}" for problem in _constants(node, op.inputs))


def _constants(node: gs.Node, names: tuple[str, ...]) -> Iterator[str]:
    inputs = dict(zip(names, node.inputs, strict=True))
    if node.op == SparseResidualGemm.name:
        yield from _lists(node, inputs)
    for name in ("w", "threshold", "flip"):
        if name not in inputs:
            continue
        value = constant(inputs[name])
        if value is None:
            yield f"input '{name}' is not constant"
        elif name == "threshold" and value.dtype.kind == "f" and np.isnan(value).any():
            yield "a threshold is NaN"
        elif name == "flip" and node.op == "Pack" and (value > 1).any():
            yield "a flip is neither 0 nor 1"
        elif name == "w":
            yield from _weight(node, value)


def _lists(node: gs.Node, inputs: dict[str, gs.Tensor]) -> Iterator[str]:
    """The lists of weights of a SparseResidualGemm must lie in order and inside the weights."""
    columns, starts = constant(inputs["columns"]), constant(inputs["starts"])
    if columns is None or starts is None:
        yield "its lists are not constant"
        return
    try:
        SparseResidualGemm.check_lists(columns, starts, node.attrs["k"])
    except ValueError as error:
        yield str(error)


def _weight(node: gs.Node, weight: np.ndarray) -> Iterator[str]:
    if node.op == "BinaryConv":
        channels = node.attrs["channels"] // node.attrs["group"]
        if unpack_bits(weight, 8 * weight.shape[-1])[..., channels:].any():
            yield f"bits past the {channels} channels are set in the weights"
    elif node.op == "BinaryGemm":
        used = int(unpack_bits(weight, 8 * weight.shape[-1]).any(axis=0).sum())
        if used > node.attrs["k"]:
            yield f"{used} bit columns of the weights are used, only {node.attrs['k']} count"


def _references(graph: gs.Graph, ctx: Context) -> list[str]:
    nodes = {node.name: node for node in graph.nodes}
    tensors = graph.tensors()
    problems = []
    for name, anchor in ctx.groups.items():
        if name in nodes and (anchor not in nodes or not is_anchor(nodes[anchor])):
            problems.append(f"node '{name}' belongs to the group of '{anchor}', which computes no accumulator")
    problems += [f"origin of unknown tensor '{name}'" for name in ctx.origins if name not in tensors]
    return problems


def _bodies(model: onnx.ModelProto, graph: gs.Graph, ctx: Context) -> list[str]:
    """The function bodies in a model must be ours: another body would compute something else than our kernels."""
    if any(node.domain == DOMAIN and node.op not in REGISTRY for node in graph.nodes):
        return []  # reported already
    expected = {function.name: function for function in export_graph(graph, ctx).functions}
    found = {function.name: function for function in model.functions if function.domain == DOMAIN}
    wrong = [
        name
        for name, body in expected.items()
        if name not in found
        or found[name].SerializeToString(deterministic=True) != body.SerializeToString(deterministic=True)
    ]
    return [
        f"the function body of {DOMAIN}.{name} is missing or is not that of this version of xnorc" for name in wrong
    ]
