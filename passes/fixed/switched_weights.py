"""Weights that a model rounds to fewer bits when it runs: recognised for ``fixed_point``, which packs their layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..base import constant, producer
from ..chain import cast_target

_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.INT64)


@dataclass(frozen=True)
class SwitchedWeights:
    """``min(round(w / 2^k), 128 / 2^k − 1)`` with constant integers ``w`` and a computed integer ``shift`` (k)."""

    w: np.ndarray
    """int64, −128…127, as the layer has them."""
    shift: gs.Tensor
    transposed: bool
    """Whether the model transposes them (two axes) before the layer."""
    nodes: tuple[gs.Node, ...]


def read_switched(tensor: gs.Tensor) -> SwitchedWeights | None:
    """What ``tensor`` is, or None where it is something else.

    ``Min(Round(Div(w, p)), Sub(Div(128, p), 1))`` with ``p = Pow(2, Cast(k))`` and an integer k; a lower limit of
    −128 / p, which never acts, may be there as well, and a Transpose of two axes may follow. For k from 0 to 7, the only
    values that a model can mean, this is the operators' rounding.
    """
    nodes: list[gs.Node] = []
    transposed = False
    node = producer(tensor)
    if (
        node is not None
        and node.op == "Transpose"
        and not node.domain
        and list(node.attrs.get("perm") or [1, 0]) == [1, 0]
    ):
        transposed, tensor = True, node.inputs[0]
        nodes.append(node)
    limits: list[tuple[str, gs.Tensor]] = []
    for _ in range(2):
        node = producer(tensor)
        if node is None or node.domain or node.op not in ("Min", "Max") or len(node.inputs) != 2:
            break
        inner = [x for x in node.inputs if (above := producer(x)) is not None and above.op in ("Round", "Min", "Max")]
        if len(inner) != 1:
            break
        limits.append((node.op, next(x for x in node.inputs if x is not inner[0])))
        nodes.append(node)
        tensor = inner[0]
    rounded = producer(tensor)
    divided = None if rounded is None or rounded.op != "Round" or rounded.domain else producer(rounded.inputs[0])
    if divided is None or rounded is None or divided.op != "Div" or divided.domain:
        return None
    value = constant(divided.inputs[0])
    power = divided.inputs[1]
    shift = _shift(power)
    if value is None or shift is None or value.dtype != np.float32 or (value != np.round(value)).any():
        return None
    if value.min() < -128 or value.max() > 127 or [op for op, _ in limits].count("Min") != 1:
        return None
    for op, limit in limits:
        if not (_is_most(limit, power) if op == "Min" else _is_quotient(limit, -128.0, power)):
            return None
    raw = value.astype(np.int64)
    return SwitchedWeights(raw.T if transposed else raw, shift, transposed, (*nodes, rounded, divided))


def _shift(power: gs.Tensor) -> gs.Tensor | None:
    """k of ``2^k`` where it is an integer tensor of one element."""
    node = producer(power)
    if node is None or node.domain or node.op != "Pow":
        return None
    base, cast = constant(node.inputs[0]), producer(node.inputs[1])
    if base is None or base.size != 1 or float(base.reshape(())) != 2.0 or cast is None or cast.op != "Cast":
        return None
    shift = cast.inputs[0]
    size = int(np.prod([int(n) for n in shift.shape or []]))
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(shift.dtype))
    is_float = cast_target(cast) == onnx.TensorProto.FLOAT
    return shift if size == 1 and kind in _INTEGERS and is_float else None


def _is_quotient(tensor: gs.Tensor, number: float, power: gs.Tensor) -> bool:
    """Whether ``tensor`` is ``number / power``, or ``number · (1 / power)``, which is the same for powers of two."""
    node = producer(tensor)
    if node is None or node.domain or node.op not in ("Div", "Mul"):
        return False
    for position in (0, 1) if node.op == "Mul" else (0,):
        value, other = constant(node.inputs[position]), node.inputs[1 - position]
        if value is None or value.size != 1 or float(value.reshape(())) != number:
            continue
        inverse = producer(other)
        if node.op == "Mul" and inverse is not None and inverse.op == "Reciprocal" and not inverse.domain:
            return _same(inverse.inputs[0], power)
        return node.op == "Div" and _same(other, power)
    return False


def _is_most(tensor: gs.Tensor, power: gs.Tensor) -> bool:
    """Whether ``tensor`` is ``128 / power − 1``."""
    node = producer(tensor)
    if node is None or node.domain or node.op not in ("Sub", "Add"):
        return False
    one = constant(node.inputs[1])
    wanted = 1.0 if node.op == "Sub" else -1.0
    return (
        one is not None
        and one.size == 1
        and float(one.reshape(())) == wanted
        and _is_quotient(node.inputs[0], 128.0, power)
    )


def _same(a: gs.Tensor, b: gs.Tensor) -> bool:
    """One tensor, or two powers of the same k."""
    return a is b or (_shift(a) is not None and _shift(a) is _shift(b))
