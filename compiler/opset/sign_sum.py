"""``SignMatMul``: rows of bits that were made at run time times floats, by additions and subtractions alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .bits import packed_bytes, unpack_bits
from .products import unpack_float


@register
class SignMatMul(Operator):
    """Rows of packed bits times float32 columns, both computed at run time: the linear attention of EcoFormer.

    ``a``: uint8 ``[..., M, ceil(K/8)]``; ``b``: float32 ``[..., K, N]``, the same leading axes; output: float32 ``[..., M, N]``
    = sum of a·b over K, in any order. A bit stands for −1 and +1, or with ``unsigned`` = 1 for 0 and 1: every product is
    exact, and only the sum rounds.
    """

    name = "SignMatMul"
    inputs = ("a", "b")
    attributes = {"unsigned": int}
    body = (
        unpack_float("a", False)
        + """
    axis_row = Constant <value_ints = [-2]> ()
    axis_zero = Constant <value_ints = [0]> ()
    b_shape = Shape (b)
    k = Gather (b_shape, axis_row)
    a_kept = Slice (a_float, axis_zero, k, a_last)
    unsigned_int = Constant <value_int: int = @unsigned> ()
    unsigned_float = Cast <to = 1> (unsigned_int)
    one = Constant <value = float {1}> ()
    low = Sub (unsigned_float, one)
    height = Sub (one, low)
    a_scaled = Mul (a_kept, height)
    a_values = Add (a_scaled, low)
    y = MatMul (a_values, b)
    """
    )
    kernel = "sign_sum:sign_matmul"

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times K."""
        return int(np.prod(output.shape)) * inputs[1].shape[-2]

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """A bit by a float."""
        return 1, 32

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [..., M, N]``."""
        a, b = inputs
        if a.dtype != np.uint8 or b.dtype != np.float32 or len(a.shape) < 2 or len(a.shape) != len(b.shape):
            raise ValueError(f"a must be uint8 and b float32 of the same rank of at least 2, are {a} and {b}")
        if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != packed_bytes(b.shape[-2]) or attrs["unsigned"] not in (0, 1):
            raise ValueError(f"a {a.shape} and b {b.shape} do not fit, or unsigned={attrs['unsigned']} is not 0 or 1")
        return TensorType((*a.shape[:-1], b.shape[-1]), np.dtype(np.float32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class; summed in float64, rounded once."""
        a, b = inputs
        bits = unpack_bits(a, b.shape[-2]).astype(np.float64)
        values = bits if attrs["unsigned"] else 2 * bits - 1
        return np.matmul(values, b.astype(np.float64)).astype(np.float32)
