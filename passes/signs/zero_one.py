"""Tensors of 0 and 1 that a comparison makes: binary attention. Matchers that read the graph and change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from ..base import constant, producer, static_shape
from ..chain import RESHAPES
from .sign_residue import is_binarize

_MIRRORED = {"Greater": "Less", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "LessOrEqual": "GreaterOrEqual"}
MOVES = RESHAPES | {"Transpose"}


@dataclass(frozen=True)
class ZeroOne:
    """``(x > threshold) xor flip`` (``>=`` unless ``strict``), as 0 and 1. ``nodes`` lie between ``x`` and the tensor."""

    x: gs.Tensor
    threshold: float
    strict: bool
    flip: bool
    idiom: str
    nodes: tuple[gs.Node, ...] = field(default=())


def zero_one(tensor: gs.Tensor) -> ZeroOne | None:
    """What ``tensor`` is, if it holds 0 and 1 only.

    * a comparison with a constant that is cast to float, or chooses between the constants 1 and 0;
    * any other boolean in these two places: then ``x`` is the tensor itself;
    * ``Clip(Round(v), 0, 1)`` and ``Round(Clip(v, 0, 1))``: v > 0.5, as halves are rounded to even (Clip may be Max and Min);
    * ``Relu`` and ``Clip`` to [0, 1] of a sign, the sign of a ``Relu`` where sign(0) is 0;
    * ``(sign + 1) / 2`` where the sign is never 0.
    """
    node = producer(tensor)
    if node is None or (node.domain and not is_binarize(tensor)):
        return None
    if node.op == "Cast" and node.inputs[0].dtype == np.bool_ and _cast_to_float(node):
        return _with(_condition(node.inputs[0]), node) or _itself(tensor)
    if node.op == "Where" and {_scalar(node.inputs[1]), _scalar(node.inputs[2])} == {0.0, 1.0}:
        found = _condition(node.inputs[0])
        if found is None or static_shape(found.x) != static_shape(tensor):
            return _itself(tensor)
        return _with(found if _scalar(node.inputs[1]) == 1 else replace(found, flip=not found.flip), node)
    inner = _unit_clip(tensor)
    if inner is not None:
        rounded = producer(inner)
        if rounded is not None and rounded.op == "Round" and not rounded.domain:
            return ZeroOne(rounded.inputs[0], 0.5, True, False, "round", nodes=(rounded, node))
        return _with(_of_sign(inner), node)
    if node.op == "Round":
        source = _unit_clip(node.inputs[0])
        if source is not None:
            return ZeroOne(source, 0.5, True, False, "round", nodes=(node,))
    if node.op == "Relu":
        return _with(_of_sign(node.inputs[0]), node)
    if is_binarize(tensor) and node.attrs["zero"] == 0:
        inner = producer(node.inputs[0])
        if inner is not None and inner.op == "Relu" and not inner.domain:
            return ZeroOne(inner.inputs[0], 0.0, True, False, "sign of ReLU", nodes=(inner, node))
    return _half(node)


def _half(node: gs.Node) -> ZeroOne | None:
    """``(s + 1) / 2`` and ``s / 2 + 1/2``."""
    values = {-1: np.float32(-1), 1: np.float32(1)}
    chain: list[gs.Node] = []
    tensor = node.outputs[0]
    while not is_binarize(tensor) and len(chain) < 3:
        maker = producer(tensor)
        if maker is None or maker.domain or maker.op not in ("Add", "Sub", "Mul", "Div"):
            return None
        sides = [i for i, x in enumerate(maker.inputs) if _scalar(x) is not None]
        if len(sides) != 1:
            return None
        chain.append(maker)
        tensor = maker.inputs[1 - sides[0]]
    found = _of_sign(tensor)
    if found is None or not chain or found.nodes[-1].attrs["zero"] == 0:
        return None
    how = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    for maker in reversed(chain):
        side = next(i for i, x in enumerate(maker.inputs) if _scalar(x) is not None)
        other = np.float32(_scalar(maker.inputs[side]))
        for key, value in values.items():
            pair = (other, value) if side == 0 else (value, other)
            with np.errstate(all="ignore"):
                values[key] = how[maker.op](*pair)
    if values == {-1: 0.0, 1: 1.0}:
        return replace(found, nodes=(*found.nodes, *reversed(chain)))
    if values == {-1: 1.0, 1: 0.0}:
        return replace(found, flip=not found.flip, nodes=(*found.nodes, *reversed(chain)))
    return None


def _of_sign(tensor: gs.Tensor) -> ZeroOne | None:
    """The positive part of a sign."""
    node = producer(tensor)
    if node is None or not is_binarize(tensor):
        return None
    return ZeroOne(node.inputs[0], 0.0, node.attrs["zero"] <= 0, False, "positive part of a sign", nodes=(node,))


def _with(found: ZeroOne | None, node: gs.Node) -> ZeroOne | None:
    return None if found is None else replace(found, nodes=(*found.nodes, node))


def _condition(tensor: gs.Tensor) -> ZeroOne | None:
    node = producer(tensor)
    if node is None or node.domain:
        return None
    if node.op == "Not":
        found = _condition(node.inputs[0])
        return None if found is None else replace(found, flip=not found.flip, nodes=(*found.nodes, node))
    if node.op == "Cast" and node.inputs[0].dtype == np.bool_:
        return _with(_condition(node.inputs[0]), node)
    if node.op not in _MIRRORED or node.inputs[0].dtype != np.float32:
        return None
    op, (x, other) = node.op, node.inputs
    if constant(x) is not None:
        op, x, other = _MIRRORED[op], other, x
    value = _scalar(other)
    if constant(x) is not None or static_shape(x) != static_shape(tensor) or value is None or not np.isfinite(value):
        return None
    # x < c is not (x >= c)
    strict, flip = {"Greater": (True, False), "GreaterOrEqual": (False, False), "Less": (False, True),
                    "LessOrEqual": (True, True)}[op]  # fmt: skip
    return ZeroOne(x, value, strict, flip, "comparison", nodes=(node,))


def _itself(tensor: gs.Tensor) -> ZeroOne:
    return ZeroOne(tensor, 0.5, True, False, "boolean")


def _scalar(tensor: gs.Tensor) -> float | None:
    value = constant(tensor)
    return float(value.reshape(())) if value is not None and value.size == 1 else None


def _unit_clip(tensor: gs.Tensor) -> gs.Tensor | None:
    """What is clipped to [0, 1], by Clip or by a Max and a Min in either order."""
    node = producer(tensor)
    if node is None or node.domain:
        return None
    if node.op == "Clip":
        sides = [*node.inputs[1:], None, None][:2]
        bounds = [None if side is None or side.is_empty() else _scalar(side) for side in sides]
        return node.inputs[0] if bounds == [0.0, 1.0] else None
    found: dict[str, float] = {}
    while node is not None and node.op in ("Max", "Min") and not node.domain and len(node.inputs) == 2:
        values = [_scalar(x) for x in node.inputs]
        if (values[0] is None) == (values[1] is None) or node.op in found:
            break
        side = 0 if values[1] is None else 1
        found[node.op] = values[side]  # type: ignore[assignment]
        tensor = node.inputs[1 - side]
        node = producer(tensor)
    return tensor if found == {"Max": 0.0, "Min": 1.0} else None


def _cast_to_float(node: gs.Node) -> bool:
    to = node.attrs["to"]
    return (int(to) if isinstance(to, (int, np.integer)) else helper.np_dtype_to_tensor_dtype(np.dtype(to))) == (
        TensorProto.FLOAT
    )
