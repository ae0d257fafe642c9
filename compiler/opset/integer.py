"""``IntegerConv`` and ``IntegerGemm``: products of 8-bit integers, for layers whose codes have more bits than planes pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ._windows import convolve
from .base import Attrs, Operator, TensorType, register
from .conv import conv_output_size
from .pack import NCHW_PADS

BYTES = (np.int8, np.uint8)
MOST_TERMS = 8192
"""Longest sum of an IntegerConv: its ONNX body adds float32 products of 4-bit halves, 15 · 128 each, exact below 2^24."""

# Shared by bodies: `x` (8-bit, channels last) convolved with `w_float` (integers below 2^8, [O, C/group, KH, KW]) to `y`.
CONVOLVE = (
    NCHW_PADS
    + """
    x_int = Cast <to = 6> (x)
    sixteen = Constant <value = int32 {16}> ()
    x_low = Mod (x_int, sixteen)
    x_rest = Sub (x_int, x_low)
    x_high = Div (x_rest, sixteen)
    low_float = Cast <to = 1> (x_low)
    high_float = Cast <to = 1> (x_high)
    low_nchw = Transpose <perm = [0, 3, 1, 2]> (low_float)
    high_nchw = Transpose <perm = [0, 3, 1, 2]> (high_float)
    low_padded = Pad <mode = "constant"> (low_nchw, nchw_pads)
    high_padded = Pad <mode = "constant"> (high_nchw, nchw_pads)
    low_sum = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (low_padded, w_float)
    high_sum = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (high_padded, w_float)
    low_acc = Cast <to = 6> (low_sum)
    high_acc = Cast <to = 6> (high_sum)
    high_part = Mul (high_acc, sixteen)
    acc = Add (high_part, low_acc)
    y = Transpose <perm = [0, 2, 3, 1]> (acc)
    """
)


def conv_type(x: TensorType, w: TensorType, attrs: Attrs) -> TensorType:
    """Type of a convolution's accumulators. Raises ``ValueError`` with the reason when operands do not fit."""
    if len(x.shape) != 4 or len(w.shape) != 4 or x.dtype not in BYTES or w.dtype != np.int8:
        raise ValueError(f"x must be int8 or uint8 and w int8, both of rank 4: they are {x} and {w}")
    group = attrs["group"]
    if x.shape[3] % group or w.shape[0] % group or w.shape[3] != x.shape[3] // group:
        raise ValueError(f"x {x.shape} and w {w.shape} do not fit in {group} groups")
    if int(np.prod(w.shape[1:])) > MOST_TERMS:
        raise ValueError(f"a sum has {int(np.prod(w.shape[1:]))} terms, at most {MOST_TERMS} are exact")
    top, left, bottom, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    oh = conv_output_size(x.shape[1], w.shape[1], sh, dh, top, bottom)
    ow = conv_output_size(x.shape[2], w.shape[2], sw, dw, left, right)
    if oh < 1 or ow < 1 or min(attrs["pads"]) < 0:
        raise ValueError(f"the kernel {w.shape[1:3]} is larger than the padded input of x {x.shape}")
    return TensorType((x.shape[0], oh, ow, w.shape[0]), np.dtype(np.int32))


def gemm_type(x: TensorType, w: TensorType) -> TensorType:
    """Type of a product's accumulators. Raises ``ValueError`` with the reason when operands do not fit."""
    if not x.shape or len(w.shape) != 2 or x.dtype not in BYTES or w.dtype != np.int8 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x must be int8 or uint8 [..., K] and w int8 [O, K], are {x} and {w}")
    if w.shape[1] > 1 << 16:
        raise ValueError(f"a sum of {w.shape[1]} terms does not fit int32: at most {1 << 16}")
    return TensorType((*x.shape[:-1], w.shape[0]), np.dtype(np.int32))


class IntegerProduct(Operator):
    """What the products of 8-bit integers share."""

    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times the terms of a sum."""
        return int(np.prod(output.shape)) * int(np.prod(inputs[1].shape[1:]))

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """8 and 8, whatever the range in use."""
        return 8, 8

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """The range that 8-bit factors allow."""
        terms = int(np.prod(inputs[1].shape[1:]))
        least, most = (0, 255) if inputs[0].dtype == np.uint8 else (-128, 127)
        return -128 * most * terms, max(127 * most, -128 * least) * terms, 1


@register
class IntegerConv(IntegerProduct):
    """2-D convolution of 8-bit integers with 8-bit integer weights, to exact int32 accumulators.

    ``x``: int8 or uint8 ``[N, H, W, C]``; ``w``: int8 ``[O, KH, KW, C/group]``; output: int32 ``[N, OH, OW, O]``. ``pads`` =
    [top, left, bottom, right], of zeros. At most 8192 terms a sum.
    """

    name = "IntegerConv"
    inputs = ("x", "w")
    attributes = {"group": int, "strides": list, "dilations": list, "pads": list}
    body = (
        """
    w_nhwc = Cast <to = 1> (w)
    w_float = Transpose <perm = [0, 3, 1, 2]> (w_nhwc)
    """
        + CONVOLVE
    )
    kernel = "int_product:integer_conv"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [N, OH, OW, O]``."""
        return conv_type(inputs[0], inputs[1], attrs)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, w = inputs
        return convolve(x, w, cls.infer([TensorType.of(x), TensorType.of(w)], attrs), attrs)


@register
class IntegerGemm(IntegerProduct):
    """Rows of 8-bit integers times 8-bit integer weights, to exact int32 accumulators.

    ``x``: int8 or uint8 ``[..., K]``; ``w``: int8 ``[O, K]``; output: int32 ``[..., O]``. K is at most 65536.
    """

    name = "IntegerGemm"
    inputs = ("x", "w")
    attributes: ClassVar[dict[str, type]] = {}
    body = """
    x_int = Cast <to = 6> (x)
    w_int = Cast <to = 6> (w)
    columns = Transpose <perm = [1, 0]> (w_int)
    y = MatMul (x_int, columns)
    """
    kernel = "int_product:integer_gemm"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., O]``."""
        return gemm_type(inputs[0], inputs[1])

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, w = inputs
        cls.infer([TensorType.of(x), TensorType.of(w)], attrs)
        return (x.astype(np.int32) @ w.astype(np.int32).T).astype(np.int32)
