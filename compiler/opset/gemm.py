"""``BinaryGemm``: product of ±1 activations with ±1 weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .pack import UNPACK_LAST_AXIS, UNPACK_WEIGHTS


@register
class BinaryGemm(Operator):
    """Rows of packed ±1 activations times packed ±1 weights, to exact integer accumulators.

    ``x``: uint8 ``[..., B]``; ``w``: uint8 ``[O, B]``; output: int32 ``[..., O]`` = sum of x·w over the ``k`` bits
    that count. The other ``8·B − k`` bits must be zero in both operands; they need not lie at the end, so a packed
    feature map ``[N, H, W, ceil(C/8)]`` can be reshaped to rows when C is not a multiple of 8.
    """

    name = "BinaryGemm"
    inputs = ("packed", "w")
    attributes = {"k": int}
    body = (
        UNPACK_LAST_AXIS
        + UNPACK_WEIGHTS
        + """
    one_int = Constant <value = int32 {1}> ()
    x_doubled = Mul (bits, two)
    x_signs = Sub (x_doubled, one_int)
    x_float = Cast <to = 1> (x_signs)
    w_doubled = Mul (w_bits, two)
    w_signs = Sub (w_doubled, one_int)
    w_float = Cast <to = 1> (w_signs)
    w_columns = Transpose <perm = [1, 0]> (w_float)
    product = MatMul (x_float, w_columns)
    product_int = Cast <to = 6> (product)
    bits_shape = Shape (bits)
    all_bits = Gather (bits_shape, unpack_last)
    counted = Constant <value_int: int = @k> ()
    surplus = Sub (all_bits, counted)
    surplus_int = Cast <to = 6> (surplus)
    y = Sub (product_int, surplus_int)
    """
    )
    kernel = "gemm:binary_gemm"
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times k."""
        return int(np.prod(output.shape)) * int(attrs["k"])

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """A sum of k products of ±1 has the parity of k."""
        return -int(attrs["k"]), int(attrs["k"]), 2

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., O]``."""
        x, w = inputs
        if len(w.shape) != 2 or len(x.shape) < 1 or x.dtype != np.uint8 or w.dtype != np.uint8:
            raise ValueError(f"x must be uint8 [..., B] and w uint8 [O, B], are {x} and {w}")
        if x.shape[-1] != w.shape[1] or not 0 < attrs["k"] <= 8 * w.shape[1]:
            raise ValueError(f"x {x.shape}, w {w.shape} and k={attrs['k']} do not fit")
        return TensorType((*x.shape[:-1], w.shape[0]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, w = inputs
        out = cls.infer([TensorType.of(x), TensorType.of(w)], attrs)
        rows = np.unpackbits(x.reshape(-1, x.shape[-1]), axis=-1).astype(np.int32)
        columns = np.unpackbits(w, axis=-1).astype(np.int32)
        both = rows @ columns.T
        differing = rows.sum(1)[:, None] + columns.sum(1)[None, :] - 2 * both
        return (attrs["k"] - 2 * differing).astype(np.int32).reshape(out.shape)
