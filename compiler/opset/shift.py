"""``ShiftGemm`` and ``ShiftConv``: float32 activations times weights that are powers of two times a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._codes import (
    CODES,
    CONV_ATTRIBUTES,
    CONVOLUTION,
    PLANES,
    PRODUCT,
    check_planes,
    convolution,
    infer_convolution,
    infer_product,
    load_codes,
    product,
    product_macs,
)
from .base import Attrs, Operator, TensorType, register

# After `PLANES` and `CODES`: float `weights` [O, k] = ±2^exponent · scale; the last plane is the sign.
_WEIGHTS = """
    last_plane = Sub (plane_count, at_one)
    sign_worth = Gather (powers, last_plane)
    sign_of = Div (codes, sign_worth)
    exponent = Mod (codes, sign_worth)
    power_table = Constant <value = float[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    sign_table = Constant <value = float[2] {1, -1}> ()
    magnitude = Gather (power_table, exponent)
    signs = Gather (sign_table, sign_of)
    signed = Mul (magnitude, signs)
    scale_columns = Unsqueeze (scale, minus_one)
    weights = Mul (signed, scale_columns)
"""


class Shift(Operator):
    """What the operators on sign-and-exponent codes share."""

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """Float activations, weights of as many bits as there are planes."""
        return 32, inputs[1].shape[0]

    @classmethod
    def check_codes(cls, inputs: Sequence[TensorType], attrs: Attrs) -> None:
        """Raise ``ValueError`` unless codes and scale fit."""
        w, scale = inputs[1:3]
        check_planes(w, attrs["k"], 2, 4)
        if scale.shape != (w.shape[1],) or scale.dtype != np.float32:
            raise ValueError(f"scale must be float32 [{w.shape[1]}], is {scale}")

    @classmethod
    def weights(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """The weights ``float32 [O, K]`` that the codes stand for: exact but for overflow and subnormal numbers."""
        w, scale = inputs[1:3]
        codes, half = load_codes(w, attrs["k"]), 1 << (len(w) - 1)
        magnitude = (1 << (codes % half)).astype(np.float32)
        return np.where(codes >= half, -magnitude, magnitude) * scale[:, None]


@register
class ShiftGemm(Shift):
    """Float32 rows times powers of two: ``y = Σ x·(±2^e·scale)``, a float32 sum in any order.

    ``x``: float32 ``[..., K]``; ``w``: uint8 ``[P, O, ceil(K/8)]``, P = 2 to 4 bit planes: P − 1 of the exponent e, low bit
    first, and then the sign, where 1 is −; ``scale``: float32 ``[O]``; output float32 ``[..., O]``. ``k`` is K.
    """

    name = "ShiftGemm"
    inputs = ("x", "w", "scale")
    attributes = {"k": int}
    body = PLANES + CODES + _WEIGHTS + PRODUCT
    kernel = "low_bit:gemm"
    factors = (32, 4)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [..., O]``."""
        cls.check_codes(inputs, attrs)
        return infer_product(inputs[0], inputs[1], attrs["k"])

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return product(inputs[0], cls.weights(inputs, attrs))

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Rows times weights."""
        return product_macs(inputs[0], inputs[1])


@register
class ShiftConv(Shift):
    """2-D convolution of float32 feature maps with powers of two, a float32 sum in any order.

    ``x``: float32 ``[N, C, H, W]``; ``w`` and ``scale``: as of ``ShiftGemm``, where K = C/group·KH·KW counts a filter's weights
    in the order [C/group, KH, KW]; output float32 ``[N, O, OH, OW]``. Padding adds zeros.
    """

    name = "ShiftConv"
    inputs = ("x", "w", "scale")
    attributes = CONV_ATTRIBUTES
    body = PLANES + CODES + "    two_dim = Constant <value_ints = [2]> ()\n" + _WEIGHTS + CONVOLUTION
    kernel = "low_bit:conv"
    factors = (32, 4)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [N, O, OH, OW]``."""
        cls.check_codes(inputs, attrs)
        return infer_convolution(inputs[0], inputs[1], attrs)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return convolution(inputs[0], cls.weights(inputs, attrs), attrs)

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times weights of a filter."""
        return int(np.prod(output.shape)) * int(attrs["k"])
