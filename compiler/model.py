"""Reading and writing ONNX files: whatever is wrong with a file is said in one line, before anything else sees it."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError, EncodeError

from . import golden, model_checks, qonnx
from .errors import InputError, ModelError, XnorcError
from .files import atomic_write
from .golden import one_line
from .opset import DOMAIN, IR_VERSION, STANDARD_OPSET

OLDEST_OPSET = 7
"""Oldest standard opset that is read; ONNX's version converter is reliable from here on."""
MAX_BYTES = 2**31 - 1
"""Largest model: protobuf cannot hold more."""


def read_model(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> onnx.ModelProto:
    """Read an ONNX file, make sure that it can be compiled, and bring it into the form that the passes expect.

    ``shapes``: input name → sizes, for inputs with dynamic dimensions (a dynamic batch too). The result is
    self-contained (no external data), of opset >= 18 and IR version 10, with model-local functions inlined, operators of
    QONNX translated (``qonnx.py``), unique node names, static input shapes and inferred shapes inside. Metadata of nodes
    stay.

    Raises ``ModelError`` naming the file and what to do: missing, not ONNX, too large, opset out of range, unknown
    operator, random operator, dynamic shape, a quantizer that cannot be translated, unsafe or missing external data, NaN or
    infinite weights, inconsistent shapes.
    """
    path = Path(path)
    try:
        model = _parse(path)
        model_checks.check_external_data(model, path.parent, MAX_BYTES)
        onnx.load_external_data_for_model(model, str(path.parent))
        return prepare(model, shapes)
    except ModelError as error:
        text = " ".join(str(error).splitlines())  # a damaged file can have a line break in a name
        raise ModelError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error


def prepare(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> onnx.ModelProto:
    """``read_model`` for a model in memory (external data loaded). The given model is not changed.

    Raises ``ModelError`` as ``read_model`` does, without a file name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    model = copy
    opset = _standard_opset(model)
    model_checks.check_operators(model, opset)
    model = _inline(model)
    model_checks.check_deterministic(model.graph)
    held = qonnx.hold(model)
    _drop_default_inputs(model)
    set_shapes(model, shapes or {})
    _check(model)
    model_checks.check_values(model.graph)
    model = qonnx.release(_upgrade(model, opset), held)
    _name_nodes(model)
    model = _infer(model)
    model.ir_version = IR_VERSION
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError("is a directory: give the path of the .onnx file in it")
    if not path.exists():
        raise ModelError("no such file: check the path, or make the model with `xnorc export`")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(
            f"is {size / 2**30:.1f} GiB, ONNX files hold at most 2 GiB: is it a model of this size at all?"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError("is not an ONNX model, or is truncated: export or copy it again") from error
    if not model.ir_version and not model.opset_import:
        raise ModelError("is not an ONNX model (it has no IR version and no opset): export it again")
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError("has no graph, or a graph without outputs: export it again")
    model_checks.check_text(model)
    return model


@lru_cache(maxsize=1)
def newest_opset() -> int:
    """The newest standard opset that the installed ONNX Runtime runs, found by asking it."""
    for opset in range(onnx.defs.onnx_opset_version(), STANDARD_OPSET, -1):
        text = (
            f'<ir_version: {IR_VERSION}, opset_import: ["": {opset}]> g (float[1] x) => (float[1] y) {{ y = Neg(x) }}'
        )
        try:
            golden.session(onnx.parser.parse_model(text))
        except ModelError:
            continue
        return opset
    return STANDARD_OPSET


def _standard_opset(model: onnx.ModelProto) -> int:
    versions = {item.version for item in model.opset_import if item.domain in ("", "ai.onnx")}
    if len(versions) != 1:
        found = "none" if not versions else ", ".join(map(str, sorted(versions)))
        raise ModelError(f"must import one version of the standard operators, imports {found}: export it again")
    (opset,) = versions
    if opset < OLDEST_OPSET:
        raise ModelError(f"has opset {opset}, the oldest that xnorc reads is {OLDEST_OPSET}: export it again, with 18")
    if opset > newest_opset():
        raise ModelError(
            f"has opset {opset}, the installed ONNX Runtime runs at most {newest_opset()}: export it with a lower one"
        )
    return opset


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    names = [(f.domain, f.name) for f in model.functions if f.domain != DOMAIN]
    if not names:
        return model
    if any(function.overload for function in model.functions):
        raise ModelError("has overloaded model-local functions: export it with its functions inlined")
    try:
        model = onnx.inliner.inline_selected_functions(model, names, exclude=False)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"its model-local functions cannot be inlined: {one_line(error)}") from error
    kept = [f for f in model.functions if f.domain == DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
    used = {node.domain for node in model_checks.all_nodes(model.graph)} | {"", "ai.onnx"}
    imports = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model


def _drop_default_inputs(model: onnx.ModelProto) -> None:
    """Old models list weights among the inputs; a caller could override them, a compiled model cannot."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def set_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix the shapes of inputs in place. Raises ``ModelError`` unless afterwards every input has a static shape."""
    names = [info.name for info in model.graph.input]
    for name in shapes:
        if name not in names:
            raise ModelError(f"a shape was given for '{name}', the inputs are {', '.join(names) or 'none'}")
    for info in model.graph.input:
        if not info.type.HasField("tensor_type"):
            raise ModelError(f"input '{info.name}' is not a tensor: export the model with tensors as inputs")
        kind = info.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in kind.shape.dim]
        given = shapes.get(info.name)
        if given is not None:
            fits = not kind.HasField("shape") or (
                len(given) == len(dims) and all(isinstance(d, str) or d == g for d, g in zip(dims, given, strict=True))
            )
            if not fits or any(size < 1 for size in given):
                have = ",".join(map(str, dims))
                raise ModelError(
                    f"input '{info.name}' has shape [{have}], {list(given)} was given: every size must be positive, "
                    "and equal where the model fixes it"
                )
            kind.shape.CopyFrom(onnx.TensorShapeProto())
            kind.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=int(size)) for size in given)
        elif not kind.HasField("shape") or any(isinstance(d, str) or d < 1 for d in dims):
            have = ",".join(map(str, dims)) if kind.HasField("shape") else "unknown"
            raise ModelError(
                f"input '{info.name}' has the dynamic shape [{have}]: fix it, "
                f"for example with --shape {info.name}={_example(dims)}"
            )
    if not any(node.domain == DOMAIN for node in model.graph.node):
        # Inner shapes that an exporter wrote may be symbolic, or those of another batch: they are inferred again.
        del model.graph.value_info[:]
        for info in model.graph.output:
            if any(not d.HasField("dim_value") for d in info.type.tensor_type.shape.dim) or shapes:
                info.type.tensor_type.ClearField("shape")


