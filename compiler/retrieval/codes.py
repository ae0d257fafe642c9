"""Codes of documents, in NumPy: one bit a number by its sign, or two bits by BEBR's recurrent binarization.

BEBR (Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023, arXiv 2302.08714) represents an embedding f by

    b = sign(W f);    b += 2^-(i+1) · sign(R_i (f − norm(B_i b)))    for i = 0, 1, …

With one such loop an element of b is ±1 ± 1/2, two bits; two elements are one number of four bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np

from ..errors import InputError
from ..files import read_arrays

NAMES = ("w", "b", "r")


@dataclass(frozen=True)
class Binarizer:
    """The matrices of a linear binarizer: ``w`` float32 ``[m, C]``, and for two bits ``b`` ``[C, m]`` and ``r`` ``[m, C]``.

    None stands for the identity (for ``b``: scaled to length 1, as every b of ±1 has length √C): a code without training.
    """

    w: np.ndarray | None = None
    b: np.ndarray | None = None
    r: np.ndarray | None = None

    @staticmethod
    def read(path: str | PathLike[str]) -> Binarizer:
        """From a .npz with the arrays ``w`` and, or not, ``b`` and ``r``. Raises ``InputError``."""
        arrays = read_arrays(path)
        if not isinstance(arrays, dict) or "w" not in arrays:
            raise InputError(
                f"'{path}' is no binarizer: it must be a .npz with the arrays w and, for two bits, b and r"
            )
        if unknown := sorted(set(arrays) - set(NAMES)):
            raise InputError(f"'{path}' is no binarizer: it has an array '{unknown[0]}', known are {', '.join(NAMES)}")
        return Binarizer(*(arrays.get(name) for name in NAMES))

    def check(self, channels: int, bits: int) -> int:
        """The number of elements of a code, m. Raises ``InputError`` unless the matrices fit each other and the embeddings."""
        if bits == 1 and (self.b is not None or self.r is not None):
            raise InputError(
                "the binarizer has matrices b and r, which a code of one bit has no use for: code bebr has two"
            )
        if bits == 2 and {self.w is None, self.b is None, self.r is None} == {True, False}:
            raise InputError("the binarizer must have all of w, b and r for two bits, or none of them")
        m = channels if self.w is None else int(np.shape(self.w)[0]) if np.ndim(self.w) else 0
        shapes = {"w": (m, channels), "b": (channels, m), "r": (m, channels)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value.dtype != np.float32 or value.shape != shape or 0 in shape:
                got = f"{value.dtype} {list(value.shape)}"
                raise InputError(f"matrix {name} of the binarizer is {got}, it must be float32 {list(shape)}")
            if not np.isfinite(value).all():
                raise InputError(f"matrix {name} of the binarizer has values that are not finite")
        return m

    def project(self, f: np.ndarray) -> np.ndarray:
        """``W f`` of float32 ``[N, C]``."""
        return f if self.w is None else f @ self.w.T

    def one_bit(self, f: np.ndarray) -> np.ndarray:
        """bool ``[N, m]``: whether ``W f >= 0``, the rule of BPR for documents (its queries use ``> 0``)."""
        return self.project(f) >= 0

    def two_bits(self, f: np.ndarray) -> np.ndarray:
        """uint8 ``[N, m]``, 0 to 3: the element c stands for (2c − 3)/2, that is ±1/2 or ±3/2. ``f`` has rows of length 1."""
        first = self.one_bit(f)
        signs = np.where(first, np.float32(1), np.float32(-1))
        if self.b is None or self.r is None:
            return (2 * first + (f - signs * unit_level(f.shape[1]) >= 0)).astype(np.uint8)
        back = signs @ self.b.T
        back /= np.maximum(np.linalg.norm(back, axis=1, keepdims=True), np.float32(1e-12))
        return (2 * first + ((f - back) @ self.r.T >= 0)).astype(np.uint8)


def unit_level(channels: int) -> np.float32:
    """An element of ``norm(b)`` for b of ±1: 1/√C."""
    return np.float32(1 / np.sqrt(channels))


def as_unit(f: np.ndarray, what: str) -> np.ndarray:
    """Rows scaled to length 1. Raises ``InputError`` naming the first that is all zero."""
    length = np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True)
    if (length == 0).any():
        raise InputError(f"{what} {int(np.argmin(length))} is all zero: it has no direction")
    return (f / length).astype(np.float32)


def numbers(code: np.ndarray) -> np.ndarray:
    """Elements 0 to 3 ``[N, m]`` (m even) as 4-bit numbers ``[N, m/2]``: the first element of a pair counts 1, the second 4."""
    return (code[:, 0::2] + 4 * code[:, 1::2]).astype(np.uint8)


def nibbles(values: np.ndarray) -> np.ndarray:
    """Numbers 0 to 15 ``[N, M]`` as uint8 ``[N, ceil(M/2)]``, the even ones in the low halves."""
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    return (even[:, 0::2] | even[:, 1::2] << 4).astype(np.uint8)


def pair_table() -> tuple[np.ndarray, int]:
    """uint8 ``[16, 16]``: four times the inner product of two pairs of elements plus 18, so 0 to 36; and that 18."""
    elements = np.array([[2 * (n % 4) - 3, 2 * (n // 4) - 3] for n in range(16)])
    offset = 18
    return (elements @ elements.T + offset).astype(np.uint8), offset


def inverse_lengths(code: np.ndarray, most: int) -> np.ndarray:
    """int32 ``[N]``: 1/length of every code, scaled so that the largest is ``most``."""
    inverse = 1 / np.linalg.norm(2.0 * code - 3, axis=1)
    return np.rint(inverse / inverse.max() * most).astype(np.int32)
