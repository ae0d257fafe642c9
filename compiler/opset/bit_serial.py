"""``BitSerialConv`` and ``BitSerialGemm``: products of few-bit integers, one pair of bit planes at a time.

An activation is ``Σ x_coeffs[i]·bit_i + x_offset``. A weight is ``Σ w_coeffs[j]·v_j``, where v_j is the bit of plane j, or,
with ``bipolar`` = 1, −1 for a bit of 0 and +1 for a bit of 1 (a sum of binary bases with integer coefficients). So two's
complement has coefficients 1, 2, 4, …, −2^(n−1); the levels −3, −1, 1, 3 are two planes with coefficients 2, 4 and offset −3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._windows import convolve
from .base import Attrs, Operator, TensorType, register
from .bits import packed_bytes, unpack_bits
from .conv import conv_output_size
from .levels import MAX_PLANES
from .pack import NCHW_PADS, UNPACK_LAST_AXIS, UNPACK_WEIGHTS

# Shared by both bodies: coefficients as tensors, and the weights' bits as values 0/1 or ±1 (float `w_values`).
_COEFFICIENTS = """
    one_dim = Constant <value_ints = [1]> ()
    two_dim = Constant <value_ints = [2]> ()
    x_own_coeffs = Constant <value_ints: ints = @x_coeffs> ()
    x_offset_int = Constant <value_int: int = @x_offset> ()
    x_offset_dim = Reshape (x_offset_int, one_dim)
    w_all_coeffs = Constant <value_ints: ints = @w_coeffs> ()
    w_coeffs_int = Cast <to = 6> (w_all_coeffs)
    bipolar_long = Constant <value_int: int = @bipolar> ()
    bipolar_int = Cast <to = 6> (bipolar_long)
    one_int = Constant <value = int32 {1}> ()
    spread = Add (bipolar_int, one_int)
