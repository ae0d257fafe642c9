"""Between real values and bits: ``Binarize``, ``Pack`` and ``Unpack``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .bits import pack_bits, packed_bytes, unpack_bits

# ONNX Runtime's transpose optimizer is wrong about `Pad` with axes (seen in 1.31), so the bodies never use them.
# Shared by the bodies below: a tensor of 0/1 int32 `bits` [..., C] to packed bytes `y` [..., ceil(C/8)].
PACK_LAST_AXIS = """
    zero = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    shape = Shape (bits)
    head = Slice (shape, zero, last)
    count = Gather (shape, last)
    seven = Constant <value_ints = [7]> ()
    eight = Constant <value_ints = [8]> ()
    fill_shape = Concat <axis = 0> (head, seven)
    fill = ConstantOfShape <value = int32[1] {0}> (fill_shape)
    filled = Concat <axis = -1> (bits, fill)
    count_up = Add (count, seven)
    bytes = Div (count_up, eight)
    whole = Mul (bytes, eight)
    padded = Slice (filled, zero, whole, last)
    grouped_shape = Concat <axis = 0> (head, bytes, eight)
    grouped = Reshape (padded, grouped_shape)
    weights = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    weighted = Mul (grouped, weights)
    total = ReduceSum <keepdims = 0> (weighted, last)
    y = Cast <to = 2> (total)
"""

# Shared by bodies that read packed bits `packed` [..., B]: gives int32 0/1 `bits` [..., 8*B].
UNPACK_LAST_AXIS = """
    packed_int = Cast <to = 6> (packed)
    unpack_last = Constant <value_ints = [-1]> ()
    packed_column = Unsqueeze (packed_int, unpack_last)
    divisors = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    shifted = Div (packed_column, divisors)
    two = Constant <value = int32 {2}> ()
    bits_grouped = Mod (shifted, two)
    unpack_first = Constant <value_ints = [0]> ()
    unpack_shape = Shape (packed)
    unpack_head = Slice (unpack_shape, unpack_first, unpack_last)
    flat_shape = Concat <axis = 0> (unpack_head, unpack_last)
    bits = Reshape (bits_grouped, flat_shape)
"""

# Shared by bodies that read packed weights `w` [..., B], after the statements above: gives int32 0/1 `w_bits` [..., 8*B].
UNPACK_WEIGHTS = """
    w_int = Cast <to = 6> (w)
    w_column = Unsqueeze (w_int, unpack_last)
    w_shifted = Div (w_column, divisors)
    w_bits_grouped = Mod (w_shifted, two)
    w_shape = Shape (w)
    w_head = Slice (w_shape, unpack_first, unpack_last)
    w_flat_shape = Concat <axis = 0> (w_head, unpack_last)
    w_bits = Reshape (w_bits_grouped, w_flat_shape)
"""

# Shared by bodies that pad a feature map: [top, left, bottom, right] to the eight amounts `nchw_pads`.
NCHW_PADS = """
    pad_0 = Constant <value_ints = [0]> ()
    pad_2 = Constant <value_ints = [2]> ()
    pad_4 = Constant <value_ints = [4]> ()
    pad_none = Constant <value_ints = [0, 0]> ()
    pads_all = Constant <value_ints: ints = @pads> ()
    pads_begin = Slice (pads_all, pad_0, pad_2)
    pads_end = Slice (pads_all, pad_2, pad_4)
    nchw_pads = Concat <axis = 0> (pad_none, pads_begin, pad_none, pads_end)
