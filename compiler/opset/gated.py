"""``GatedSum``: the second of two convolutions counts only where the first is past a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register


@register
class GatedSum(Operator):
    """``y = weight · a + (b where (a >= threshold) xor flip, else 0)`` on accumulators, channels last.

    ``a`` and ``b``: int32 ``[..., C]``, within ±``limit``; ``threshold``: int32 ``[C]``; ``flip``: uint8 ``[C]``, 0 or 1; gives
    int32 ``[..., C]``. What joins the convolutions of an activation's high and low bit in a network with precision gating:
    Y. Zhang et al., "Precision Gating", ICLR 2020; Y. Zhang et al., "FracBNN", FPGA 2021. There a 2-bit activation
    of levels −1, −1/3, 1/3, 1 is (2·high + low) / 3 in signs, so ``weight`` is 2.
    """

    name = "GatedSum"
    inputs = ("a", "b", "threshold", "flip")
    attributes = {"weight": int, "limit": int}
    body = """
    weight_long = Constant <value_int: int = @weight> ()
    weight_int = Cast <to = 6> (weight_long)
    at_least = GreaterOrEqual (a, threshold)
    flipped = Cast <to = 9> (flip)
    open = Xor (at_least, flipped)
    open_int = Cast <to = 6> (open)
    counted = Mul (open_int, b)
    weighted = Mul (a, weight_int)
    y = Add (weighted, counted)
    """
    kernel = "gated:gated_sum"
    anchor = True

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """Both accumulators at the same end of their range."""
        most = (abs(attrs["weight"]) + 1) * attrs["limit"]
        return -most, most, 1

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32``, the shape of ``a``."""
        a, b, threshold, flip = inputs
        if a != b or a.dtype != np.int32 or not a.shape:
            raise ValueError(f"a and b must be int32 of one shape, are {a} and {b}")
        if threshold != TensorType(a.shape[-1:], np.dtype(np.int32)) or flip.shape != a.shape[-1:]:
            raise ValueError(f"threshold {threshold} and flip {flip.shape} must be [{a.shape[-1]}]")
        if attrs["limit"] < 1 or (abs(attrs["weight"]) + 1) * attrs["limit"] >= 1 << 31:
            raise ValueError(f"weight {attrs['weight']} and limit {attrs['limit']} do not fit int32")
        return a

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        a, b, threshold, flip = inputs
        is_open = (a >= threshold) ^ flip.astype(bool)
        return (attrs["weight"] * a + np.where(is_open, b, 0)).astype(np.int32)
