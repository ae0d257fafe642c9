"""EcoFormer: attention whose queries and keys are hashed to 16 bits, linear in the number of tokens, without multiplications.

A token of a head is hashed by kernelized hashing: x / ‖x‖, the RBF kernel to 25 anchors, minus its mean, times a 25 × 16
matrix, sign. Queries and keys are the same. With h(q) · h(k) + 17 as the likeness of two tokens, attention is
(h(q) (h(k)ᵀ V) + 17 ΣV) / (h(q) Σh(k) + 17 N): sums of floats with signs, and of signs with signs.

The network is shaped like PVTv2: overlapping patch embeddings by convolution, and an MLP with a depthwise convolution.
"""

from __future__ import annotations

import torch
from attention_parts import heads, joined, straight
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

BITS, ANCHORS = 16, 25


class Hash(nn.Module):
    """[N, heads, S, size] → signs [N, heads, S, 16]."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(F.normalize(torch.randn(count, ANCHORS, size), dim=-1))
        self.mix = nn.Parameter(torch.randn(count, ANCHORS, BITS) / ANCHORS**0.5)
        self.register_buffer("mean", torch.zeros(count, 1, ANCHORS))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        unit = x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)
        # ‖u − a‖² = 2 − 2 u·a for vectors of length 1
        kernel = torch.exp(unit @ F.normalize(self.anchors, dim=-1).transpose(-1, -2) - 1.0)
        if self.training:
            mean = kernel.mean((0, 2))[:, None].detach()
            self.mean.mul_(0.9).add_(0.1 * mean)
        else:
            mean = self.mean
        code = (kernel - mean) @ self.mix
        return straight(torch.sign(code), torch.tanh(code), self.training)


class Attention(nn.Module):
    """Linear attention over hash codes."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.query, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.hash = Hash(count, width // count)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        code = self.hash(heads(self.query(x), self.count))
        values = heads(self.value(x), self.count)
        turned = code.transpose(-1, -2)
        above = code @ (turned @ values) + (BITS + 1) * values.sum(-2, keepdim=True)
        below = code @ turned.sum(-1, keepdim=True) + float((BITS + 1) * x.shape[1])
        return self.output(joined(above / below))


class Mlp(nn.Module):
    """Two linear layers with a depthwise 3 × 3 convolution between them, as in PVTv2."""

    def __init__(self, width: int, inner: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.near = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        x = self.wide(x)
        n, _, inner = x.shape
        image = x.transpose(1, 2).reshape(n, inner, self.side, self.side)
        return self.narrow(F.gelu(self.near(image).flatten(2).transpose(1, 2)))


class Stage(nn.Module):
    """A convolution that halves the image, and blocks over its pixels as tokens."""

    def __init__(self, inputs: int, width: int, count: int, side: int, stride: int, blocks: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.embed = nn.Conv2d(inputs, width, 2 * stride - 1, stride, stride - 1)
        self.start = nn.LayerNorm(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.attentions = nn.ModuleList(Attention(width, count) for _ in range(blocks))
        self.mlps = nn.ModuleList(Mlp(width, 2 * width, side) for _ in range(blocks))

    def forward(self, image: Tensor) -> Tensor:
        """[N, C, H, W] → [N, width, side, side]."""
        x = self.start(self.embed(image).flatten(2).transpose(1, 2))
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return x.transpose(1, 2).reshape(image.shape[0], self.width, self.side, self.side)


class Pyramid(nn.Module):
    """Two stages of 14 × 14 and 7 × 7 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Stage(1, 16, 1, 14, 2, 1), Stage(16, 32, 2, 7, 2, 1))
        self.classifier = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        return self.classifier(self.stages(images).mean((2, 3)))


SYSTEM = System(
    name="ecoformer",
    title="EcoFormer: linear attention over 16-bit hash codes, sums in place of products",
    paper="Liu et al., EcoFormer: Energy-Saving Attention with Linear Complexity, NeurIPS 2022, https://arxiv.org/abs/2209.09004",
    build=Pyramid,
    inputs=lambda: (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),),
    packed_layers=6,
    steps=100,
    published={"energy": "73% less at 3.7 pJ a multiplication and 0.9 pJ an addition", "accuracy": "0.33% lower"},
)