def _example(dims: Sequence[int | str]) -> str:
    """Sizes for the message: 1 for the batch, usual ones elsewhere, those that the model fixes."""
    if not dims:
        return "1,3,224,224"
    usual = [1, 3, 224, 224] if len(dims) == 4 else [1] + [128] * (len(dims) - 1)
    return ",".join(str(u if isinstance(d, str) or d < 1 else d) for d, u in zip(dims, usual, strict=True))


def _check(model: onnx.ModelProto) -> None:
    # The checker insists on shapes of outputs, which ONNX itself does not: lend it some.
    lent = [info for info in model.graph.output if not info.type.tensor_type.HasField("shape")]
    try:
        for info in lent:
            if info.type.HasField("tensor_type") or not info.HasField("type"):
                info.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError, EncodeError) as error:
        raise ModelError(f"is not valid ONNX: {one_line(error)}") from error
    finally:
        for info in lent:
            info.type.tensor_type.ClearField("shape")


def _upgrade(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if opset >= STANDARD_OPSET:
        return model
    if any(node.domain == DOMAIN for node in model.graph.node):
        raise ModelError(f"is a packed model of opset {opset}, at least {STANDARD_OPSET} is needed: pack it again")
    metadata = {node.output[0]: node.metadata_props for node in model.graph.node if node.output}
    hint = f"export it with opset {STANDARD_OPSET}"
    try:
        converted = onnx.version_converter.convert_version(model, STANDARD_OPSET)
        _check(converted)
    except (RuntimeError, ValueError, ModelError) as error:
        raise ModelError(
            f"cannot be converted from opset {opset} to {STANDARD_OPSET}: {one_line(error)}; {hint}"
        ) from error
    different = _disagreement(model, converted)
    if different:
        raise ModelError(f"changes when it is converted from opset {opset} to {STANDARD_OPSET}: {different}; {hint}")
    for node in converted.graph.node:  # the converter drops them
        if node.output and node.output[0] in metadata and not node.metadata_props:
            node.metadata_props.extend(metadata[node.output[0]])
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _disagreement(model: onnx.ModelProto, converted: onnx.ModelProto) -> str | None:
    """How the outputs of the converted model differ from those of the given one, on random inputs; None if they do not.

    The converter knows not every change of every operator. A model that ONNX Runtime cannot run as it was is not judged.
    """
    feeds = golden.random_inputs(model)
    try:
        expected = golden.run(model, feeds)
    except (ModelError, InputError):
        return None
    try:
        found = golden.run(converted, feeds)
    except (ModelError, InputError) as error:
        return str(error)
    for name, value in expected.items():
        other = found[name]
        same = value.shape == other.shape and value.dtype == other.dtype
        if not same or not _near(other, value):
            return f"output '{name}' is another one"
    return None


def _near(other: np.ndarray, value: np.ndarray) -> bool:
    """Whether numbers are equal up to float rounding, and texts are equal."""
    if value.dtype.kind not in "fiubc":
        return bool(np.array_equal(other, value))
    return bool(np.allclose(other, value, rtol=1e-3, atol=1e-3 * _magnitude(value), equal_nan=True))


def _magnitude(value: np.ndarray) -> float:
    finite = np.abs(value[np.isfinite(value)]) if value.dtype.kind == "f" else np.zeros(0)
    return float(np.max(finite, initial=0.0))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of the graph and its subgraphs a name of its own; names that are unique stay."""
    nodes = list(model_checks.all_nodes(model.graph))
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        base = name = node.name or f"{node.op_type}_{index}"
        count = 1
        while name in taken or name in seen:
            name, count = f"{base}_{count}", count + 1
        node.name = name
        seen.add(name)


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        # ONNX's inference also trips over models that are right; ONNX Runtime has the last word.
        strict = error
    try:
        golden.session(model)
        return onnx.shape_inference.infer_shapes(model)
    except (ModelError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"shapes or types do not fit: {one_line(strict)}") from error


def source_names(model: onnx.ModelProto) -> dict[str, str]:
    """Node name → path of the torch module that it came from, where the exporter (or an earlier pass) said so.

    Understands ``xnorc.source``, the scopes that torch's dynamo exporter writes, and the node names of its TorchScript
    exporter (``/layer1/layer1.0/conv1/Conv`` → ``layer1.0.conv1``).
    """
    found = {}
    for node in model.graph.node:
        props = {item.key: item.value for item in node.metadata_props}
        source = props.get("xnorc.source") or _dynamo_scope(props.get("pkg.torch.onnx.name_scopes", ""))
        if not source and node.name.startswith("/"):
            source = _script_scope(node.name.split("/")[1:-1])
        if source:
            # The last part is of Brevitas' exporter, not of the network.
            found[node.name] = source.removesuffix(".export_handler")
    return found


def _dynamo_scope(text: str) -> str:
    """``['', 'features', 'features.0', 'conv2d']`` → ``features.0``: scopes from the root module in, then the node."""
    try:
        scopes = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ""
    return str(scopes[-2])


def _script_scope(parts: Sequence[str]) -> str:
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part  # children of a Sequential carry its name
        else:
            path.append(part)
    return ".".join(path)


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model: the same model gives the same bytes, and ``path`` never holds half a file.

    Raises ``XnorcError`` when the file cannot be written (no folder, no space, no permission).
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as error:
        raise XnorcError(f"cannot write '{path}': the model is larger than 2 GiB") from error
    atomic_write(path, data)
