"""How many operations a model takes, counted as the literature of binary networks does.

    operations = products of floats + products of single bits / 64

Bi-Real Net (Liu et al., ECCV 2018) counts so, since a 64-bit machine takes 64 XNORs in one instruction, and BiBench
(Qin et al., ICML 2023) compares networks by it, as BiBERT and BiPFT do. A product of an n-bit by an m-bit number is n·m
products of bits. Only the products of convolutions and matrix products count, as in those papers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from .opset import DOMAIN, REGISTRY, TensorType

BITS_PER_OPERATION = 64
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Standard operators that multiply and add up floats."""
_INTEGER_LAYERS = ("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul")
_TWICE = ("BinaryConv", "BinaryGemm")


@dataclass(frozen=True)
class Operations:
    """Products of one kind and the other in one run of a model."""

    floats: int
    """Products with a float factor."""
    bits: int
    """Products of single bits; an n-bit by m-bit product is n·m of them."""
    repeated_bits: int = 0
    """Of ``bits``, how many a layer takes a second time because its sign keeps zero as a third value."""

    @property
    def total(self) -> float:
        """``floats + bits / 64``."""
        return self.floats + self.bits / BITS_PER_OPERATION

    @property
    def total_once(self) -> float:
        """``total`` with every layer counted once, as the papers count: what fixing sign(0) leaves."""
        return self.floats + (self.bits - self.repeated_bits) / BITS_PER_OPERATION

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total, "total_once": self.total_once}


def tensor_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Type of every tensor of a model whose shape is declared and static."""
    graph = model.graph
    types = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            types[value.name] = TensorType(shape, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    for tensor in graph.initializer:
        types[tensor.name] = TensorType(tuple(tensor.dims), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)))
    return types


def count_macs(node: onnx.NodeProto, types: dict[str, TensorType]) -> int:
    """Multiply-accumulates of a node, of whatever width (0 for operators that have none)."""
    if node.domain == DOMAIN:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return REGISTRY[node.op_type].macs([types[name] for name in node.input], types[node.output[0]], attrs)
    if node.op_type in ("Conv", "ConvInteger"):
        out, weight = types[node.output[0]].shape, types[node.input[1]].shape
        return int(np.prod(out)) * int(np.prod(weight[1:]))
    if node.op_type == "QLinearConv":
        return int(np.prod(types[node.output[0]].shape)) * int(np.prod(types[node.input[3]].shape[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(types[node.input[0]].shape)) * int(np.prod(types[node.input[1]].shape[1:]))
    if node.op_type in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        left = types[node.input[0]].shape
        trans = any(a.name == "transA" and a.i for a in node.attribute)
        return int(np.prod(types[node.output[0]].shape)) * (left[0] if trans else left[-1])
    return 0


def of_float_model(model: onnx.ModelProto, layers: Iterable[str] | None = None) -> Operations | None:
    """Operations of a model as if all of it ran in float, whatever its weights hold.

    ``model`` is as ``read_model`` gives it; ``layers``: names of the nodes that count (default: all). None when the
    shape of a layer depends on data.
    """
    wanted = None if layers is None else set(layers)
    nodes = [
        node for node in model.graph.node
        if node.op_type in LAYERS + _INTEGER_LAYERS and not node.domain and (wanted is None or node.name in wanted)
    ]  # fmt: skip
    types = tensor_types(model)
    if any(name and name not in types for node in nodes for name in [*node.input[:2], *node.output]):
        types = {**tensor_types(_folded(model)), **types}
    try:
        return Operations(sum(count_macs(node, types) for node in nodes), 0)
    except KeyError:
        return None


def of_packed_model(model: onnx.ModelProto) -> Operations | None:
    """Operations of a packed model, as it runs. None when the shape of a layer depends on data."""
    try:
        return _of_packed_model(model)
    except KeyError:
        return None


def _of_packed_model(model: onnx.ModelProto) -> Operations:
    types = tensor_types(model)
    floats = bits = repeated = 0
    seen: set[tuple[Any, ...]] = set()
    for node in model.graph.node:
        macs = count_macs(node, types)
        if not macs:
            continue
        if node.domain == DOMAIN:
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            factors = REGISTRY[node.op_type].factor_bits([types[name] for name in node.input], attrs)
        else:
            factors = (8, 8) if node.op_type in _INTEGER_LAYERS else (32, 32)
        if 32 in factors:
            floats += macs
            continue
        products = macs * factors[0] * factors[1]
        bits += products
        # The two passes over a layer whose sign keeps zero: the same weights, for the same node of the model.
        origin = next((entry.value for entry in node.metadata_props if entry.key == "xnorc.for"), node.name)
        key = (node.op_type, node.input[1], origin)
        repeated += products if node.op_type in _TWICE and key in seen else 0
        seen.add(key)
    return Operations(floats, bits, repeated)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    from .passes.graph import export_graph, import_graph
    from .passes.tidy.fold_constants import FoldConstants

    graph, context = import_graph(model)
    context.current = FoldConstants.name
    FoldConstants().run(graph, context)
    return export_graph(graph, context)
