"""Facts about the operators of a model that several parts need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin", "TopK", "Hardmax"}
_ROUNDINGS = {"Sign", "Round", "Floor", "Ceil", "Mod", "QuantizeLinear", "DynamicQuantizeLinear", "Binarize", "Pack"}


def discontinuous(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose result jumps where their input moves by a rounding, in graph order."""
    return [
        node.name or node.op_type
        for node in model.graph.node
        if node.op_type in _COMPARISONS | _ROUNDINGS or _is_integer_cast(node)
    ]


def _is_integer_cast(node: onnx.NodeProto) -> bool:
    floats = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 of TensorProto
    return node.op_type == "Cast" and any(attr.name == "to" and attr.i not in floats for attr in node.attribute)
