"""``BinaryConv``: convolution of ±1 activations with ±1 weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._windows import convolve
from .base import Attrs, Operator, TensorType, register
from .bits import packed_bytes, to_signs
from .pack import NCHW_PADS, UNPACK_LAST_AXIS, UNPACK_WEIGHTS


def conv_output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Output length of a convolution or pooling along one axis."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


@register
class BinaryConv(Operator):
    """2-D convolution of packed ±1 activations with packed ±1 weights, to exact integer accumulators.

    ``x``: uint8 ``[N, H, W, ceil(C/8)]``; ``w``: uint8 ``[O, KH, KW, ceil((C/group)/8)]``, packed along the input
    channels of the group; output: int32 ``[N, OH, OW, O]`` = sum of x·w over the kernel window.

    ``pads`` = [top, left, bottom, right]; a padded position has value ``pad_value`` in every channel: 0 adds nothing
    (what ``Conv`` after a sign does), −1 or +1 is a padded sign. ``channels`` is C.
    """

    name = "BinaryConv"
    inputs = ("packed", "w")
    attributes = {
        "channels": int, "group": int, "strides": list, "dilations": list, "pads": list, "pad_value": int,
    }  # fmt: skip
    body = (
        UNPACK_LAST_AXIS
        + UNPACK_WEIGHTS
        + NCHW_PADS
        + """
    one_dim = Constant <value_ints = [1]> ()
    begin = Constant <value_ints = [0]> ()
    channels_int = Constant <value_int: int = @channels> ()
    channels_dim = Reshape (channels_int, one_dim)
    group_int = Constant <value_int: int = @group> ()
    group_dim = Reshape (group_int, one_dim)
    group_channels = Div (channels_dim, group_dim)
    x_bits = Slice (bits, begin, channels_dim, unpack_last)
    one_int = Constant <value = int32 {1}> ()
    x_doubled = Mul (x_bits, two)
    x_signs = Sub (x_doubled, one_int)
    x_float = Cast <to = 1> (x_signs)
    x_nchw = Transpose <perm = [0, 3, 1, 2]> (x_float)
    w_own_bits = Slice (w_bits, begin, group_channels, unpack_last)
    w_doubled = Mul (w_own_bits, two)
    w_signs = Sub (w_doubled, one_int)
    w_float = Cast <to = 1> (w_signs)
    w_nchw = Transpose <perm = [0, 3, 1, 2]> (w_float)
    pad_value_int = Constant <value_int: int = @pad_value> ()
    pad_value_float = Cast <to = 1> (pad_value_int)
    x_padded = Pad <mode = "constant"> (x_nchw, nchw_pads, pad_value_float)
    acc = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (x_padded, w_nchw)
    acc_nhwc = Transpose <perm = [0, 2, 3, 1]> (acc)
    y = Cast <to = 6> (acc_nhwc)
    """
    )
    kernel = "conv:binary_conv"
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times kernel positions times channels of a group."""
        _, height, width, _ = inputs[1].shape
        return int(np.prod(output.shape)) * height * width * attrs["channels"] // attrs["group"]

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """The parity of the number of products, unless padded zeros take an odd number of them away."""
        channels = int(attrs["channels"]) // int(attrs["group"])
        _, height, width, _ = inputs[1].shape
        zeros = attrs["pad_value"] == 0 and any(attrs["pads"])
        count = height * width * channels
        return -count, count, 1 if zeros and channels % 2 else 2

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [N, OH, OW, O]``."""
        x, w = inputs
        if len(x.shape) != 4 or len(w.shape) != 4 or x.dtype != np.uint8 or w.dtype != np.uint8:
            raise ValueError(f"x and w must be uint8 of rank 4, are {x} and {w}")
        channels, group = attrs["channels"], attrs["group"]
        if channels % group or w.shape[0] % group:
            raise ValueError(f"{channels} input and {w.shape[0]} output channels do not divide into {group} groups")
        if x.shape[3] != packed_bytes(channels) or w.shape[3] != packed_bytes(channels // group):
            raise ValueError(f"x {x.shape} and w {w.shape} do not hold {channels} channels in {group} groups")
        if attrs["pad_value"] not in (-1, 0, 1) or min(attrs["pads"]) < 0:
            raise ValueError(f"pad_value {attrs['pad_value']} must be -1, 0 or 1 and pads {attrs['pads']} not negative")
        top, left, bottom, right = attrs["pads"]
        (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
        oh = conv_output_size(x.shape[1], w.shape[1], sh, dh, top, bottom)
        ow = conv_output_size(x.shape[2], w.shape[2], sw, dw, left, right)
        if oh < 1 or ow < 1:
            raise ValueError(f"the kernel {w.shape[1:3]} is larger than the padded input of x {x.shape}")
        return TensorType((x.shape[0], oh, ow, w.shape[0]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x_packed, w_packed = inputs
        out = cls.infer([TensorType.of(x_packed), TensorType.of(w_packed)], attrs)
        channels = attrs["channels"]
        x = to_signs(x_packed, channels)
        w = to_signs(w_packed, channels // attrs["group"])
        return convolve(x, w, out, attrs, pad_value=attrs["pad_value"])
