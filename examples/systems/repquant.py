"""RepQuant: a vision transformer whose every product is one of integers.

Activations after a LayerNorm have scales of very different size in each channel. They are divided by r, folded into the
LayerNorm's weight and bias, so that one scale fits all channels, and the next layer's weights are multiplied by r. Softmax
outputs lie on a logarithmic grid of base √2: with code n, 2^(−n/2) for even n, and √2 · 2^(−(n+1)/2) for odd n, so that the
product with the values is two sums of shifted integers, the second times √2.
"""

from __future__ import annotations

import math

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 4


def through(x: Tensor, rounded: Tensor, training: bool) -> Tensor:
    """``rounded``, with the gradient of ``x`` in training."""
    return x + (rounded - x).detach() if training else rounded


def codes(x: Tensor, scale: Tensor, training: bool) -> Tensor:
    """Signed integers of ``BITS`` bits: ``clip(round(x / scale))``."""
    scaled = x / scale
    low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
    return torch.clamp(through(scaled, torch.round(scaled), training), low, high)


class Codes(nn.Module):
    """A quantizer with one learned scale for the tensor."""

    def __init__(self, scale: float = 0.4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return codes(x, self.scale, self.training)


class Linear(nn.Linear):
    """Integer activations times integer weights (a scale for each output), then the scales and the bias."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__(size, out)
        self.row_scale = nn.Parameter(self.weight.detach().abs().amax(1) / 5)

    def forward(self, x: Tensor, scale: Tensor, r: Tensor | None = None) -> Tensor:
        weight = self.weight if r is None else self.weight * r
        whole = codes(weight, self.row_scale[:, None], self.training)
        return F.linear(x, whole) * (scale * self.row_scale) + self.bias


class Norm(nn.LayerNorm):
    """LayerNorm with r taken out of its weight and bias, and the quantizer behind it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.r = nn.Parameter(torch.linspace(0.7, 1.5, size))
        self.codes = Codes()

    def forward(self, x: Tensor) -> Tensor:
        return self.codes(F.layer_norm(x, self.normalized_shape, self.weight / self.r, self.bias / self.r, self.eps))


def log_codes(p: Tensor, training: bool) -> Tensor:
    """−2·log2(p), rounded: 0 for 1, 15 for 2^-7.5 and less."""
    logs = torch.log(torch.clamp(p, min=1e-6)) * (-2 / math.log(2))
    return torch.clamp(through(logs, torch.round(logs), training), 0, 15)


class Attention(nn.Module):
    """Integer scores, softmax, powers of √2, integer values."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size // heads
        self.query, self.key, self.value, self.out = (Linear(size, size) for _ in range(4))
        self.q_codes, self.k_codes, self.v_codes, self.o_codes = (Codes() for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, scale: Tensor, r: Tensor) -> Tensor:
        q = self.split(self.q_codes(self.query(x, scale, r)))
        k = self.split(self.k_codes(self.key(x, scale, r)))
        v = self.split(self.v_codes(self.value(x, scale, r)))
        factor = self.q_codes.scale * self.k_codes.scale / math.sqrt(self.size)
        p = torch.softmax((q @ k.transpose(2, 3)) * factor, -1)
        n = log_codes(p, self.training)
        odd = torch.remainder(n, 2.0) if not self.training else torch.remainder(torch.round(n), 2.0).detach()
        level = torch.pow(torch.tensor(2.0), -(n + odd) / 2)
        y = (level * (1 - odd)) @ v + ((level * odd) @ v) * math.sqrt(2)
        y = (y * self.v_codes.scale).transpose(1, 2).reshape(x.shape)
        return self.out(self.o_codes(y), self.o_codes.scale)


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = Norm(size), Attention(size, heads)
        self.norm2, self.up, self.down = Norm(size), Linear(size, 2 * size), Linear(2 * size, size)
        self.mid = Codes()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), self.norm1.codes.scale, self.norm1.r)
        y = self.up(self.norm2(x), self.norm2.codes.scale, self.norm2.r)
        return x + self.down(self.mid(F.gelu(y)), self.mid.scale)


class Net(nn.Module):
    """Patches of 7×7 pixels, two blocks, a quantized head; the patch embedding stays in float, as in the paper's baselines."""

    def __init__(self, size: int = 32, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, size, 7, 7)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, size))
        self.blocks = nn.ModuleList(Block(size, heads) for _ in range(depth))
        self.norm, self.head = Norm(size), Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x), self.norm.codes.scale, self.norm.r)
        return x.mean(1)


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.rand(1, 1, 28, 28),)


SYSTEM = System(
    name="repquant",
    title="RepQuant: W4A4 vision transformer, softmax on powers of √2",
    paper="Z. Li et al., RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale "
    "Reparameterization, 2024; https://arxiv.org/abs/2402.05628",
    build=Net,
    inputs=inputs,
    packed_layers=19,
    steps=150,
)
