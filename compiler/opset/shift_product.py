"""``IntegerMatMul`` and ``ShiftMatMul``: products of two matrices of 8-bit integers that are both made at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .integer import BYTES


def matmul_type(a: TensorType, b: TensorType) -> TensorType:
    """int32 ``[..., M, N]``. Raises ``ValueError`` with the reason when operands do not fit."""
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"a {a.shape} and b {b.shape} must be [..., M, K] and [..., K, N] with the same leading axes")
    return TensorType((*a.shape[:-1], b.shape[-1]), np.dtype(np.int32))


@register
class IntegerMatMul(Operator):
    """Product of two computed matrices of 8-bit integers, in int32.

    ``a``: int8 or uint8 ``[..., M, K]``; ``b``: int8 or uint8 ``[..., K, N]``, same leading axes; output: int32
    ``[..., M, N]``. K is at most 32768.
    """

    name = "IntegerMatMul"
    inputs = ("a", "b")
    attributes: ClassVar[dict[str, type]] = {}
    body = """
    a_int = Cast <to = 6> (a)
    b_int = Cast <to = 6> (b)
    y = MatMul (a_int, b_int)
    """
    kernel = "shift_product:integer_matmul"

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times K."""
        return int(np.prod(output.shape)) * inputs[0].shape[-1]

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """8 and 8, whatever the range in use."""
        return 8, 8

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., M, N]``."""
        a, b = inputs
        if a.dtype not in BYTES or b.dtype not in BYTES or (a.shape and a.shape[-1] > 1 << 15):
            raise ValueError(f"a and b must be int8 or uint8 with at most 32768 terms, are {a} and {b}")
        return matmul_type(a, b)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        a, b = inputs
        cls.infer([TensorType.of(a), TensorType.of(b)], attrs)
        return np.matmul(a.astype(np.int32), b.astype(np.int32))


@register
class StepCode(Operator):
    """How many thresholds a value reaches: ``y = #{t : x >= threshold[t]}``.

    ``x``: float32, any shape, no NaN; ``threshold``: float32 ``[T]``, rising, T from 1 to 255; output: uint8. What a quantizer
    on a logarithmic grid is: no logarithm is taken when the model runs.
    """

    name = "StepCode"
    inputs = ("x", "threshold")
    attributes: ClassVar[dict[str, type]] = {}
    body = """
    last = Constant <value_ints = [-1]> ()
    column = Unsqueeze (x, last)
    reached = GreaterOrEqual (column, threshold)
    counted = Cast <to = 6> (reached)
    total = ReduceSum <keepdims = 0> (counted, last)
    y = Cast <to = 2> (total)
    """
    kernel = "shift_product:step_code"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``uint8``, the shape of ``x``."""
        x, threshold = inputs
        if x.dtype != np.float32 or threshold.dtype != np.float32 or len(threshold.shape) != 1:
            raise ValueError(f"x and threshold must be float32 and threshold have one axis, are {x} and {threshold}")
        if not 0 < threshold.shape[0] < 256:
            raise ValueError(f"{threshold.shape[0]} thresholds: 1 to 255 fit a uint8")
        return TensorType(x.shape, np.dtype(np.uint8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, threshold = inputs
        return (x[..., None] >= threshold).sum(-1).astype(np.uint8)


@register
class ShiftMatMul(Operator):
    """Product of powers of two with integers, by shifts: ``y = Σ b << shifts[a]``.

    ``a``: uint8 ``[..., M, K]``, codes of a quantizer whose levels are powers of two; ``b``: int8 or uint8 ``[..., K, N]``,
    same leading axes; output: int32 ``[..., M, N]``. ``shifts``: one number a code, 0 to 24, or −1 for a level that is
    zero. Codes past the last count as the last. ``K · 255 · 2^max(shifts)`` is below 2^31. What multiplies attention
    probabilities on a logarithmic grid with values: Z. Li et al., "RepQuant", 2024.
    """

    name = "ShiftMatMul"
    inputs = ("a", "b")
    attributes = {"shifts": list}
    body = """
    table = Constant <value_ints: ints = @shifts> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    levels = Size (table)
    last = Sub (levels, one)
    code = Cast <to = 7> (a)
    known = Min (code, last)
    amount = Gather (table, known)
    counts = GreaterOrEqual (amount, zero)
    at_least = Max (amount, zero)
    power = Pow (two, at_least)
    counted = Cast <to = 7> (counts)
    weight = Mul (power, counted)
    a_int = Cast <to = 6> (weight)
    b_int = Cast <to = 6> (b)
    y = MatMul (a_int, b_int)
    """
    kernel = "shift_product:shift_matmul"

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times K."""
        return int(np.prod(output.shape)) * inputs[0].shape[-1]

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """A shift costs as a product with its code does."""
        return max(1, (len(attrs["shifts"]) - 1).bit_length()), 8

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., M, N]``."""
        a, b = inputs
        if a.dtype != np.uint8 or b.dtype not in BYTES:
            raise ValueError(f"a must be uint8 and b int8 or uint8, are {a} and {b}")
        shifts = list(attrs["shifts"])
        if not 0 < len(shifts) <= 256 or min(shifts) < -1 or max(shifts) > 24 or max(shifts) < 0:
            raise ValueError(f"shifts must be 1 to 256 numbers from -1 to 24, are {shifts}")
        out = matmul_type(a, b)
        if (a.shape[-1] * 255) << max(shifts) >= 1 << 31:
            raise ValueError(f"{a.shape[-1]} terms shifted by {max(shifts)} do not fit int32")
        return out

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        a, b = inputs
        cls.infer([TensorType.of(a), TensorType.of(b)], attrs)
        shifts = np.asarray(attrs["shifts"], np.int64)
        amount = shifts[np.minimum(a, len(shifts) - 1)]
        weight = np.where(amount >= 0, np.int64(1) << np.maximum(amount, 0), 0)
        return np.matmul(weight, b.astype(np.int64)).astype(np.int32)
