"""Windows over feature maps in NumPy: what the references of convolutions and pools share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .base import Attrs, TensorType


def taps(
    x: np.ndarray, kernel: Sequence[int], size: Sequence[int], attrs: Attrs, pad_value: int = 0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Every place (i, j) of a ``kernel`` [KH, KW] window and what lies there under all ``size`` [OH, OW] windows.

    ``x`` is ``[N, H, W, ...]``, padded with ``pad_value``; what lies there is ``[N, OH, OW, ...]``.
    """
    top, left, bottom, right = attrs["pads"]
    (sh, sw), (dh, dw), (oh, ow) = attrs["strides"], attrs["dilations"], size
    around = ((0, 0), (top, bottom), (left, right), *[(0, 0)] * (x.ndim - 3))
    x = np.pad(x, around, constant_values=pad_value)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield i, j, x[:, i * dh :, j * dw :][:, : (oh - 1) * sh + 1 : sh, : (ow - 1) * sw + 1 : sw]


def convolve(
    x: np.ndarray, w: np.ndarray, out: TensorType, attrs: Attrs, dtype: type = np.int32, pad_value: int = 0
) -> np.ndarray:
    """The convolution in ``dtype``: ``x`` [N, H, W, C], ``w`` [O, KH, KW, C/group]; [N, OH, OW, O] as ``out`` says."""
    n, oh, ow, _ = out.shape
    group = attrs["group"]
    x = x.astype(dtype).reshape(*x.shape[:3], group, -1)
    w = w.astype(dtype).reshape(group, -1, *w.shape[1:])
    acc: np.ndarray = np.zeros((n, oh, ow, group, w.shape[1]), dtype)
    for i, j, under in taps(x, w.shape[2:4], (oh, ow), attrs, pad_value):
        acc += np.einsum("nhwgc,goc->nhwgo", under, w[:, :, i, j], dtype=dtype)
    return acc.reshape(out.shape)
