"""Weights stored as codes of a few bits: how they lie, and what the operators that read them share.

A code of P bits is stored as P bit planes, ``uint8 [P, O, ceil(K/8)]``: bit k % 8 of byte k // 8 of plane p is bit p of the
code of weight k of output channel o. Bits past K are zero. Kernels lay codes out anew for their machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, TensorType
from .bits import pack_bits, packed_bytes, unpack_bits

# Shared by bodies: planes `w` uint8 [P, O, B] → int32 0/1 `planes` [P, O, k].
PLANES = """
    planes_int = Cast <to = 6> (w)
    minus_one = Constant <value_ints = [-1]> ()
    at_zero = Constant <value_ints = [0]> ()
    at_one = Constant <value_ints = [1]> ()
    planes_column = Unsqueeze (planes_int, minus_one)
    powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    planes_shifted = Div (planes_column, powers)
    two_int = Constant <value = int32 {2}> ()
    planes_grouped = Mod (planes_shifted, two_int)
    w_shape = Shape (w)
    planes_head = Slice (w_shape, at_zero, minus_one)
    planes_flat = Concat <axis = 0> (planes_head, minus_one)
    planes_all = Reshape (planes_grouped, planes_flat)
    k_int = Constant <value_int: int = @k> ()
    k_dim = Reshape (k_int, minus_one)
    planes = Slice (planes_all, at_zero, k_dim, minus_one)
"""

# Shared by bodies, after `PLANES`: int32 `codes` [O, k] out of all planes.
CODES = """
    plane_count = Slice (w_shape, at_zero, at_one)
    plane_powers = Slice (powers, at_zero, plane_count)
    inner_axes = Constant <value_ints = [1, 2]> ()
    plane_weights = Unsqueeze (plane_powers, inner_axes)
    planes_weighted = Mul (planes, plane_weights)
    codes = ReduceSum <keepdims = 0> (planes_weighted, at_zero)
"""

# Shared by bodies of matrix products: float `x` [..., k] times float `weights` [O, k].
PRODUCT = """
    columns = Transpose <perm = [1, 0]> (weights)
    y = MatMul (x, columns)
"""

# Shared by bodies of convolutions: `x` NCHW, `weights` [O, C/group·KH·KW] in the order of a Conv's weight.
CONVOLUTION = """
    kernel_dims = Constant <value_ints: ints = @kernel_shape> ()
    out_dim = Slice (w_shape, at_one, two_dim)
    filter_shape = Concat <axis = 0> (out_dim, minus_one, kernel_dims)
    filters = Reshape (weights, filter_shape)
    y = Conv <strides: ints = @strides, dilations: ints = @dilations, pads: ints = @pads, group: int = @group> (x, filters)
"""

CONV_ATTRIBUTES: dict[str, type] = {
    "k": int, "kernel_shape": list, "group": int, "strides": list, "dilations": list, "pads": list,
}  # fmt: skip


def store_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``int [O, K]`` below 2^bits → planes ``uint8 [bits, O, ceil(K/8)]``."""
    return np.stack([pack_bits((codes >> p) & 1) for p in range(bits)])


def load_planes(w: np.ndarray, k: int) -> np.ndarray:
    """Planes as int32 0/1 ``[P, O, K]``."""
    return unpack_bits(w, k).astype(np.int32)


def load_codes(w: np.ndarray, k: int) -> np.ndarray:
    """Inverse of ``store_codes``: int32 ``[O, K]``."""
    powers = 1 << np.arange(len(w), dtype=np.int32)
    return np.einsum("pok,p->ok", load_planes(w, k), powers).astype(np.int32)


def check_planes(w: TensorType, k: int, fewest: int, most: int) -> None:
    """Raise ``ValueError`` unless ``w`` holds ``fewest`` to ``most`` planes of ``k`` codes."""
    if len(w.shape) != 3 or w.dtype != np.uint8 or not fewest <= w.shape[0] <= most:
        raise ValueError(f"w must be uint8 [{fewest} to {most} planes, O, B], is {w}")
    if k < 1 or w.shape[2] != packed_bytes(k):
        raise ValueError(f"w {w.shape} does not hold {k} codes a channel")


def infer_product(x: TensorType, w: TensorType, k: int) -> TensorType:
    """Output of a matrix product: ``float32 [..., O]``."""
    if len(x.shape) < 1 or x.dtype != np.float32 or x.shape[-1] != k:
        raise ValueError(f"x must be float32 [..., {k}], is {x}")
    return TensorType((*x.shape[:-1], w.shape[1]), np.dtype(np.float32))


def infer_convolution(x: TensorType, w: TensorType, attrs: Attrs) -> TensorType:
    """Output of a convolution: ``float32 [N, O, OH, OW]``."""
    if len(x.shape) != 4 or x.dtype != np.float32:
        raise ValueError(f"x must be float32 [N, C, H, W], is {x}")
    if any(len(attrs[name]) != size for name, size in CONV_SIZES.items()) or min(attrs["pads"]) < 0:
        raise ValueError("kernel_shape, strides and dilations need 2 numbers each, pads 4 that are not negative")
    group, (kh, kw) = attrs["group"], attrs["kernel_shape"]
    if group < 1 or x.shape[1] % group or w.shape[1] % group or attrs["k"] != x.shape[1] // group * kh * kw:
        raise ValueError(f"{x.shape[1]} channels in {group} groups under {kh}x{kw} are not k = {attrs['k']} weights")
    top, left, bottom, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    oh = (x.shape[2] + top + bottom - dh * (kh - 1) - 1) // sh + 1
    ow = (x.shape[3] + left + right - dw * (kw - 1) - 1) // sw + 1
    if oh < 1 or ow < 1:
        raise ValueError(f"the kernel {kh}x{kw} is larger than the padded input of x {x.shape}")
    return TensorType((x.shape[0], w.shape[1], oh, ow), np.dtype(np.float32))


CONV_SIZES = {"kernel_shape": 2, "strides": 2, "dilations": 2, "pads": 4}


def product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``x [..., K]`` times float32 ``weights [O, K]``: the sum in float64, rounded once to float32."""
    return (x.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.float32)


def convolution(x: np.ndarray, weights: np.ndarray, attrs: Attrs) -> np.ndarray:
    """``x`` NCHW, float32 ``weights [O, K]``: the sum in float64, rounded once to float32."""
    group, (kh, kw) = attrs["group"], attrs["kernel_shape"]
    top, left, bottom, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    n, channels, height, width = x.shape
    oh = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    ow = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    padded = padded.reshape(n, group, channels // group, *padded.shape[2:])
    filters = weights.astype(np.float64).reshape(group, -1, channels // group, kh, kw)
    total = np.zeros((n, group, filters.shape[1], oh, ow))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            part = padded[..., rows, slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)]
            total += np.einsum("ngchw,goc->ngohw", part, filters[..., i, j])
    return total.reshape(n, -1, oh, ow).astype(np.float32)


def product_macs(x: TensorType, w: TensorType) -> int:
    """Multiply-accumulates of a matrix product with ``w [P, O, B]``."""
    return int(np.prod(x.shape)) * w.shape[1]


def expand_groups(value: np.ndarray, shape: Sequence[int], k: int, group: int) -> np.ndarray:
    """``[O, G]`` (or ``[1, 1]``) → ``[O, K]``: one number a weight, that of its group of ``group`` along K."""
    return np.broadcast_to(value, tuple(shape))[:, np.arange(k) // group]
