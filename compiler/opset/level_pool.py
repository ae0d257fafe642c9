"""``LevelMaxPool``: max-pooling of few-bit codes in bit planes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._windows import taps
from .base import Attrs, Operator, TensorType, register
from .bits import pack_bits
from .levels import MAX_PLANES
from .pack import NCHW_PADS, UNPACK_LAST_AXIS
from .pool import PACK_POOLED, POOL, BinaryMaxPool


@register
class LevelMaxPool(Operator):
    """Max-pooling (min-pooling where ``flip`` has a bit set) of feature maps of codes in bit planes.

    ``x``: uint8 ``[planes, N, H, W, B]``, plane i holds bit i of a number from 0 to 2^planes − 1, as ``PackLevels`` gives it;
    ``flip``: uint8 ``[B]``; output: uint8 ``[planes, N, OH, OW, B]``, the largest code under the window. In a channel whose
    flip bit is 1 it is the least: all its bits are inverted before and behind. Padded positions never win.
    """

    name = "LevelMaxPool"
    inputs = ("x", "flip")
    attributes = BinaryMaxPool.attributes
    body = (
        "    packed = BitwiseXor (x, flip)\n"
        + UNPACK_LAST_AXIS
        + NCHW_PADS
        + """
    second = Constant <value_ints = [1]> ()
    plane_count = Slice (unpack_shape, unpack_first, second)
    all_worths = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    own_worths = Slice (all_worths, unpack_first, plane_count)
    worths_shape = Constant <value_ints = [-1, 1, 1, 1, 1]> ()
    worths = Reshape (own_worths, worths_shape)
    valued = Mul (bits, worths)
    code = ReduceSum <keepdims = 0> (valued, unpack_first)
    code_float = Cast <to = 1> (code)
    nchw = Transpose <perm = [0, 3, 1, 2]> (code_float)
    """
        + POOL
        + """
    pooled_code = Cast <to = 6> (nhwc)
    pooled_one = Unsqueeze (pooled_code, unpack_first)
    pooled_moved = Div (pooled_one, worths)
    pooled_bits = Mod (pooled_moved, two)
    """
        + PACK_POOLED
    )
    kernel = "pool:level_max_pool"
    packed_output = True

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``uint8 [planes, N, OH, OW, B]``."""
        x, flip = inputs
        if len(x.shape) != 5 or not 0 < x.shape[0] <= MAX_PLANES:
            raise ValueError(f"x {x.shape} must be [planes, N, H, W, B] with 1 to {MAX_PLANES} planes")
        plane = BinaryMaxPool.infer([TensorType(x.shape[1:], x.dtype), flip], attrs)
        return TensorType((x.shape[0], *plane.shape), plane.dtype)

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, flip = inputs
        _, _, oh, ow, _ = cls.infer([TensorType.of(x), TensorType.of(flip)], attrs).shape
        bits = np.unpackbits(x ^ flip, axis=-1, bitorder="little")
        code = np.tensordot(1 << np.arange(len(x)), bits.astype(np.int64), 1)
        best = np.max([under for _, _, under in taps(code, attrs["kernel_shape"], (oh, ow), attrs)], axis=0)
        return np.stack([pack_bits((best >> plane) & 1) for plane in range(len(x))]) ^ flip
