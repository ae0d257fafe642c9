"""PB-LLM: weights of one bit but for a few salient ones, which keep 8 bits; activations stay float.

The salient weights are those of the largest magnitude, a tenth of a layer. They are rounded to 8 bits with a scale a channel;
each other weight is its channel's mean plus or minus the mean distance from it. What an exporter sees is one float tensor.
"""

from __future__ import annotations

import torch
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F


def partially_binarized(weight: Tensor, salient: float) -> Tensor:
    """What PB-LLM leaves of ``weight [O, K]``: ``salient`` is the part that keeps 8 bits."""
    limit = weight.abs().flatten().kthvalue(int(weight.numel() * (1 - salient))).values
    kept = weight.abs() > limit
    others = (~kept).sum(1, keepdim=True).clamp(min=1)
    middle = torch.where(kept, 0.0, weight).sum(1, keepdim=True) / others
    spread = torch.where(kept, 0.0, (weight - middle).abs()).sum(1, keepdim=True) / others
    scale = weight.abs().amax(1, keepdim=True) / 127
    eight = torch.clamp(torch.round(weight / scale), -128, 127) * scale
    return torch.where(kept, eight, torch.where(weight >= middle, middle + spread, middle - spread))


class Block(nn.Module):
    """A decoder block of a language model: causal attention and a gated MLP, all seven linear layers binarized in part."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, tokens, width = x.shape
        y = self.norm1(x)

        def heads(z: Tensor) -> Tensor:
            return z.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = heads(self.query(y)), heads(self.key(y)), heads(self.value(y))
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask
        x = x + self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(n, tokens, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Blocks on embedded tokens, and a float head."""

    def __init__(self, width: int = 128, hidden: int = 256, blocks: int = 2, tokens: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, hidden, 4) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 64, bias=False)
        self.register_buffer("mask", torch.full((tokens, tokens), -1e4).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


def fill(module: nn.Module, salient: float = 0.1) -> None:
    """Weights with the heavy tails that make some salient; all but the head binarized in part."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                size = layer.weight.shape
                tails = torch.exp(0.5 * torch.randn(size, generator=generator))
                layer.weight.copy_(torch.randn(size, generator=generator) * tails * layer.in_features**-0.5)
                if not name.endswith("head"):
                    layer.weight.copy_(partially_binarized(layer.weight, salient))
            elif isinstance(layer, nn.LayerNorm):
                layer.weight.copy_(1 + 0.2 * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))


def tokens(width: int, count: int) -> tuple[Tensor, ...]:
    """A batch of one."""
    return (torch.randn(1, count, width, generator=torch.Generator().manual_seed(0)),)


def opt_shaped() -> nn.Module:
    """The linear layers of one block of a small OPT: 768 wide."""
    made = Decoder(768, 2048, 1)
    fill(made)
    return made


SYSTEM = System(
    name="pb-llm",
    title="PB-LLM: one-bit weights with a tenth of salient ones in 8 bits, float activations",
    paper="Y. Shang, Z. Yuan, Q. Wu, Z. Dong: PB-LLM: Partially Binarized Large Language Models, ICLR 2024; "
    "https://arxiv.org/abs/2310.00034",
    build=Decoder,
    inputs=lambda: tokens(128, 8),
    packed_layers=14,
    task="none",
    fill=fill,
    published={"bits": "1.7 bits a weight and the salient ones' places beside it, at 10% salient"},
    shapes=(
        Shape(
            name="one block 768 wide, 2048 hidden",
            build=opt_shaped,
            inputs=lambda: tokens(768, 8),
            published={"bits": "1.7 bits a weight (0.9·1 + 0.1·8), places of the salient ones not counted"},
        ),
    ),
)
