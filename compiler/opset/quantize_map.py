"""``QuantizeMap``: float32 to 8-bit codes with one scale for a tensor, laid out for a product of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .pack import check_perm


@register
class QuantizeMap(Operator):
    """Float32 to int8 with one factor: ``y = clip(round(transpose(x, perm) · factor), low, high)``, ties to even.

    ``x``: float32, any rank of at least 1; ``factor``: float32 ``[1]``, the reciprocal of the scale; output: int8. The product
    is rounded to float32 before it is rounded to an integer.
    """

    name = "QuantizeMap"
    inputs = ("x", "factor")
    attributes = {"perm": list, "low": int, "high": int}
    body = """
    moved = Transpose <perm: ints = @perm> (x)
    scaled = Mul (moved, factor)
    rounded = Round (scaled)
    low_int = Constant <value_int: int = @low> ()
    low_float = Cast <to = 1> (low_int)
    high_int = Constant <value_int: int = @high> ()
    high_float = Cast <to = 1> (high_int)
    clipped = Clip (rounded, low_float, high_float)
    y = Cast <to = 3> (clipped)
    """
    kernel = "quantize_map:quantize_map"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int8``, the transposed shape."""
        x, factor = inputs
        check_perm(attrs["perm"], len(x.shape))
        if not x.shape or x.dtype != np.float32 or factor.dtype != np.float32 or factor.shape != (1,):
            raise ValueError(
                f"x must be float32 of at least one axis and factor float32 [1]: they are {x} and {factor}"
            )
        if not -128 <= attrs["low"] <= attrs["high"] <= 127:
            raise ValueError(f"low {attrs['low']} and high {attrs['high']} must lie in [-128, 127], in this order")
        return TensorType(tuple(x.shape[axis] for axis in attrs["perm"]), np.dtype(np.int8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, factor = inputs
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.transpose(x, attrs["perm"]) * factor
        return np.clip(np.rint(scaled), attrs["low"], attrs["high"]).astype(np.int8)
