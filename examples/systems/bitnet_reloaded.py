"""BitNet b1.58 Reloaded: ternary weights on activations that are rounded to 8 bits row by row, in a vision transformer and a
multi-layer perceptron of the small sizes that the paper is about.

A layer normalizes its input, scales each row so that its largest magnitude is 128, rounds and clamps it to 8 bits; divides
its weights by their mean (or median) magnitude, rounds and clamps them to −1, 0, +1; the bias is added to the integer sum,
and the whole is divided by both scales.
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-5


class _Through(torch.autograd.Function):
    """Round and clamp; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx: object, x: Tensor, low: float, high: float) -> Tensor:
        return torch.clamp(torch.round(x), low, high)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None


def rounded(x: Tensor, low: float, high: float, training: bool) -> Tensor:
    """``clamp(round(x))``, straight-through when training."""
    return _Through.apply(x, low, high) if training else torch.clamp(torch.round(x), low, high)


class BitLinear(nn.Module):
    """``y = (x_q·w_q + b) / (s_w·s_x)``, with the layer's own normalization before it. ``median``: what scales the weights."""

    def __init__(self, inputs: int, outputs: int, *, median: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.norm = nn.LayerNorm(inputs)
        self.median = median
        self.register_buffer("weight_scale", torch.ones(()))

    def train(self, mode: bool = True) -> BitLinear:
        """Leaving training fixes the scale of the weights: neither exporter knows ``median``."""
        if not mode:
            self.weight_scale.copy_(self._scale().detach())
        return super().train(mode)

    def _scale(self) -> Tensor:
        magnitude = self.weight.abs()
        return 1 / (magnitude.median() if self.median else magnitude.mean()).clamp(min=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        scale = 128 / x.abs().amax(-1, keepdim=True).clamp(min=EPSILON)
        weight_scale = self._scale() if self.training else self.weight_scale
        activations = rounded(x * scale, -128, 127, self.training)
        weights = rounded(self.weight * weight_scale, -1, 1, self.training)
        return F.linear(activations, weights, self.bias) / (weight_scale * scale)


class Mlp(nn.Module):
    """Two hidden layers of ternary weights between a float stem and a ternary classifier."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.ModuleList([BitLinear(784, width, median=True), BitLinear(width, width), BitLinear(width, 10)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Block(nn.Module):
    """A transformer block: attention of a few heads in float between ternary projections, and a ternary MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (BitLinear(width, width) for _ in range(4))
        self.up, self.down = BitLinear(width, 2 * width), BitLinear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(x)))


class Vit(nn.Module):
    """Patches of 7×7 pixels embedded in float, blocks of ternary layers, a ternary classifier on the mean token."""

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 7, stride=7)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(blocks)))
        self.head = BitLinear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(x).mean(1))


def inputs() -> tuple[Tensor, ...]:
    """One image."""
    return (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


PAPER = (
    "J. Nielsen, P. Schneider-Kamp: BitNet b1.58 Reloaded: State-of-the-art Performance Also on Smaller Networks, DeLTA 2024; "
    "https://arxiv.org/abs/2407.09527"
)
PUBLISHED = {
    "sizes": "networks of 100 thousand to 48 million parameters",
    "accuracy": "state of the art of the float networks reached or surpassed on small vision models",
}

SYSTEMS = (
    System(
        name="bitnet-reloaded-mlp",
        title="BitNet b1.58 Reloaded, multi-layer perceptron: ternary weights, 8-bit activations a row",
        paper=PAPER,
        build=Mlp,
        inputs=inputs,
        packed_layers=3,
        published=PUBLISHED,
    ),
    System(
        name="bitnet-reloaded-vit",
        title="BitNet b1.58 Reloaded, vision transformer: ternary projections and MLPs",
        paper=PAPER,
        build=Vit,
        inputs=inputs,
        packed_layers=13,
        steps=200,
        published=PUBLISHED,
    ),
)
