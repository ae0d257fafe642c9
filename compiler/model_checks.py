"""Checks of a model that come before anything reads it: where its weights lie, its operators, its values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .errors import ModelError
from .opset import DOMAIN, REGISTRY

_KEPT_ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR, AttributeProto.GRAPH,
    AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
"""Kinds of attributes that the passes carry; the others belong to sequences and sparse tensors."""

_MAY_READ_INFINITY = {
    "Where", "Add", "Sub", "Max", "Min", "Clip", "Pad", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Cast", "CastLike", "Reshape", "Expand", "Concat", "ScatterND", "ScatterElements", "Identity", "Slice", "Unsqueeze",
    "Squeeze", "Transpose", "Softmax", "Tile", "Not", "IsInf", "If", "Loop", "ConstantOfShape", "Trilu",
}  # fmt: skip
"""Operators that read an infinity on purpose: attention masks, and limits of clamps."""


def check_text(message: Message) -> None:
    """Raise ``ModelError`` when a name, or another text of the model, is not UTF-8, as damage leaves it."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        for item in [value] if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(item, bytes):  # what protobuf gives for a text that it cannot decode
                raise ModelError(f"is damaged: its {field.name} {item!r:.60} is not text; export or copy it again")
            if isinstance(item, Message):
                check_text(item)
    if isinstance(message, AttributeProto):
        try:
            for data in [message.s, *message.strings]:
                data.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"is damaged: attribute '{message.name}' is not text; export or copy it again") from error


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all subgraphs in it."""
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for inner in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph and of all subgraphs in it."""
    for inner in all_graphs(graph):
        yield from inner.node


def _stored_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    nodes: list[onnx.NodeProto] = []
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for function in model.functions:
        nodes += function.node
        for node in function.node:
            for attr in node.attribute:
                if attr.HasField("g"):
                    for graph in all_graphs(attr.g):
                        yield from graph.initializer
                        nodes += graph.node
    for node in nodes:
        for attr in node.attribute:
            if attr.HasField("t"):
                yield attr.t
            yield from attr.tensors