"""


def check_perm(perm: Sequence[int], rank: int) -> None:
    """Raise ``ValueError`` unless ``perm`` is a permutation of ``range(rank)``."""
    if sorted(perm) != list(range(rank)):
        raise ValueError(f"perm {list(perm)} is not a permutation of {rank} axes")


@register
class Binarize(Operator):
    """``y = +1 if x > 0, −1 if x < 0, zero if x == 0`` (either sign of zero), float32.

    What the sign idioms of a model are rewritten to before packing. ``zero`` is −1, 0 or +1: ``torch.sign`` has 0,
    ``where(x >= 0, 1, -1)`` has +1, ``where(x > 0, 1, -1)`` has −1. ``x`` must not be NaN.
    """

    name = "Binarize"
    inputs = ("x",)
    attributes = {"zero": int}
    body = """
    sign = Sign (x)
    at_zero_int = Constant <value_int: int = @zero> ()
    at_zero = CastLike (at_zero_int, x)
    nothing = Constant <value = float {0}> ()
    nothing_like = CastLike (nothing, x)
    is_zero = Equal (x, nothing_like)
    y = Where (is_zero, at_zero, sign)
    """
    kernel = "elementwise:binarize"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """Same shape and dtype as ``x``."""
        if attrs["zero"] not in (-1, 0, 1):
            raise ValueError(f"zero must be -1, 0 or 1, is {attrs['zero']}")
        return inputs[0]

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        (x,) = inputs
        return np.where(x == 0, attrs["zero"], np.sign(x)).astype(x.dtype)


@register
class Pack(Operator):
    """Compare with a threshold per channel and pack the outcome: ``bit = (x >= threshold) xor flip``.

    ``x``: float32 or int32, any rank. It is first transposed by ``perm``, after which the last axis is the channel axis
    of size C. ``threshold``: [C], dtype of ``x``. ``flip``: uint8 [C], 0 or 1. With ``strict`` = 1 the comparison is
    ``>`` in place of ``>=``. Output: uint8 ``[..., ceil(C/8)]``, tail bits zero.
    """

    name = "Pack"
    inputs = ("x", "threshold", "flip")
    attributes = {"perm": list, "strict": int}
    body = (
        """
    moved = Transpose <perm: ints = @perm> (x)
    at_least = GreaterOrEqual (moved, threshold)
    above = Greater (moved, threshold)
    strict_int = Constant <value_int: int = @strict> ()
    strict_bool = Cast <to = 9> (strict_int)
    loose_bool = Not (strict_bool)
    tie_counts = And (at_least, loose_bool)
    compared = Or (above, tie_counts)
    flip_bool = Cast <to = 9> (flip)
    outcome = Xor (compared, flip_bool)
    bits = Cast <to = 6> (outcome)
    """
        + PACK_LAST_AXIS
    )
    kernel = "elementwise:pack"
    packed_output = True

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``uint8 [transposed shape without the last axis, ceil(C/8)]``."""
        x, threshold, flip = inputs
        check_perm(attrs["perm"], len(x.shape))
        shape = tuple(x.shape[axis] for axis in attrs["perm"])
        if threshold.shape != shape[-1:] or flip.shape != shape[-1:]:
            raise ValueError(f"threshold {threshold.shape} and flip {flip.shape} must be [{shape[-1]}]")
        if threshold.dtype != x.dtype or x.dtype not in (np.float32, np.int32):
            raise ValueError(f"x is {x.dtype} and threshold {threshold.dtype}: both must be float32 or both int32")
        return TensorType((*shape[:-1], packed_bytes(shape[-1])), np.dtype(np.uint8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, threshold, flip = inputs
        moved = np.transpose(x, attrs["perm"])
        compared = moved > threshold if attrs["strict"] else moved >= threshold
        return pack_bits(compared ^ flip.astype(bool))


@register
class Unpack(Operator):
    """Packed bits back to −1 and +1: ``uint8 [..., ceil(C/8)]`` → float32 ``[..., C]``, then transposed by ``perm``.

    ``channels`` is C.
    """

    name = "Unpack"
    inputs = ("packed",)
    attributes = {"channels": int, "perm": list}
    body = (
        UNPACK_LAST_AXIS
        + """
    begin = Constant <value_ints = [0]> ()
    channels_int = Constant <value_int: int = @channels> ()
    one_dim = Constant <value_ints = [1]> ()
    end = Reshape (channels_int, one_dim)
    kept = Slice (bits, begin, end, unpack_last)
    one_int = Constant <value = int32 {1}> ()
    doubled = Mul (kept, two)
    signs = Sub (doubled, one_int)
    signs_float = Cast <to = 1> (signs)
    y = Transpose <perm: ints = @perm> (signs_float)
    """
    )
    kernel = "elementwise:unpack"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32``, transposed."""
        (packed,) = inputs
        check_perm(attrs["perm"], len(packed.shape))
        if packed.dtype != np.uint8 or packed.shape[-1] != packed_bytes(attrs["channels"]):
            raise ValueError(f"{attrs['channels']} channels do not fit {packed.dtype} {packed.shape}")
        shape = (*packed.shape[:-1], attrs["channels"])
        return TensorType(tuple(shape[axis] for axis in attrs["perm"]), np.dtype(np.float32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        bits = unpack_bits(inputs[0], attrs["channels"])
        return np.transpose(np.where(bits, np.float32(1), np.float32(-1)), attrs["perm"])
