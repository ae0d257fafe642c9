"""What the binary transformers of this folder share: straight-through binarizers, token sequences out of digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GRID = 7
"""A digit is cut into 7 × 7 patches of 4 × 4 pixels."""


def straight(hard: Tensor, soft: Tensor, training: bool) -> Tensor:
    """The values of ``hard`` with the gradient of ``soft``; out of training ``hard`` alone, as a deployed network has it."""
    return hard.detach() + soft - soft.detach() if training else hard


def signs(x: Tensor, training: bool) -> Tensor:
    """sign(x), with the gradient of a clipped identity."""
    return straight(torch.sign(x), torch.clamp(x, -1, 1), training)


def flags(x: Tensor, training: bool) -> Tensor:
    """x > 0 as 0 and 1, with the gradient of a clipped line."""
    return straight((x > 0).to(x.dtype), torch.clamp(x, -1, 1) / 2, training)


def heads(x: Tensor, count: int) -> Tensor:
    """[N, S, D] → [N, heads, S, D / heads]."""
    n, tokens, width = x.shape
    return x.view(n, tokens, count, width // count).permute(0, 2, 1, 3)


def joined(x: Tensor) -> Tensor:
    """[N, heads, S, D] → [N, S, heads · D]."""
    n, count, tokens, width = x.shape
    return x.permute(0, 2, 1, 3).reshape(n, tokens, count * width)


def patches(images: Tensor) -> Tensor:
    """Digits [N, 1, 28, 28] → [N, 49, 16]: patch by patch."""
    n = images.shape[0]
    cut = images.view(n, GRID, 4, GRID, 4).permute(0, 1, 3, 2, 4)
    return cut.reshape(n, GRID * GRID, 16)


def words(images: Tensor) -> Tensor:
    """Digits as sentences of 49 words out of 256, int64 [N, 49]: the pattern of ink in a patch. 0 is an empty patch."""
    cells = patches(images).view(-1, GRID * GRID, 4, 2, 2).mean(-1).flatten(2) > 0.3
    return (cells * (2 ** torch.arange(8))).sum(-1)


def fill_linear(module: nn.Module) -> None:
    """Random weights and biases of a network that is not trained: uneven row means, scales and biases of either sign."""
    for name, value in module.named_parameters():
        if value.ndim > 1:
            value.normal_(0, 0.05).add_(0.02 * torch.randn(value.shape[0], *[1] * (value.ndim - 1)))
        elif name.endswith("bias"):
            value.normal_(0, 0.1)


def digits() -> tuple[Tensor, ...]:
    """One sentence of ``words``, seeded: a sample of a small encoder."""
    generator = torch.Generator().manual_seed(0)
    return (words(torch.rand(1, 1, 28, 28, generator=generator) ** 3),)


def sentence() -> tuple[Tensor, ...]:
    """A sample of BERT-base: 128 words, int64, and which of them count, float32 (the last 28 are padding)."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.ones(1, 128)
    keep[:, 100:] = 0
    return torch.randint(0, 30522, (1, 128), generator=generator), keep