def check_external_data(model: onnx.ModelProto, folder: Path, limit: int) -> None:
    """Make sure that external data can be loaded from ``folder`` and nowhere else.

    Raises ``ModelError`` for a location that is absolute or leaves the folder (``..``, links), a missing file, a range
    past the file's end, a length that does not fit the tensor's shape, or more than ``limit`` bytes in all.
    """
    root = folder.resolve()
    total = model.ByteSize()
    for tensor in _stored_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {item.key: item.value for item in tensor.external_data}
        location = entries.get("location", "")
        what = f"external data of tensor '{tensor.name}'"
        if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute():
            raise ModelError(f"{what} have the location '{location}': it must be a path relative to the model's folder")
        file = (root / location).resolve()
        if not file.is_relative_to(root):
            raise ModelError(f"{what} lie at '{location}', outside the model's folder: put the file beside the model")
        if not file.is_file():
            raise ModelError(f"{what} are missing: there is no file '{location}' beside the model")
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries["length"]) if entries.get("length") else file.stat().st_size - offset
        except ValueError as error:
            raise ModelError(f"{what} have an offset or a length that is not a number: export it again") from error
        needed = stored_bytes(tensor)
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise ModelError(
                f"{what} need bytes {offset} to {offset + length} of '{location}', which has "
                f"{file.stat().st_size}: the file is truncated or of another model"
            )
        if needed != length:
            raise ModelError(f"{what} take {length} bytes, shape {list(tensor.dims)} needs {needed}: export it again")
        total += length
        if total > limit:
            raise ModelError("has more than 2 GiB of weights, ONNX files hold at most 2 GiB: is it a model to compile?")


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes that the raw data of ``tensor`` take, or -1 when it cannot have raw data."""
    if tensor.data_type not in set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}:
        return -1
    count = math.prod(tensor.dims)
    kind = TensorProto.DataType.Name(tensor.data_type)
    if kind in ("INT4", "UINT4", "FLOAT4E2M1"):
        return (count + 1) // 2
    if kind in ("INT2", "UINT2"):
        return (count + 3) // 4
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def check_operators(model: onnx.ModelProto, opset: int) -> None:
    """Raise ``ModelError`` for the first node whose operator is unknown: not of an ONNX opset, not a function of the
    model, not of ``ai.xnorc``, not one of QONNX that is translated; or whose attributes the passes could not carry."""
    from . import qonnx  # which walks graphs by functions of this module

    versions = {"ai.onnx" if not item.domain else item.domain: item.version for item in model.opset_import}
    versions["ai.onnx"] = opset
    local = {(function.domain, function.name) for function in model.functions}
    nodes = list(all_nodes(model.graph))
    for function in model.functions:
        if function.domain != DOMAIN:
            nodes += function.node
    for index, node in enumerate(nodes):
        name = f"node '{node.name or f'{node.op_type}_{index}'}'"
        for attr in node.attribute:
            # A function's attribute can refer to one of the call and then holds nothing itself.
            if attr.type not in _KEPT_ATTRIBUTES and not attr.ref_attr_name:
                kind = AttributeProto.AttributeType.Name(attr.type)
                raise ModelError(f"{name} ({node.op_type}): attribute '{attr.name}' of kind {kind} is not supported")
        if node.domain == DOMAIN:
            if node.op_type not in REGISTRY:
                raise _unknown(name, f"{DOMAIN}.{node.op_type}", node.op_type, list(REGISTRY))
        elif (node.domain, node.op_type) in local:
            continue
        elif qonnx.is_qonnx(node):
            qonnx.check(node, name)
        else:
            _check_standard(name, node, versions)


def _check_standard(name: str, node: onnx.NodeProto, versions: dict[str, int]) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    schemas = [schema for schema in onnx.defs.get_all_schemas() if schema.domain == domain]
    if not schemas:
        raise ModelError(
            f"{name} has operator '{node.op_type}' of the unknown domain '{node.domain}': export the model with standard "
            "operators only, or with a model-local function for it"
        )
    full = f"{domain}.{node.op_type}" if domain else node.op_type
    if not onnx.defs.has(node.op_type, domain):
        raise _unknown(name, full, node.op_type, sorted({schema.name for schema in schemas}))
    version = versions.get(domain or "ai.onnx")
    if version is None:
        raise ModelError(f"{name} ({full}): the model does not import domain '{domain}': export it again")
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError as error:
        newest = onnx.defs.get_schema(node.op_type, domain).since_version
        raise ModelError(
            f"{name}: operator '{full}' does not exist in opset {version} (newest version: {newest}): export it with a "
            "newer opset"
        ) from error
    if schema.deprecated:
        raise ModelError(f"{name}: operator '{full}' is gone from opset {version}: export the model again")


_RANDOM = {
    "Bernoulli": "take the more likely value, probability > 0.5,",
    "Multinomial": "take the most likely class, ArgMax,",
    "RandomNormal": "make the noise an input of the model",
    "RandomNormalLike": "make the noise an input of the model",
    "RandomUniform": "make the noise an input of the model",
    "RandomUniformLike": "make the noise an input of the model",
}
"""Operators that draw random numbers, and what a model that is deployed does instead."""


def check_deterministic(graph: onnx.GraphProto) -> None:
    """Raise ``ModelError`` for a node that draws random numbers: nothing that it gives can be compared with anything."""
    constants = {tensor.name: tensor for inner in all_graphs(graph) for tensor in inner.initializer}
    for node in all_nodes(graph):
        if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    for node in all_nodes(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        name = f"node '{node.name or node.op_type}' ({node.op_type})"
        if node.op_type in _RANDOM:
            raise ModelError(
                f"{name} draws random numbers, so that two runs differ: {_RANDOM[node.op_type]} and export the model again"
            )
        training = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        if training is not None and numpy_helper.to_array(training).any():
            raise ModelError(f"{name} drops at random (its training_mode is true): export the model in eval mode")


def _unknown(name: str, full: str, op: str, known: list[str]) -> ModelError:
    near = difflib.get_close_matches(op, known, n=3, cutoff=0.7)
    folded = [other for other in known if other.lower() == op.lower()]
    near = list(dict.fromkeys([*folded, *near]))
    hint = f"near names: {', '.join(near)}" if near else "export the model with standard operators"
    return ModelError(f"{name} has the unknown operator '{full}': {hint}")


def check_values(graph: onnx.GraphProto) -> None:
    """Raise ``ModelError`` for a weight that holds NaN, or an infinity that its reader cannot want.

    An infinity is accepted where all readers are comparisons, selections, additions and the like: attention masks have
    it. Sparse weights are refused as well.
    """
    for inner in all_graphs(graph):
        for sparse in inner.sparse_initializer:
            raise ModelError(f"initializer '{sparse.values.name}' is sparse: export the model with dense weights")
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in all_nodes(inner):
            for tensor_name in node.input:
                readers.setdefault(tensor_name, []).append(node)
        for tensor in inner.initializer:
            _check_tensor(f"initializer '{tensor.name}'", tensor, readers.get(tensor.name, []))
        for node in inner.node:
            for attr in node.attribute:
                if attr.HasField("t") and node.output:
                    _check_tensor(f"constant '{node.output[0]}'", attr.t, readers.get(node.output[0], []))


def _check_tensor(what: str, tensor: TensorProto, readers: list[onnx.NodeProto]) -> None:
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return
    try:
        values = numpy_helper.to_array(tensor).astype(np.float64, copy=False)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} has data that do not fit its shape {list(tensor.dims)}: export it again") from error
    if np.isfinite(values).all():
        return
    nan = bool(np.isnan(values).any())
    guilty = readers if nan else [node for node in readers if node.op_type not in _MAY_READ_INFINITY]
    if not nan and not guilty:
        return
    reader = f", read by node '{guilty[0].name or guilty[0].op_type}' ({guilty[0].op_type})" if guilty else ""
    kind = "NaN" if nan else "an infinite value"
    raise ModelError(f"{what}{reader}, holds {kind}: the training diverged, or the file is damaged; export it again")
