"""Products whose two operands are both bits that were made at run time: ``BinaryMatMul`` and ``AndMatMul``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .bits import to_signs, unpack_bits


def unpack_float(name: str, signs: bool) -> str:
    """Statements that unpack the bits ``name`` [..., B] to float32 ``{name}_float`` [..., 8·B]: 0 and 1, or −1 and +1."""
    last = f"{name}_minus" if signs else f"{name}_bits"
    text = f"""
    {name}_int = Cast <to = 6> ({name})
    {name}_last = Constant <value_ints = [-1]> ()
    {name}_column = Unsqueeze ({name}_int, {name}_last)
    {name}_divisors = Constant <value = int32[8] {{1, 2, 4, 8, 16, 32, 64, 128}}> ()
    {name}_shifted = Div ({name}_column, {name}_divisors)
    {name}_two = Constant <value = int32 {{2}}> ()
    {name}_grouped = Mod ({name}_shifted, {name}_two)
    {name}_first = Constant <value_ints = [0]> ()
    {name}_shape = Shape ({name})
    {name}_head = Slice ({name}_shape, {name}_first, {name}_last)
    {name}_flat = Concat <axis = 0> ({name}_head, {name}_last)
    {name}_bits = Reshape ({name}_grouped, {name}_flat)
    """
    if signs:
        text += f"""
    {name}_one = Constant <value = int32 {{1}}> ()
    {name}_doubled = Mul ({name}_bits, {name}_two)
    {name}_minus = Sub ({name}_doubled, {name}_one)
    """
    return text + f"    {name}_float = Cast <to = 1> ({last})\n"


def check_pair(name: str, a: TensorType, b: TensorType, k: int) -> tuple[int, ...]:
    """Shape ``[..., M, N]`` of a product of rows, or ``ValueError`` when the operands do not fit."""
    if a.dtype != np.uint8 or b.dtype != np.uint8 or len(a.shape) < 2 or len(a.shape) != len(b.shape):
        raise ValueError(f"a and b must be uint8 of the same rank of at least 2, are {a} and {b}")
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1] or not 0 < k <= 8 * a.shape[-1]:
        raise ValueError(f"a {a.shape}, b {b.shape} and k={k} do not fit {name}")
    return (*a.shape[:-1], b.shape[-2])


@register
class BinaryMatMul(Operator):
    """Rows of packed ±1 values times rows of packed ±1 values, both computed at run time: scores of binary attention.

    ``a``: uint8 ``[..., M, B]``; ``b``: uint8 ``[..., N, B]``, the same leading axes; output: int32 ``[..., M, N]`` = sum of
    a·b over the ``k`` bits that count. The other ``8·B − k`` bits must be zero in both operands, wherever they lie.
    """

    name = "BinaryMatMul"
    inputs = ("a", "b")
    attributes = {"k": int}
    body = (
        unpack_float("a", True)
        + unpack_float("b", True)
        + """
    product = Einsum <equation = "...mk,...nk->...mn"> (a_float, b_float)
    product_int = Cast <to = 6> (product)
    bits_shape = Shape (a_bits)
    all_bits = Gather (bits_shape, a_last)
    counted = Constant <value_int: int = @k> ()
    surplus = Sub (all_bits, counted)
    surplus_int = Cast <to = 6> (surplus)
    y = Sub (product_int, surplus_int)
    """
    )
    kernel = "pair_product:binary_matmul"
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
        """``int32 [..., M, N]``."""
        return TensorType(check_pair(cls.name, inputs[0], inputs[1], attrs["k"]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        a, b = (to_signs(x, 8 * x.shape[-1]) for x in inputs)
        surplus = a.shape[-1] - attrs["k"]
        return (np.einsum("...mk,...nk->...mn", a, b, dtype=np.int32) - surplus).astype(np.int32)


@register
class AndMatMul(Operator):
    """Rows of packed {0, 1} values times rows of packed ±1 values, both computed at run time: attention times values.

    ``a``: uint8 ``[..., M, B]``, a bit is 0 or 1; ``b``: uint8 ``[..., N, B]``, a bit is −1 or +1; the same leading axes.
    Output: int32 ``[..., M, N]`` = sum of a·b over the ``k`` bits that count = 2·popcount(a & b) − popcount(a), which is also
    popcount(b) − popcount(a xor b). The other ``8·B − k`` bits must be zero in both operands.
    """

    name = "AndMatMul"
    inputs = ("a", "b")
    attributes = {"k": int}
    body = (
        unpack_float("a", False)
        + unpack_float("b", True)
        + """
    product = Einsum <equation = "...mk,...nk->...mn"> (a_float, b_float)
    y = Cast <to = 6> (product)
    """
    )
    kernel = "pair_product:and_matmul"
    factors = (1, 1)
    anchor = True

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Outputs times k."""
        return int(np.prod(output.shape)) * int(attrs["k"])

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """Any integer from −k to k."""
        return -int(attrs["k"]), int(attrs["k"]), 1

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [..., M, N]``."""
        return TensorType(check_pair(cls.name, inputs[0], inputs[1], attrs["k"]), np.dtype(np.int32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        count = 8 * inputs[0].shape[-1]
        a, b = unpack_bits(inputs[0], count).astype(np.int32), to_signs(inputs[1], count)
        return np.einsum("...mk,...nk->...mn", a, b, dtype=np.int32)
