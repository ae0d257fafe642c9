"""``BinaryMaxPool``: max-pooling of ±1 values, as OR over bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._windows import taps
from .base import Attrs, Operator, TensorType, register
from .conv import conv_output_size
from .pack import NCHW_PADS, UNPACK_LAST_AXIS

# Shared by bodies: the largest of each window of float32 `nchw` as `nhwc`, where padding (0) never wins over codes.
POOL = """
    nothing = Constant <value = float {0}> ()
    padded = Pad <mode = "constant"> (nchw, nchw_pads, nothing)
    pooled = MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, dilations: ints = @dilations>
        (padded)
    nhwc = Transpose <perm = [0, 2, 3, 1]> (pooled)
    """

# Shared by bodies: `pooled_bits` (int32 0 or 1, channels last) packed and flipped back to `y`.
PACK_POOLED = """
    pooled_shape = Shape (pooled_bits)
    pooled_head = Slice (pooled_shape, unpack_first, unpack_last)
    minus = Constant <value_ints = [-1, 8]> ()
    grouped_shape = Concat <axis = 0> (pooled_head, minus)
    grouped = Reshape (pooled_bits, grouped_shape)
    weighted = Mul (grouped, divisors)
    total = ReduceSum <keepdims = 0> (weighted, unpack_last)
    ored = Cast <to = 2> (total)
    y = BitwiseXor (ored, flip)
    """


@register
class BinaryMaxPool(Operator):
    """Max-pooling (min-pooling where ``flip`` has a bit set) of packed ±1 feature maps.

    ``x``: uint8 ``[N, H, W, B]``; ``flip``: uint8 ``[B]``; output: uint8 ``[N, OH, OW, B]`` =
    ``flip ^ OR over the window (x ^ flip)``. A channel whose threshold is decreasing in the accumulator needs the
    minimum: its flip bit is 1. Padded positions never win: they add nothing to the OR.
    """

    name = "BinaryMaxPool"
    inputs = ("x", "flip")
    attributes = {"kernel_shape": list, "strides": list, "dilations": list, "pads": list}
    body = (
        "    packed = BitwiseXor (x, flip)\n"
        + UNPACK_LAST_AXIS
        + NCHW_PADS
        + """
    bits_float = Cast <to = 1> (bits)
    nchw = Transpose <perm = [0, 3, 1, 2]> (bits_float)
    """
        + POOL
        + """
    pooled_bits = Cast <to = 6> (nhwc)
    """
        + PACK_POOLED
    )
    kernel = "pool:binary_max_pool"
    packed_output = True

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``uint8 [N, OH, OW, B]``."""
        x, flip = inputs
        if len(x.shape) != 4 or x.dtype != np.uint8 or flip.dtype != np.uint8 or flip.shape != x.shape[3:]:
            raise ValueError(f"x must be uint8 [N, H, W, B] and flip uint8 [B], are {x} and {flip}")
        top, left, bottom, right = attrs["pads"]
        (kh, kw), (sh, sw), (dh, dw) = attrs["kernel_shape"], attrs["strides"], attrs["dilations"]
        oh = conv_output_size(x.shape[1], kh, sh, dh, top, bottom)
        ow = conv_output_size(x.shape[2], kw, sw, dw, left, right)
        if oh < 1 or ow < 1 or min(attrs["pads"]) < 0:
            raise ValueError(f"the window {attrs['kernel_shape']} does not fit the padded input of x {x.shape}")
        return TensorType((x.shape[0], oh, ow, x.shape[3]), np.dtype(np.uint8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, flip = inputs
        out = cls.infer([TensorType.of(x), TensorType.of(flip)], attrs)
        y = np.zeros(out.shape, np.uint8)
        for _, _, under in taps(x ^ flip, attrs["kernel_shape"], out.shape[1:3], attrs):
            y |= under
        return y ^ flip