"""


def weight_values(bits: np.ndarray, attrs: Attrs) -> np.ndarray:
    """Integer weights (int64) of bit planes ``[m, ...]``: their sum with the coefficients."""
    values = bits.astype(np.int64)
    if attrs["bipolar"]:
        values = 2 * values - 1
    return np.tensordot(np.asarray(attrs["w_coeffs"], np.int64), values, axes=1)


def activation_values(bits: np.ndarray, attrs: Attrs) -> np.ndarray:
    """Integer activations (int64) of bit planes ``[n, ...]``: their sum with the coefficients, and the offset."""
    return np.tensordot(np.asarray(attrs["x_coeffs"], np.int64), bits.astype(np.int64), axes=1) + int(attrs["x_offset"])


def _widest(attrs: Attrs, terms: int, padded: bool) -> tuple[int, int, int]:
    """Bounds of a sum of ``terms`` products, from the coefficients alone."""
    x, w = np.asarray(attrs["x_coeffs"], np.int64), np.asarray(attrs["w_coeffs"], np.int64)
    shift = int(attrs["x_offset"])
    ends_x = [int(x[x < 0].sum()) + shift, int(x[x > 0].sum()) + shift]
    ends_w = [-int(np.abs(w).sum()), int(np.abs(w).sum())] if attrs["bipolar"] else [
        int(w[w < 0].sum()), int(w[w > 0].sum())]  # fmt: skip
    products = [a * b for a in ends_x for b in ends_w] + ([0] if padded else [])
    return terms * min(products), terms * max(products), 1


def _check_planes(x: TensorType, w: TensorType, attrs: Attrs) -> None:
    if x.dtype != np.uint8 or w.dtype != np.uint8:
        raise ValueError(f"planes and weights must be uint8, are {x} and {w}")
    if not 0 < x.shape[0] == len(attrs["x_coeffs"]) <= MAX_PLANES:
        raise ValueError(f"{x.shape[0]} activation planes do not fit {len(attrs['x_coeffs'])} coefficients")
    if not 0 < w.shape[0] == len(attrs["w_coeffs"]) <= MAX_PLANES:
        raise ValueError(f"{w.shape[0]} weight planes do not fit {len(attrs['w_coeffs'])} coefficients")
    if attrs["bipolar"] not in (0, 1):
        raise ValueError(f"bipolar must be 0 or 1, is {attrs['bipolar']}")


def _check_reach(reach: tuple[int, int, int]) -> None:
    """Raise ``ValueError`` unless every accumulator fits int32."""
    low, high, _ = reach
    if low < -(1 << 31) or high >= 1 << 31:
        raise ValueError(f"sums from {low} to {high} do not fit int32")


@register
class BitSerialConv(Operator):
    """2-D convolution of few-bit activations with few-bit weights, both as bit planes, to exact integer accumulators.

    ``packed``: uint8 ``[n, N, H, W, ceil(C/8)]``; ``w``: uint8 ``[m, O, KH, KW, ceil((C/group)/8)]``, packed along the
    input channels of the group; output: int32 ``[N, OH, OW, O]`` = sum of x·w over the kernel window, where
    ``x = Σ x_coeffs[i]·bit_i + x_offset`` and ``w = Σ w_coeffs[j]·v_j`` with v = bit (``bipolar`` = 0) or 2·bit − 1
    (``bipolar`` = 1).

    ``pads`` = [top, left, bottom, right]: a padded position adds nothing, whatever the offset. ``channels`` is C.
    """

    name = "BitSerialConv"
    inputs = ("packed", "w")
    attributes = {
        "channels": int, "group": int, "strides": list, "dilations": list, "pads": list,
        "x_coeffs": list, "x_offset": int, "w_coeffs": list, "bipolar": int,
    }  # fmt: skip
    body = (
        UNPACK_LAST_AXIS
        + UNPACK_WEIGHTS
        + NCHW_PADS
        + _COEFFICIENTS
        + """
    begin = Constant <value_ints = [0]> ()
    five_dim = Constant <value_ints = [5]> ()
    channels_int = Constant <value_int: int = @channels> ()
    channels_dim = Reshape (channels_int, one_dim)
    group_int = Constant <value_int: int = @group> ()
    group_dim = Reshape (group_int, one_dim)
    group_channels = Div (channels_dim, group_dim)
    x_bits = Slice (bits, begin, channels_dim, unpack_last)
    x_shape = Shape (x_bits)
    images = Slice (x_shape, one_dim, two_dim)
    plane_shape = Slice (x_shape, one_dim, five_dim)
    ones_shape = Concat <axis = 0> (one_dim, plane_shape)
    ones = ConstantOfShape <value = int32[1] {1}> (ones_shape)
    x_all = Concat <axis = 0> (x_bits, ones)
    x_float = Cast <to = 1> (x_all)
    image_shape = Slice (x_shape, two_dim, five_dim)
    folded_shape = Concat <axis = 0> (unpack_last, image_shape)
    x_folded = Reshape (x_float, folded_shape)
    x_nchw = Transpose <perm = [0, 3, 1, 2]> (x_folded)
    nothing = Constant <value = float {0}> ()
    x_padded = Pad <mode = "constant"> (x_nchw, nchw_pads, nothing)
    w_own_bits = Slice (w_bits, begin, group_channels, unpack_last)
    w_spread = Mul (w_own_bits, spread)
    w_values = Sub (w_spread, bipolar_int)
    w_own_shape = Shape (w_own_bits)
    w_planes = Slice (w_own_shape, begin, one_dim)
    w_rest = Slice (w_own_shape, two_dim, five_dim)
    w_grouped_shape = Concat <axis = 0> (w_planes, group_dim, unpack_last, w_rest)
    w_grouped = Reshape (w_values, w_grouped_shape)
    w_moved = Transpose <perm = [1, 0, 2, 5, 3, 4]> (w_grouped)
    w_kernel = Slice (w_own_shape, two_dim, pad_4)
    w_conv_shape = Concat <axis = 0> (unpack_last, group_channels, w_kernel)
    w_conv_int = Reshape (w_moved, w_conv_shape)
    w_conv = Cast <to = 1> (w_conv_int)
    sums = Conv <strides: ints = @strides, dilations: ints = @dilations, group: int = @group> (x_padded, w_conv)
    sums_int = Cast <to = 6> (sums)
    sums_shape = Shape (sums)
    spatial = Slice (sums_shape, two_dim, pad_4)
    x_coeffs_long = Concat <axis = 0> (x_own_coeffs, x_offset_dim)
    x_coeffs_int = Cast <to = 6> (x_coeffs_long)
    x_planes = Shape (x_coeffs_int)
    all_shape = Concat <axis = 0> (x_planes, images, group_dim, w_planes, unpack_last, spatial)
    parts = Reshape (sums_int, all_shape)
    x_coeffs_shape = Constant <value_ints = [-1, 1, 1, 1, 1, 1, 1]> ()
    x_factors = Reshape (x_coeffs_int, x_coeffs_shape)
    w_coeffs_shape = Constant <value_ints = [1, 1, 1, -1, 1, 1, 1]> ()
    w_factors = Reshape (w_coeffs_int, w_coeffs_shape)
    x_scaled = Mul (parts, x_factors)
    scaled = Mul (x_scaled, w_factors)
    plane_axes = Constant <value_ints = [0, 3]> ()
    total = ReduceSum <keepdims = 0> (scaled, plane_axes)
    out_shape = Concat <axis = 0> (images, unpack_last, spatial)
    acc = Reshape (total, out_shape)
    y = Transpose <perm = [0, 2, 3, 1]> (acc)
    """
    )
    kernel = "bit_serial:bit_serial_conv"
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times kernel positions times channels of a group."""
        _, _, height, width, _ = inputs[1].shape
        return int(np.prod(output.shape)) * height * width * attrs["channels"] // attrs["group"]

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """A bit for each plane."""
        return len(attrs["x_coeffs"]), len(attrs["w_coeffs"])

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """What the coefficients allow; the weights themselves may allow less."""
        _, _, height, width, _ = inputs[1].shape
        return _widest(attrs, height * width * attrs["channels"] // attrs["group"], any(attrs["pads"]))

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [N, OH, OW, O]``."""
        x, w = inputs
        if len(x.shape) != 5 or len(w.shape) != 5:
            raise ValueError(f"planes and weights must have rank 5, are {x} and {w}")
        _check_planes(x, w, attrs)
        _check_reach(cls.reach(inputs, attrs))
        channels, group = attrs["channels"], attrs["group"]
        if channels % group or w.shape[1] % group:
            raise ValueError(f"{channels} input and {w.shape[1]} output channels do not divide into {group} groups")
        if x.shape[4] != packed_bytes(channels) or w.shape[4] != packed_bytes(channels // group):
            raise ValueError(f"planes {x.shape} and w {w.shape} do not hold {channels} channels in {group} groups")
        top, left, bottom, right = attrs["pads"]
        if min(attrs["pads"]) < 0:
            raise ValueError(f"pads {attrs['pads']} must not be negative")
        (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
        oh = conv_output_size(x.shape[2], w.shape[2], sh, dh, top, bottom)
        ow = conv_output_size(x.shape[3], w.shape[3], sw, dw, left, right)
        if oh < 1 or ow < 1:
            raise ValueError(f"the kernel {w.shape[2:4]} is larger than the padded input of planes {x.shape}")
        return TensorType((x.shape[1], oh, ow, w.shape[1]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        packed, w_packed = inputs
        out = cls.infer([TensorType.of(packed), TensorType.of(w_packed)], attrs)
        channels = attrs["channels"]
        x = activation_values(unpack_bits(packed, channels), attrs)
        w = weight_values(unpack_bits(w_packed, channels // attrs["group"]), attrs)
        return convolve(x, w, out, attrs, np.int64).astype(np.int32)


@register
class BitSerialGemm(Operator):
    """Rows of few-bit activations times few-bit weights, both as bit planes, to exact integer accumulators.

    ``packed``: uint8 ``[n, ..., B]``; ``w``: uint8 ``[m, O, B]``; output: int32 ``[..., O]`` = sum of x·w over the ``k``
    elements that count, with x and w as in ``BitSerialConv``. The bits of the other ``8·B − k`` elements must be zero in
    every plane of both operands; they need not lie at the end.
    """

    name = "BitSerialGemm"
    inputs = ("packed", "w")
    attributes = {"k": int, "x_coeffs": list, "x_offset": int, "w_coeffs": list, "bipolar": int}
    body = (
        UNPACK_LAST_AXIS
        + UNPACK_WEIGHTS
        + _COEFFICIENTS
        + """
    bits_shape = Shape (bits)
    x_planes = Slice (bits_shape, unpack_first, one_dim)
    row_bits = Gather (bits_shape, unpack_last)
    lead = Slice (bits_shape, one_dim, unpack_last)
    x_rows_shape = Concat <axis = 0> (x_planes, unpack_last, row_bits)
    x_rows = Reshape (bits, x_rows_shape)
    x_float = Cast <to = 1> (x_rows)
    w_spread = Mul (w_bits, spread)
    w_values = Sub (w_spread, bipolar_int)
    w_float = Cast <to = 1> (w_values)
    w_bits_shape = Shape (w_bits)
    w_planes = Slice (w_bits_shape, unpack_first, one_dim)
    outputs = Slice (w_bits_shape, one_dim, two_dim)
    w_rows_shape = Concat <axis = 0> (unpack_last, row_bits)
    w_rows = Reshape (w_float, w_rows_shape)
    w_columns = Transpose <perm = [1, 0]> (w_rows)
    sums = MatMul (x_float, w_columns)
    sums_int = Cast <to = 6> (sums)
    parts_shape = Concat <axis = 0> (x_planes, unpack_last, w_planes, outputs)
    parts = Reshape (sums_int, parts_shape)
    x_coeffs_int = Cast <to = 6> (x_own_coeffs)
    x_coeffs_shape = Constant <value_ints = [-1, 1, 1, 1]> ()
    x_factors = Reshape (x_coeffs_int, x_coeffs_shape)
    w_coeffs_shape = Constant <value_ints = [-1, 1]> ()
    w_factors = Reshape (w_coeffs_int, w_coeffs_shape)
    x_scaled = Mul (parts, x_factors)
    scaled = Mul (x_scaled, w_factors)
    plane_axes = Constant <value_ints = [0, 2]> ()
    products = ReduceSum <keepdims = 0> (scaled, plane_axes)
    counted = Constant <value_int: int = @k> ()
    counted_int = Cast <to = 6> (counted)
    w_set = ReduceSum <keepdims = 0> (w_bits, unpack_last)
    w_set_spread = Mul (w_set, spread)
    w_missing = Mul (counted_int, bipolar_int)
    w_sums = Sub (w_set_spread, w_missing)
    w_sums_scaled = Mul (w_sums, w_factors)
    w_total = ReduceSum <keepdims = 0> (w_sums_scaled, unpack_first)
    offset_int = Cast <to = 6> (x_offset_dim)
    shift = Mul (w_total, offset_int)
    acc = Add (products, shift)
    y_shape = Concat <axis = 0> (lead, outputs)
    y = Reshape (acc, y_shape)
    """
    )
    kernel = "bit_serial:bit_serial_gemm"
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times k."""
        return int(np.prod(output.shape)) * int(attrs["k"])

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """A bit for each plane."""
        return len(attrs["x_coeffs"]), len(attrs["w_coeffs"])

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """What the coefficients allow; the weights themselves may allow less."""
        return _widest(attrs, int(attrs["k"]), False)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., O]``."""
        x, w = inputs
        if len(x.shape) < 2 or len(w.shape) != 3:
            raise ValueError(f"planes must be [n, ..., B] and w [m, O, B], are {x} and {w}")
        _check_planes(x, w, attrs)
        _check_reach(cls.reach(inputs, attrs))
        if x.shape[-1] != w.shape[2] or not 0 < attrs["k"] <= 8 * w.shape[2]:
            raise ValueError(f"planes {x.shape}, w {w.shape} and k={attrs['k']} do not fit")
        return TensorType((*x.shape[1:-1], w.shape[1]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        packed, w_packed = inputs
        out = cls.infer([TensorType.of(packed), TensorType.of(w_packed)], attrs)
        bits, w_bits = (unpack_bits(planes, 8 * planes.shape[-1]) for planes in (packed, w_packed))
        plain = {**attrs, "x_offset": 0}
        x = activation_values(bits.reshape(len(bits), -1, bits.shape[-1]), plain)
        # The offset belongs to the k elements that count; the others are zero in every weight plane.
        counted = np.asarray(w_bits, np.int64).sum(-1)
        sums = 2 * counted - attrs["k"] if attrs["bipolar"] else counted
        shift = attrs["x_offset"] * np.tensordot(np.asarray(attrs["w_coeffs"], np.int64), sums, axes=1)
        return (x @ weight_values(w_bits, attrs).T + shift).astype(np.int32).reshape(out.shape)
