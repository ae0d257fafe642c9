"""Signs that can be trained: what they give is a sign, what they pass back is the gradient that a paper chose for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Slope = Callable[[Tensor], Tensor]
"""Input of a sign -> what stands for the derivative of the sign there."""


def clipped(x: Tensor) -> Tensor:
    """1 where |x| <= 1 (Hubara et al., "Binarized Neural Networks", NIPS 2016, equation 4)."""
    return (x.abs() <= 1).to(x.dtype)


def polynomial(x: Tensor) -> Tensor:
    """2 - 2|x| inside [-1, 1] (Liu et al., "Bi-Real Net", ECCV 2018, equation 6)."""
    return (2 - 2 * x.abs()).clamp(min=0)


def fourier(x: Tensor, terms: int = 10, frequency: float = 0.1 * math.pi) -> Tensor:
    """Derivative of the first terms of the Fourier series of a square wave (Xu et al., "FDA", NeurIPS 2021, equation 9)."""
    orders = [2 * i + 1 for i in range(terms)]
    total = torch.stack([torch.cos(order * frequency * x) for order in orders]).sum(0)
    return 4 * frequency / math.pi * total


def power(x: Tensor, order: float = 3.0, limit: float = 1.5, smallest: float = 0.1) -> Tensor:
    """Derivative of sign(x)·|x|^(1/o) inside ±1.5, flat near zero (Wu et al., "ReSTE", ICCV 2023, equations 7 and 8)."""
    grown = x.abs().clamp(min=smallest) ** ((1 - order) / order) / order
    return grown * (x.abs() <= limit)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Slope) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.slope(x), None


def sign(x: Tensor, training: bool, slope: Slope = clipped) -> Tensor:
    """torch.sign, whose zero stays 0; in training with the gradient ``slope``.

    The autograd function is for training alone, so that an export sees plain operators.
    """
    return _Sign.apply(x, slope) if training else torch.sign(x)


class PooledShortcut(nn.Module):
    """[N, C, H, W] -> [N, C', H/2, W/2] without weights: averages of 2x2, and channels of zeros on both sides."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - channels) // 2
        self.after = out_channels - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, self.before, self.after))


def to_32(images: Tensor) -> Tensor:
    """Images [N, 1, 28, 28] with a black border, [N, 1, 32, 32]: sizes that halve evenly."""
    return F.pad(images, (2, 2, 2, 2))
