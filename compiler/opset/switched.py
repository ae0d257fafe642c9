"""``SwitchedConv`` and ``SwitchedGemm``: weights stored once in 8 bits, rounded to fewer when the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ._fixed import Overflow, Rounding, limit, shift_round
from ._windows import convolve
from .base import Attrs, TensorType, register
from .integer import CONVOLVE, IntegerProduct, conv_type, gemm_type

MOST_SHIFT = 7

# Shared by both bodies: `w_low` (float32, the shape of `w`), the weights of 8 − k bits.
_ROUND_WEIGHTS = """
    wide = Cast <to = 1> (w)
    base = Constant <value = float {2}> ()
    zero_shift = Constant <value = float {0}> ()
    most_shift = Constant <value = float {7}> ()
    shift_float = Cast <to = 1> (shift)
    not_negative = Max (shift_float, zero_shift)
    within = Min (not_negative, most_shift)
    divisor = Pow (base, within)
    divided = Div (wide, divisor)
    rounded = Round (divided)
    full = Constant <value = float {128}> ()
    one = Constant <value = float {1}> ()
    reach = Div (full, divisor)
    greatest = Sub (reach, one)
    w_low = Min (rounded, greatest)
"""


def switched_weights(w: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """int8 weights → int8 weights of 8 − k bits: ``round(w / 2^k)``, ties to even, at most 2^(7−k) − 1.

    N. Li et al., "Double Rounding" (nearly lossless adaptive bit switching): the low-bit weights are a second rounding of
    the stored 8-bit ones. The least weight needs no limit: −128 / 2^k is the least value of 8 − k bits.
    """
    k = int(np.clip(shift.reshape(()), 0, MOST_SHIFT))
    rounded = shift_round(w, k, Rounding.RND_CONV)
    return limit(rounded, 8 - k, True, Overflow.SAT).astype(np.int8)


def _check_shift(shift: TensorType) -> None:
    if shift.dtype != np.int32 or int(np.prod(shift.shape)) != 1:
        raise ValueError(f"shift must be one int32, is {shift}")


@register
class SwitchedConv(IntegerProduct):
    """``IntegerConv`` with weights of 8 − k bits, made of stored 8-bit ones when the model runs.

    ``x``: int8 or uint8 ``[N, H, W, C]``; ``w``: int8 ``[O, KH, KW, C/group]``; ``shift``: int32, one element, k from 0 to
    7 (other values are taken as the nearest of these). A weight is ``min(round(w / 2^k), 2^(7−k) − 1)``, ties to even.
    Output: int32 ``[N, OH, OW, O]``.
    """

    name = "SwitchedConv"
    inputs = ("x", "w", "shift")
    attributes = {"group": int, "strides": list, "dilations": list, "pads": list}
    body = _ROUND_WEIGHTS + "    w_float = Transpose <perm = [0, 3, 1, 2]> (w_low)\n" + CONVOLVE
    kernel = "int_product:switched_conv"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [N, OH, OW, O]``."""
        _check_shift(inputs[2])
        return conv_type(inputs[0], inputs[1], attrs)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, w, shift = inputs
        out = cls.infer([TensorType.of(value) for value in inputs], attrs)
        return convolve(x, switched_weights(w, shift), out, attrs)


@register
class SwitchedGemm(IntegerProduct):
    """``IntegerGemm`` with weights of 8 − k bits, made of stored 8-bit ones when the model runs.

    ``x``: int8 or uint8 ``[..., K]``; ``w``: int8 ``[O, K]``; ``shift``: int32, one element, k as for ``SwitchedConv``;
    output: int32 ``[..., O]``.
    """

    name = "SwitchedGemm"
    inputs = ("x", "w", "shift")
    attributes: ClassVar[dict[str, type]] = {}
    body = (
        _ROUND_WEIGHTS
        + """
    x_int = Cast <to = 6> (x)
    w_int = Cast <to = 6> (w_low)
    columns = Transpose <perm = [1, 0]> (w_int)
    y = MatMul (x_int, columns)
    """
    )
    kernel = "int_product:switched_gemm"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., O]``."""
        _check_shift(inputs[2])
        return gemm_type(inputs[0], inputs[1])

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, w, shift = inputs
        cls.infer([TensorType.of(value) for value in inputs], attrs)
        return (x.astype(np.int32) @ switched_weights(w, shift).astype(np.int32).T).astype(np.int32)
