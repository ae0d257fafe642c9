"""BiPFT: a binary BERT that was pretrained binary, with small low-rank terms in float beside its binary attention.

Weights are mean|W| · sign(W − mean W) of the whole tensor, of embeddings row by row; activations a · sign(x + move) with a move
for each channel. Attention keeps its softmax: probabilities become a · clamp(round(p / a), 0, 1). What binarizing loses of
the scores and of the values is estimated by products of low rank, which are added.
"""

from __future__ import annotations

import math

import torch
from attention_parts import digits, heads, joined, sentence, straight, words
from bibert import BinaryEmbedding
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F


def tensor_binarized(weight: Tensor, training: bool) -> Tensor:
    """mean|W| · sign(W − mean W) of the whole tensor."""
    hard = weight.abs().mean() * torch.sign(weight - weight.mean())
    return straight(hard, weight, training)


class Binarizer(nn.Module):
    """a · sign(x + move): one a, and a move for each channel of the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.move = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor whose last axis is the channels'."""
        moved = x + self.move
        return self.scale * straight(torch.sign(moved), torch.clamp(moved, -1, 1), self.training)


class Linear(nn.Linear):
    """Binarized activations times a binarized weight, plus a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.binarizer = Binarizer(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        return F.linear(self.binarizer(x), tensor_binarized(self.weight, self.training), self.bias)


class Probabilities(nn.Module):
    """a · clamp(round(p / a), 0, 1)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, p: Tensor) -> Tensor:
        """Probabilities, 0 or a each."""
        ratio = p / self.scale
        return self.scale * straight(torch.clamp(torch.round(ratio), 0, 1), torch.clamp(ratio, 0, 1), self.training)


class LowRank(nn.Module):
    """x · down · up with so few columns between that it stays in float."""

    def __init__(self, width: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(0.1 * torch.randn(width, rank))
        self.up = nn.Parameter(0.1 * torch.randn(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., outputs]."""
        return x @ self.down @ self.up


class Attention(nn.Module):
    """Binary attention with the low-rank estimates of what its scores and values lost."""

    def __init__(self, width: int, count: int, rank: int, keys: int) -> None:
        super().__init__()
        self.count, size = count, width // count
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.signs = nn.ModuleList(Binarizer(size) for _ in range(3))
        self.scores = LowRank(size, rank, rank)
        self.keys = nn.Parameter(0.1 * torch.randn(size, rank))
        self.values = LowRank(width, rank, width)
        self.probabilities = Probabilities(2 / keys)
        self.output = Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """[N, S, width]; ``hidden``: bool [N, 1, 1, S], which keys do not count."""
        full = [heads(layer(x), self.count) for layer in (self.query, self.key, self.value)]
        q, k, v = (signs(value) for signs, value in zip(self.signs, full, strict=True))
        scores = q @ k.transpose(-1, -2) + self.scores(full[0]) @ (full[1] @ self.keys).transpose(-1, -2)
        scores = (scores / math.sqrt(q.shape[-1])).masked_fill(hidden, -10000.0)
        context = joined(self.probabilities(torch.softmax(scores, -1)) @ v)
        return self.norm(x + self.output(context + self.values(x)))


class Encoder(nn.Module):
    """Attention, then two linear layers with GELU between them."""

    def __init__(self, width: int, count: int, inner: int, rank: int, keys: int) -> None:
        super().__init__()
        self.attention = Attention(width, count, rank, keys)
        self.wide, self.narrow = Linear(width, inner), Linear(inner, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        x = self.attention(x, hidden)
        return self.norm(x + self.narrow(F.gelu(self.wide(x))))


class Bert(nn.Module):
    """Words to classes. ``masked``: whether a second input says which words count; else the word 0 does not."""

    def __init__(
        self, vocabulary: int, positions: int, keys: int, width: int, count: int, inner: int, layers: int, classes: int,
        rank: int, masked: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.masked = masked
        self.word, self.position = BinaryEmbedding(vocabulary, width), BinaryEmbedding(positions, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Encoder(width, count, inner, rank, keys) for _ in range(layers))
        self.classifier = nn.Linear(width, classes)

    def forward(self, words: Tensor, keep: Tensor | None = None) -> Tensor:
        """int64 [N, S], and float [N, S] of 1 (a word) and 0 (padding) → logits [N, classes]."""
        hidden = (words == 0) if keep is None else (keep == 0)
        hidden = hidden[:, None, None, :]
        x = self.norm(self.word(words) + self.position(torch.arange(words.shape[1])))
        for layer in self.layers:
            x = layer(x, hidden)
        return self.classifier(x[:, 0] if self.masked else x.mean(1))


SYSTEM = System(
    name="bipft",
    title="BiPFT: binary pretrained BERT with low-rank corrections of its attention",
    paper="Xing et al., BiPFT: Binary Pre-trained Foundation Transformer, AAAI 2024, https://arxiv.org/abs/2312.08937",
    build=lambda: Bert(256, 49, 49, 64, 4, 128, 2, 10, rank=2),
    inputs=digits,
    packed_layers=16,
    prepare=words,
    steps=120,
    shapes=(
        Shape(
            name="BiPFT of BERT-base, 128 words",
            build=lambda: Bert(30522, 512, 128, 768, 12, 3072, 12, 2, rank=1, masked=True),
            inputs=sentence,
            published={"size": "28x smaller", "operations": "56x fewer"},
        ),
    ),
)
