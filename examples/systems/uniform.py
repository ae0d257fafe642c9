"""Uniform quantizers with a learned step, and layers on them.

Esser et al., "Learned Step Size Quantization", ICLR 2020: a value is divided by a step, clipped, rounded and multiplied
by the step again. Rounding passes the gradient on as it is; what is left of that in an exported graph is a difference that is
added back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rounded(x: Tensor) -> Tensor:
    """round(x), with the gradient of x."""
    return (x.round() - x).detach() + x


class Uniform(nn.Module):
    """Values to ``bits`` bits: integers 0..2^bits − 1, or −2^(bits−1)..2^(bits−1) − 1 where ``signed``, times a step.

    ``largest``: what the largest integer stands for before training.
    """

    def __init__(self, bits: int, signed: bool, largest: float) -> None:
        super().__init__()
        self.low = -(1 << (bits - 1)) if signed else 0
        self.high = self.low + (1 << bits) - 1
        self.step = nn.Parameter(torch.tensor(largest / max(self.high, 1)))

    def forward(self, x: Tensor) -> Tensor:
        # The gradient of a step sums over all elements: it is scaled down, as the paper's section 2.2 says.
        factor = 1.0 / float(x.numel() * max(self.high, 1)) ** 0.5
        step = self.step * factor + (self.step - self.step * factor).detach() if self.training else self.step
        return rounded((x / step).clamp(self.low, self.high)) * step


class QuantConv2d(nn.Conv2d):
    """A convolution of activations of ``x_bits`` with weights of ``w_bits``."""

    def __init__(
        self, channels: int, out: int, kernel: int, *, w_bits: int, x_bits: int, signed: bool = False, stride: int = 1,
        groups: int = 1, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.x = Uniform(x_bits, signed, 2.0)
        self.w = Uniform(w_bits, True, 2.0 * float(self.weight.detach().abs().mean()))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.x(x), self.w(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """A linear layer of activations of ``x_bits`` with weights of ``w_bits``."""

    def __init__(self, features: int, out: int, *, w_bits: int, x_bits: int, signed: bool = False) -> None:
        super().__init__(features, out)
        self.x = Uniform(x_bits, signed, 2.0)
        self.w = Uniform(w_bits, True, 2.0 * float(self.weight.detach().abs().mean()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.x(x), self.w(self.weight), self.bias)
