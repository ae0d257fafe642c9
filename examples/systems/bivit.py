"""BiViT: a vision transformer whose attention keeps the keys within a quarter of the likeliest one, as bits.

Weights are a · sign(w − mean w) with a learned a for each row, activations plain signs. Attention is bool(p ≥ max(p) / 4)
of p = softmax(sign(Q) · sign(K)ᵀ / √d), times sign(V). The MLP has binary weights, and binary or float activations.
"""

from __future__ import annotations

import math

import torch
from attention_parts import heads, joined, patches, signs, straight
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

SHARE = 0.25


class BinaryLinear(nn.Linear):
    """Signs of centred rows times a learned scale a row. ``binary_inputs``: whether activations are signs, too."""

    def __init__(self, inputs: int, outputs: int, binary_inputs: bool = True) -> None:
        super().__init__(inputs, outputs)
        self.binary_inputs = binary_inputs
        self.scale = nn.Parameter(self.weight.detach().abs().mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        centred = self.weight - self.weight.mean(1, keepdim=True)
        weight = self.scale[:, None] * straight(torch.sign(centred), torch.clamp(centred, -1, 1), self.training)
        return F.linear(signs(x, self.training) if self.binary_inputs else x, weight, self.bias)


class Attention(nn.Module):
    """Binary attention over all tokens."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.parts = BinaryLinear(width, 3 * width)
        self.output = BinaryLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        q, k, v = (signs(heads(part, self.count), self.training) for part in self.parts(x).chunk(3, -1))
        p = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        near = (p >= SHARE * p.amax(-1, keepdim=True)).float()
        return self.output(joined(straight(near, p, self.training) @ v))


class Block(nn.Module):
    """A transformer block that normalizes first."""

    def __init__(self, width: int, count: int, inner: int, binary_inputs: bool) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, count)
        self.wide, self.narrow = BinaryLinear(width, inner, binary_inputs), BinaryLinear(inner, width, binary_inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        x = x + self.attention(self.before(x))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class VisionTransformer(nn.Module):
    """Patches of digits to logits; the embedding of patches and the classifier are float."""

    def __init__(self, width: int, count: int, inner: int, layers: int, binary_inputs: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.position = nn.Parameter(0.1 * torch.randn(49, width))
        self.blocks = nn.Sequential(*(Block(width, count, inner, binary_inputs) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = self.embed(patches(images)) + self.position
        return self.classifier(self.norm(self.blocks(x)).mean(1))


def _digit() -> tuple[Tensor, ...]:
    return (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


PAPER = "He et al., BiViT: Extremely Compressed Binary Vision Transformers, ICCV 2023, https://arxiv.org/abs/2211.07091"

SYSTEMS = (
    System(
        name="bivit",
        title="BiViT: attention bits within a quarter of the row's largest, MLP of binary weights and activations",
        paper=PAPER,
        build=lambda: VisionTransformer(64, 4, 128, 2),
        inputs=_digit,
        packed_layers=12,
        steps=120,
    ),
    System(
        name="bivit-1w32a",
        title="BiViT: the same attention, MLP of binary weights and float activations",
        paper=PAPER,
        build=lambda: VisionTransformer(64, 4, 128, 2, binary_inputs=False),
        inputs=_digit,
        packed_layers=12,
        steps=120,
        published={"accuracy": "70.8 ImageNet (Swin-T)"},
    ),
)
