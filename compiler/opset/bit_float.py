"""``BitFloatGemm``: activations of one bit times float32 weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._codes import product
from .base import Attrs, Operator, TensorType, register
from .bits import packed_bytes, unpack_bits
from .pack import UNPACK_LAST_AXIS


@register
class BitFloatGemm(Operator):
    """Rows of packed bits times float32 weights: ``y = Σ b·w``, a float32 sum in any order.

    ``packed``: uint8 ``[..., ceil(K/8)]``; ``w``: float32 ``[K, O]``; output float32 ``[..., O]``. b is 1 where a bit is set,
    else ``clear``, which is 0 or −1. ``k`` is K.
    """

    name = "BitFloatGemm"
    inputs = ("packed", "w")
    attributes = {"k": int, "clear": int}
    body = (
        UNPACK_LAST_AXIS
        + """
    count = Constant <value_int: int = @k> ()
    count_dim = Reshape (count, unpack_last)
    used = Slice (bits, unpack_first, count_dim, unpack_last)
    used_float = Cast <to = 1> (used)
    clear_int = Constant <value_int: int = @clear> ()
    clear_float = Cast <to = 1> (clear_int)
    one = Constant <value = float {1}> ()
    rise = Sub (one, clear_float)
    risen = Mul (used_float, rise)
    x = Add (risen, clear_float)
    y = MatMul (x, w)
    """
    )
    kernel = "bit_float:bit_float_gemm"

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times k."""
        return int(np.prod(output.shape)) * int(attrs["k"])

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """Bits by float weights."""
        return 1, 32

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [..., O]``."""
        x, w = inputs
        if not x.shape or x.dtype != np.uint8 or x.shape[-1] != packed_bytes(attrs["k"]):
            raise ValueError(f"packed must be uint8 [..., {packed_bytes(attrs['k'])}], is {x}")
        if len(w.shape) != 2 or w.dtype != np.float32 or w.shape[0] != attrs["k"]:
            raise ValueError(f"w must be float32 [{attrs['k']}, O], is {w}")
        if attrs["clear"] not in (0, -1):
            raise ValueError(f"clear is {attrs['clear']}, must be 0 or -1")
        return TensorType((*x.shape[:-1], w.shape[1]), np.dtype(np.float32))

    @classmethod
    def rows(cls, packed: np.ndarray, attrs: Attrs) -> np.ndarray:
        """The activations as float32 ``[..., K]``."""
        return np.where(unpack_bits(packed, attrs["k"]), np.float32(1), np.float32(attrs["clear"]))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return product(cls.rows(inputs[0], attrs), inputs[1].T)
