"""Weight-only quantization by groups: experts of 1 to 4 bits (MC-MoE), and every width with groups of 128 (QuantMoE-Bench).

A mixture of experts keeps its activations in float. Each expert's weights are rounded to codes of its own width, with a scale
and a zero for each group of neighbours along the input: few bits where an expert is chosen seldom, more where it matters.
One bit is ±s around the mean of a group. The router and the norms are float.
"""

from __future__ import annotations

import torch
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F


def quantized(weight: Tensor, bits: int, group: int) -> Tensor:
    """What a quantizer of ``bits`` leaves of ``weight [O, K]``, for each ``group`` neighbours: a float tensor of few levels."""
    rows = weight.reshape(-1, group)
    if bits == 1:
        middle = rows.mean(1, keepdim=True)
        spread = (rows - middle).abs().mean(1, keepdim=True)
        return torch.where(rows >= middle, middle + spread, middle - spread).reshape(weight.shape)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(rows / scale) + zero, 0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(weight.shape)


class Expert(nn.Module):
    """A gated MLP: ``down(silu(gate(x)) · up(x))``."""

    def __init__(self, width: int, hidden: int, bits: int, group: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.bits, self.group = bits, group

    def quantize(self) -> None:
        """Round the weights, in place."""
        with torch.no_grad():
            for layer in (self.gate, self.up, self.down):
                layer.weight.copy_(quantized(layer.weight, self.bits, self.group))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """All experts on every token, weighted by the router: what a compiled graph without branches computes."""

    def __init__(self, width: int, hidden: int, bits: tuple[int, ...], group: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, len(bits), bias=False)
        self.experts = nn.ModuleList([Expert(width, hidden, each, group) for each in bits])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        shares = self.router(y).softmax(-1)
        for i, expert in enumerate(self.experts):
            x = x + shares[..., i : i + 1] * expert(y)
        return x


def fill(module: nn.Module) -> None:
    """Weights as a trained transformer has them (a few large columns among many small ones), then rounded."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                columns = torch.exp(0.5 * torch.randn(layer.in_features, generator=generator))
                values = torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5
                layer.weight.copy_(values * columns)
            elif isinstance(layer, nn.LayerNorm):
                layer.weight.copy_(1 + 0.2 * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
        for layer in module.modules():
            if isinstance(layer, Expert):
                layer.quantize()


class Quantized(Mixture):
    """A mixture whose weights are rounded from the start: for sizes."""

    def __init__(self, width: int, hidden: int, bits: tuple[int, ...], group: int) -> None:
        super().__init__(width, hidden, bits, group)
        fill(self)


def tokens(width: int) -> tuple[Tensor, ...]:
    """Four tokens."""
    return (torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)),)


MIXED = (1, 2, 3, 4)
PUBLISHED = (1, 2, 2, 3, 3, 3, 3, 3)
"""Widths of eight experts: 2.5 bits on average, and 2.54 published with everything else of the network at 4."""

SYSTEMS = (
    System(
        name="mc-moe",
        title="MC-MoE: experts of 1, 2, 3 and 4 bits, groups of 32",
        paper="W. Huang et al.: Mixture Compressor for Mixture-of-Experts LLMs Gains More, ICLR 2025; "
        "https://arxiv.org/abs/2410.06270",
        build=lambda: Mixture(128, 256, MIXED, 32),
        inputs=lambda: tokens(128),
        packed_layers=12,
        task="none",
        fill=fill,
        published={"bits": "2.54 bits a weight", "size": "76.6% smaller than 16-bit weights, at 3.8% of accuracy"},
        shapes=(
            Shape(
                name="an eighth of Mixtral's expert layer (512 wide, 1792 hidden), groups of 128",
                build=lambda: Quantized(512, 1792, PUBLISHED, 128),
                inputs=lambda: tokens(512),
                published={"bits": "2.54 bits a weight"},
            ),
        ),
    ),
    System(
        name="quantmoe",
        title="QuantMoE-Bench: experts of 4 and 2 bits by their importance, groups of 128",
        paper="P. Li, X. Jin, Z. Tan, Y. Cheng, T. Chen: QuantMoE-Bench: Examining Post-Training Quantization for "
        "Mixture-of-Experts, 2024; https://arxiv.org/abs/2406.08155",
        build=lambda: Mixture(128, 256, (4, 2, 2, 4), 128),
        inputs=lambda: tokens(128),
        packed_layers=12,
        task="none",
        fill=fill,
    ),
)
