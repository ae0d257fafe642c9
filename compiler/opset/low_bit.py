"""``LowBitGemm`` and ``LowBitConv``: float32 activations times weights of 1 to 4 bits, scaled group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ._codes import (
    CODES,
    CONV_ATTRIBUTES,
    CONVOLUTION,
    PLANES,
    PRODUCT,
    check_planes,
    convolution,
    expand_groups,
    infer_convolution,
    infer_product,
    load_codes,
    product,
    product_macs,
)
from .base import Attrs, Operator, TensorType, register

# After `CODES`: float `weights` [O, k] = (code − zero)·scale + offset.
GROUP_WEIGHTS = """
    k_first = Constant <value = int64 {0}> ()
    k_step = Constant <value = int64 {1}> ()
    k_range = Range (k_first, k_int, k_step)
    group_size = Constant <value_int: int = @group_size> ()
    group_of = Div (k_range, group_size)
    groups_shape = Shape (scale)
    zero_groups = Expand (zero, groups_shape)
    offset_groups = Expand (offset, groups_shape)
    zero_each = Gather <axis = 1> (zero_groups, group_of)
    scale_each = Gather <axis = 1> (scale, group_of)
    offset_each = Gather <axis = 1> (offset_groups, group_of)
    codes_float = Cast <to = 1> (codes)
    centred = Sub (codes_float, zero_each)
    scaled = Mul (centred, scale_each)
    weights = Add (scaled, offset_each)
"""


class LowBit(Operator):
    """What the operators on grouped codes share."""

    most_planes: ClassVar[int] = 4

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """Float activations, weights of as many bits as there are planes."""
        return 32, inputs[1].shape[0]

    @classmethod
    def check_groups(cls, inputs: Sequence[TensorType], attrs: Attrs) -> None:
        """Raise ``ValueError`` unless codes, scales, zeros and offsets fit."""
        w, scale, zero, offset = inputs[1:5]
        check_planes(w, attrs["k"], 1, cls.most_planes)
        size = attrs["group_size"]
        groups = (w.shape[1], -(-attrs["k"] // size)) if size > 0 else (0, 0)
        if size < 1 or (size % 8 and size < attrs["k"]) or scale.shape != groups or scale.dtype != np.float32:
            raise ValueError(
                f"scale must be float32 {list(groups)} for groups of {size} (a multiple of 8, or all {attrs['k']}), is {scale}"
            )
        for name, value in (("zero", zero), ("offset", offset)):
            if value.shape not in (groups, (1, 1)) or value.dtype != np.float32:
                raise ValueError(f"{name} must be float32 {list(groups)} or [1, 1], is {value}")

    @classmethod
    def weights(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """The weights ``float32 [O, K]`` that the codes stand for, rounded as the body rounds."""
        w, scale, zero, offset = inputs[1:5]
        k, size = attrs["k"], attrs["group_size"]
        zero, scale, offset = (expand_groups(v, scale.shape, k, size) for v in (zero, scale, offset))
        return (load_codes(w, k).astype(np.float32) - zero) * scale + offset


@register
class LowBitGemm(LowBit):
    """Float32 rows times weights of 1 to 4 bits: ``y = Σ x·((code − zero)·scale + offset)``, a float32 sum in any order.

    ``x``: float32 ``[..., K]``; ``w``: uint8 ``[P, O, ceil(K/8)]``, P bit planes of the codes, plane p worth 2^p; ``scale``:
    float32 ``[O, G]``, one for each ``group_size`` weights of a channel (G = ceil(K / group_size)); ``zero`` and ``offset``:
    the same, or ``[1, 1]``; output float32 ``[..., O]``. A weight is rounded to float32 after each of its three operations:
    −s and +s are zero 0.5 and scale 2s; a mean m beside them is the offset. ``k`` is K. ``group_size``: a multiple of 8, or K.
    """

    name = "LowBitGemm"
    inputs = ("x", "w", "scale", "zero", "offset")
    attributes = {"k": int, "group_size": int}
    body = PLANES + CODES + GROUP_WEIGHTS + PRODUCT
    kernel = "low_bit:gemm"
    factors = (32, 4)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [..., O]``."""
        cls.check_groups(inputs, attrs)
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
class LowBitConv(LowBit):
    """2-D convolution of float32 feature maps with weights of 1 to 4 bits, a float32 sum in any order.

    ``x``: float32 ``[N, C, H, W]``; ``w``, ``scale``, ``zero``, ``offset``: as of ``LowBitGemm``, where K = C/group·KH·KW
    counts a filter's weights in the order [C/group, KH, KW]; output float32 ``[N, O, OH, OW]``. Padding adds zeros.
    """

    name = "LowBitConv"
    inputs = ("x", "w", "scale", "zero", "offset")
    attributes = {**CONV_ATTRIBUTES, "group_size": int}
    body = PLANES + CODES + "    two_dim = Constant <value_ints = [2]> ()\n" + GROUP_WEIGHTS + CONVOLUTION
    kernel = "low_bit:conv"
    factors = (32, 4)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [N, O, OH, OW]``."""
        cls.check_groups(inputs, attrs)
        if attrs["group_size"] < attrs["k"]:
            raise ValueError(f"a convolution's filter has one group: group_size must be {attrs['k']}")
        return infer_convolution(inputs[0], inputs[1], attrs)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return convolution(inputs[0], cls.weights(inputs, attrs), attrs)

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times weights of a filter."""
        return int(np.prod(output.shape)) * int(attrs["k"])
