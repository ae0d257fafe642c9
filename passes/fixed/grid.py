"""Dyadic numbers: tensors that hold integers times a power of two, and the quantizers that make them.

A value on the grid of ``fraction`` f is raw · 2^-f with an integer raw. float32 holds it exactly while raw stays below 2^24
in magnitude, so that sums and products whose results stay there are exact, in any order, with or without fused multiply-add:
float arithmetic is then integer arithmetic on raw values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ...opset._fixed import Overflow, Rounding
from ..base import constant, producer

EXACT = 1 << 24
"""Integers up to here are float32 values."""
_MOST_FRACTION = 24


@dataclass(frozen=True)
class Grid:
    """Every element is raw · 2^-fraction with ``low`` <= raw <= ``high``."""

    fraction: int
    low: int
    high: int

    @property
    def reach(self) -> int:
        """Largest magnitude of a raw value."""
        return max(abs(self.low), abs(self.high))

    @property
    def fits_byte(self) -> bool:
        """Whether raw values fit int8 or uint8."""
        return (self.low >= -128 and self.high <= 127) or (self.low >= 0 and self.high <= 255)

    def __str__(self) -> str:
        return f"{self.low}…{self.high} · 2^{-self.fraction}"


def raw_constant(value: np.ndarray) -> tuple[np.ndarray, int] | None:
    """A float32 constant as (int64 raw values, fraction), the fraction as small as can be; None if it is on no grid."""
    value = np.asarray(value)
    if value.dtype != np.float32 or not value.size or not np.isfinite(value).all():
        return None
    mantissa, exponent = np.frexp(value.astype(np.float64))
    whole = np.ldexp(mantissa, 24).astype(np.int64)  # a float32 is an integer of 24 bits times 2^(exponent − 24)
    used = whole != 0
    if not used.any():
        return np.zeros(value.shape, np.int64), 0
    lowest = np.zeros(value.shape, np.int64)  # how many low bits of the 24 are zero
    lowest[used] = np.bitwise_count((whole[used] & -whole[used]) - 1)
    fraction = max(0, int((24 - exponent - lowest)[used].max()))
    if fraction > _MOST_FRACTION:
        return None
    raw = np.ldexp(value.astype(np.float64), fraction)
    return (raw.astype(np.int64), fraction) if np.abs(raw).max() < EXACT else None


def power_of_two(value: np.ndarray | None) -> int | None:
    """n where a constant is the one value 2^n, else None."""
    if value is None or value.size != 1 or value.dtype != np.float32:
        return None
    number = float(value.reshape(()))
    if not number > 0 or not math.isfinite(number):
        return None
    mantissa, exponent = math.frexp(number)
    return exponent - 1 if mantissa == 0.5 else None


@dataclass(frozen=True)
class Quantizer:
    """``clip(round(x · 2^fraction)) · 2^-fraction``, whose result is the tensor ``output``."""

    source: gs.Tensor
    output: gs.Tensor
    fraction: int
    low: int
    high: int
    rounding: Rounding
    half: bool
    """Whether it rounds by ``floor(v + 0.5)``: the same as AP_RND only where the sum does not round."""
    nodes: tuple[gs.Node, ...]

    @property
    def grid(self) -> Grid:
        """What the output holds."""
        return Grid(self.fraction, self.low, self.high)

    def describe(self) -> str:
        """As a type of Vitis HLS, where it is one."""
        kind = fixed_type(self.low, self.high)
        if kind is None:
            return f"fixed point {self.grid}, AP_{self.rounding.name}"
        width, signed, overflow = kind
        name = "ap_fixed" if signed else "ap_ufixed"
        return f"{name}<{width}, {width - self.fraction}, AP_{self.rounding.name}, AP_{overflow.name}>"


def fixed_type(low: int, high: int) -> tuple[int, bool, Overflow] | None:
    """(width, signed, overflow) of the saturating fixed-point type with this range, or None."""
    width = (high + 1).bit_length() - 1
    if high < 1 or high + 1 != 1 << width:
        return None
    if low == 0:
        return width, False, Overflow.SAT
    if low in (-high - 1, -high):
        return width + 1, True, Overflow.SAT if low == -high - 1 else Overflow.SAT_SYM
    return None


def scale_step(tensor: gs.Tensor) -> tuple[gs.Tensor, int, gs.Node] | None:
    """``tensor = x · 2^n`` by a Mul or a Div with a constant: (x, n, node)."""
    node = producer(tensor)
    if node is None or node.domain or node.op not in ("Mul", "Div"):
        return None
    for position in (1, 0) if node.op == "Mul" else (1,):
        exponent = power_of_two(constant(node.inputs[position]))
        other = node.inputs[1 - position]
        if exponent is not None and constant(other) is None and list(other.shape or []) == list(tensor.shape or []):
            return other, exponent if node.op == "Mul" else -exponent, node
    return None


def _clip_step(tensor: gs.Tensor) -> tuple[gs.Tensor, float, float, list[gs.Node]] | None:
    """``tensor = clip(x, low, high)`` by a Clip, or by a Min of a Max (or the other way round): (x, low, high, nodes)."""
    node = producer(tensor)
    if node is None or node.domain:
        return None
    if node.op == "Clip" and len(node.inputs) == 3:
        low, high = _single(node.inputs[1]), _single(node.inputs[2])
        return None if low is None or high is None else (node.inputs[0], low, high, [node])
    outer = _bound(node)
    inner_node = None if outer is None else producer(outer[0])
    inner = None if inner_node is None or inner_node.domain or inner_node.op == node.op else _bound(inner_node)
    if outer is None or inner is None or inner_node is None:
        return None
    low, high = (inner[1], outer[1]) if node.op == "Min" else (outer[1], inner[1])
    return (inner[0], low, high, [node, inner_node]) if low <= high else None


def _single(tensor: gs.Tensor) -> float | None:
    value = constant(tensor)
    return None if value is None or value.size != 1 else float(value.reshape(()))


def _bound(node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """The computed operand of a Min or Max with a single constant, and the constant."""
    if node.op not in ("Min", "Max") or len(node.inputs) != 2:
        return None
    for position in (0, 1):
        value = _single(node.inputs[position])
        other = node.inputs[1 - position]
        if (
            value is not None
            and constant(other) is None
            and list(other.shape or []) == list(node.outputs[0].shape or [])
        ):
            return other, value
    return None


def read_quantizer(node: gs.Node) -> Quantizer | None:
    """The fixed-point quantizer whose last node is ``node``: a scale by 2^f, a rounding (Round, Floor, or Floor after adding
    one half), limits before or after the scale back, all with constants. Where f = 0 there need be no scales."""
    if node.domain or node.op not in ("Mul", "Div", "Clip", "Min", "Max") or len(node.outputs) != 1:
        return None
    tensor, nodes, limits, back = node.outputs[0], [], None, None
    for _ in range(2):  # the limits and the scale back, in either order
        if limits is None and (clip := _clip_step(tensor)) is not None:
            limits, tensor = (clip[1], clip[2], back is None), clip[0]
            nodes += clip[3]
        elif back is None and (scaled := scale_step(tensor)) is not None:
            back, tensor = scaled[1], scaled[0]
            nodes.append(scaled[2])
    rounded = producer(tensor)
    if limits is None or rounded is None or rounded.domain or rounded.op not in ("Round", "Floor"):
        return None
    nodes.append(rounded)
    tensor, half = rounded.inputs[0], False
    rounding = Rounding.RND_CONV if rounded.op == "Round" else Rounding.TRN
    added = producer(tensor)
    if rounded.op == "Floor" and added is not None and added.op == "Add" and not added.domain:
        values = [constant(x) for x in added.inputs]
        place = next(
            (i for i, v in enumerate(values) if v is not None and v.size == 1 and float(v.reshape(())) == 0.5), None
        )
        if place is not None:
            nodes.append(added)
            tensor, half, rounding = added.inputs[1 - place], True, Rounding.RND
    fraction = -(back or 0)
    forward = scale_step(tensor)
    if fraction and (forward is None or forward[1] != fraction):
        return None
    if fraction and forward is not None:
        tensor = forward[0]
        nodes.append(forward[2])
    low, high, outermost = limits
    # Limits that come after the scale back are in units of the result.
    after = outermost and back is not None
    factor = 2.0**fraction if after else 1.0
    raw_low, raw_high = low * factor, high * factor
    if raw_low != int(raw_low) or raw_high != int(raw_high) or max(abs(raw_low), abs(raw_high)) >= EXACT:
        return None
    return Quantizer(tensor, node.outputs[0], fraction, int(raw_low), int(raw_high), rounding, half, tuple(nodes))
