"""``QuantizeRows`` and ``TernaryGemm``: 8-bit activations with a scale of each row's own, times ternary weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._codes import PLANES, check_planes, load_planes
from .base import Attrs, Operator, TensorType, register

MOST_TERMS = 131071
"""Longest sum of a TernaryGemm: its ONNX body adds float32 products up to 128, exact below 2^24."""


@register
class QuantizeRows(Operator):
    """Float32 to 8 bits, with a scale that is computed at run time: ``y = clip(round(x·scale), low, high)``, ties to even.

    ``x``: float32 ``[..., K]``; ``scale``: float32 ``[..., 1]`` of the same rank; output int8. An axis of ``scale`` may be 1.
    With ``divide`` = 1 it is ``x / scale``. The product (or quotient) is rounded to float32 before it is rounded to an integer.
    """

    name = "QuantizeRows"
    inputs = ("x", "scale")
    attributes = {"low": int, "high": int, "divide": int}
    body = """
    product = Mul (x, scale)
    quotient = Div (x, scale)
    divide_int = Constant <value_int: int = @divide> ()
    divides = Cast <to = 9> (divide_int)
    scaled = Where (divides, quotient, product)
    rounded = Round (scaled)
    low_int = Constant <value_int: int = @low> ()
    low_float = Cast <to = 1> (low_int)
    high_int = Constant <value_int: int = @high> ()
    high_float = Cast <to = 1> (high_int)
    clipped = Clip (rounded, low_float, high_float)
    y = Cast <to = 3> (clipped)
    """
    kernel = "quantize_rows:quantize_rows"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int8``, shape of ``x``."""
        x, scale = inputs
        if not x.shape or x.dtype != np.float32 or scale.dtype != np.float32:
            raise ValueError(f"x and scale must be float32, x of at least one axis: they are {x} and {scale}")
        fits = len(scale.shape) == len(x.shape) and scale.shape[-1] == 1
        if not fits or any(a not in (1, b) for a, b in zip(scale.shape, x.shape, strict=True)):
            raise ValueError(f"scale must be {[*x.shape[:-1], 1]}, or 1 where it is the same along an axis, is {scale}")
        if not -128 <= attrs["low"] <= attrs["high"] <= 127:
            raise ValueError(f"low {attrs['low']} and high {attrs['high']} must lie in [-128, 127], in this order")
        return TensorType(x.shape, np.dtype(np.int8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, scale = inputs
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scaled = x / scale if attrs["divide"] else x * scale
        return np.clip(np.rint(scaled), attrs["low"], attrs["high"]).astype(np.int8)


@register
class TernaryGemm(Operator):
    """8-bit rows times weights of −1, 0 and +1, to exact integer accumulators.

    ``x``: int8 ``[..., K]``; ``w``: uint8 ``[2, O, ceil(K/8)]``, two bit planes: where the weight is +1, and where it is −1
    (never both); output int32 ``[..., O]``. ``k`` is K, at most 131071.
    """

    name = "TernaryGemm"
    inputs = ("x", "w")
    attributes = {"k": int}
    body = (
        PLANES
        + """
    two_dim = Constant <value_ints = [2]> ()
    plus_plane = Slice (planes, at_zero, at_one, at_zero)
    minus_plane = Slice (planes, at_one, two_dim, at_zero)
    difference = Sub (plus_plane, minus_plane)
    signs = Squeeze (difference, at_zero)
    weights = Cast <to = 1> (signs)
    columns = Transpose <perm = [1, 0]> (weights)
    x_float = Cast <to = 1> (x)
    product = MatMul (x_float, columns)
    y = Cast <to = 6> (product)
    """
    )
    kernel = "int_product:ternary_gemm"
    anchor = True

    @classmethod
    def ternary(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """The weights, int8 ``[O, K]``."""
        plus, minus = load_planes(inputs[1], attrs["k"])
        return (plus - minus).astype(np.int8)

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times k."""
        return int(np.prod(output.shape)) * int(attrs["k"])

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """8-bit activations, two planes of weights."""
        return 8, 2

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """From −128·k to 128·k, in ones."""
        return -128 * attrs["k"], 128 * attrs["k"], 1

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., O]``."""
        x, w = inputs
        check_planes(w, attrs["k"], 2, 2)
        if not x.shape or x.dtype != np.int8 or x.shape[-1] != attrs["k"]:
            raise ValueError(f"x must be int8 [..., {attrs['k']}], is {x}")
        if attrs["k"] > MOST_TERMS:
            raise ValueError(f"a sum has {attrs['k']} terms, at most {MOST_TERMS} are exact")
        return TensorType((*x.shape[:-1], w.shape[1]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return (inputs[0].astype(np.int64) @ cls.ternary(inputs, attrs).T.astype(np.int64)).astype(np.int32)
