"""QONNX in: the quantizer operators that Brevitas and FINN export, said in standard ONNX.

QONNX (fastmachinelearning/qonnx, ``docs/qonnx-custom-ops``; Pappalardo et al., "QONNX: Representing Arbitrary-Precision
Quantized Neural Networks", 2022) adds operators to ONNX that ONNX Runtime does not know: ``Quant`` (also named
``IntQuant``), ``BipolarQuant``, ``Trunc``, and FINN's ``MultiThreshold`` and ``XnorPopcountMatMul``. A model with them is
translated when it is read, so that everything behind (passes, judge, device) sees standard operators alone. Each
becomes the float32 arithmetic of the qonnx package's executor, operation by operation and in its order: x / scale,
+ zero point, clamp, round, − zero point, · scale. Steps that change no value (a scale of 1, a zero point of 0, a factor of 1)
are left out. Tensors keep their names.

Reading has two steps, because ONNX's converter of opsets does not know these operators. ``hold`` puts a stand-in
(``Identity``) in their place and keeps what they say; ``release`` puts the translation (``qonnx_ops.py``) there, once the
model has an opset that has what it needs (``Round`` came with 11, ``GreaterOrEqual`` with 12).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from . import golden
from .errors import ModelError, XnorcError
from .golden import one_line
from .model_checks import all_graphs, all_nodes
from .qonnx_ops import OPERATORS, Held, Parts, named

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
"""Domains under which exporters have written these operators; ``onnx.brevitas`` and ``finn.custom_op.general`` are old."""


def is_qonnx(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is of a domain of QONNX."""
    return node.domain in DOMAINS


def check(node: onnx.NodeProto, what: str) -> None:
    """Raise ``ModelError`` for a node of a QONNX domain that cannot be translated, whatever its inputs are.

    ``what`` names the node in the message.
    """
    if node.op_type not in OPERATORS:
        raise ModelError(
            f"{what} ({node.op_type} of {node.domain}) is not supported: of QONNX, xnorc reads "
            f"{', '.join(OPERATORS)}; export the model without it"
        )
    least, most = OPERATORS[node.op_type].inputs
    if not least <= len(node.input) <= most or not all(node.input) or len(node.output) != 1 or not node.output[0]:
        count = str(least) if least == most else f"{least} or {most}"
        raise ModelError(f"{what} ({node.op_type}) must have {count} inputs and one output: export the model again")


def hold(model: onnx.ModelProto) -> dict[str, Held]:
    """Replace every QONNX node of ``model`` by a standard one of the same shape, in place.

    Returns the nodes by output tensor, with the constants that they read. Raises ``ModelError`` for a scale, zero point, bit
    width or threshold that is not constant, and for a QONNX node inside a subgraph.
    """
    if not any(is_qonnx(node) for node in all_nodes(model.graph)):
        return {}
    for inner in list(all_graphs(model.graph))[1:]:
        for node in inner.node:
            if is_qonnx(node):
                raise ModelError(
                    f"node '{node.name}' ({node.op_type}) lies inside an If or a Loop: export the model without control "
                    "flow around its quantizers"
                )
    versions = {item.domain: item.version for item in model.opset_import}
    constants = _Constants(model)
    held: dict[str, Held] = {}
    for node in model.graph.node:
        if not is_qonnx(node):
            continue
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        item = Held(kept, versions.get(node.domain))
        for index, role in OPERATORS[node.op_type].constants(kept, item.version).items():
            item.constants[index] = constants.value(node.input[index], f"{named(node)}: its {role}")
        held[node.output[0]] = item
    for node in model.graph.node:
        if is_qonnx(node):
            node.op_type, node.domain = OPERATORS[node.op_type].stand_in, ""
            del node.attribute[:]
            if node.op_type == "Identity":
                del node.input[1:]
    imports = [item for item in model.opset_import if item.domain not in DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return held


def release(model: onnx.ModelProto, held: dict[str, Held]) -> onnx.ModelProto:
    """``model`` with the translation of each held node in the place of its stand-in. ``model`` is not changed.

    The model's opset must be at least 18. Raises ``ModelError`` for what the operators cannot mean: an unknown rounding
    mode, a bit width that is not a whole number, thresholds that do not fit the channels, and the like.
    """
    if not held:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shapes = _shapes(model)
    titles = {node.name for node in all_nodes(model.graph)}
    names = {name for node in all_nodes(model.graph) for name in [*node.input, *node.output]}
    names |= {tensor.name for tensor in model.graph.initializer} | {info.name for info in model.graph.input}
    del result.graph.node[:]
    for node in model.graph.node:
        item = held.get(node.output[0]) if node.output else None
        if item is None:
            result.graph.node.append(node)
            continue
        parts = Parts(item, node, titles, names, shapes.get(node.input[0]))
        OPERATORS[item.node.op_type].translate(parts)
        result.graph.node.extend(parts.finish())
        result.graph.initializer.extend(parts.initializers)
    _drop_unread(result.graph)
    return result


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Scales and bit widths that only the operators read: the translation has its own."""
    read = {name for node in all_nodes(graph) for name in node.input} | {info.name for info in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"shapes or types do not fit: {one_line(error)}") from error
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in [*graph.input, *graph.value_info, *graph.output]
        if info.type.tensor_type.HasField("shape")
    }


class _Constants:
    """What tensors of the main graph hold, where no input of the model decides it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output if name}

    def value(self, name: str, what: str) -> np.ndarray:
        """The value of a tensor. Raises ``ModelError``, which begins with ``what``, when it is computed at run time."""
        stored = self._stored.get(name)
        maker = self._makers.get(name)
        if stored is None and maker is not None and maker.op_type == "Constant":
            stored = next((attr.t for attr in maker.attribute if attr.name == "value"), None)
        try:
            if stored is not None:
                return np.array(numpy_helper.to_array(stored))
            needed = self._ancestors(name, what)
            feeds = {
                item: np.array(numpy_helper.to_array(self._stored[item]))
                for node in needed
                for item in node.input
                if item in self._stored
            }
            opset = next(item.version for item in self._model.opset_import if item.domain in ("", "ai.onnx"))
            return golden.evaluate(needed, feeds, [name], opset=opset)[name]
        except ModelError:
            raise
        except (XnorcError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{what} '{name}' cannot be read: {one_line(error)}") from error

    def _ancestors(self, name: str, what: str) -> list[onnx.NodeProto]:
        """The nodes that compute ``name``, in graph order."""
        found: set[str] = set()
        stack = [name]
        while stack:
            current = stack.pop()
            node = self._makers.get(current)
            if not current or current in self._stored or (node is not None and node.output[0] in found):
                continue
            if node is None or is_qonnx(node) or node.domain or any(attr.HasField("g") for attr in node.attribute):
                raise ModelError(f"{what} '{name}' is computed at run time: export it as a constant")
            found.add(node.output[0])
            stack += node.input
        return [node for node in self._model.graph.node if node.output and node.output[0] in found]
