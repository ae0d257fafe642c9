"""BiBERT: a BERT encoder whose weights, embeddings and activations are all of one bit, and whose attention has no softmax.

A weight row is mean|w| · sign(w − mean w), of linear layers as of embeddings; activations are plain signs. Attention is
bool(sign(Q) · sign(K)ᵀ / √d + mask > 0) · sign(V). LayerNorm, GELU and the classifier stay in float.
"""

from __future__ import annotations

import math

import torch
from attention_parts import digits, flags, heads, joined, sentence, signs, straight, words
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -10000.0


def row_binarized(weight: Tensor, training: bool) -> Tensor:
    """mean|w| · sign(w − mean w), row by row."""
    scale = weight.abs().mean(1, keepdim=True)
    hard = scale * torch.sign(weight - weight.mean(1, keepdim=True))
    return straight(hard, weight, training)


class BinaryLinear(nn.Linear):
    """sign(x) times binarized rows, plus a bias."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        return F.linear(signs(x, self.training), row_binarized(self.weight, self.training), self.bias)


class BinaryEmbedding(nn.Embedding):
    """Rows of a binarized table."""

    def forward(self, index: Tensor) -> Tensor:
        """int64 [...] → [..., width]."""
        return F.embedding(index, row_binarized(self.weight, self.training))


class Embeddings(nn.Module):
    """Word, position and segment, summed and normalized."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.word = BinaryEmbedding(vocabulary, width)
        self.position = BinaryEmbedding(positions, width)
        self.segment = BinaryEmbedding(2, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [N, S] → [N, S, width]."""
        places = torch.arange(words.shape[1])
        x = self.word(words) + self.position(places) + self.segment(torch.zeros_like(places))
        return self.norm(x)


class Attention(nn.Module):
    """Binary attention, its output layer, and the residual with its LayerNorm."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.query, self.key, self.value = (BinaryLinear(width, width) for _ in range(3))
        self.output = BinaryLinear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, S, width] and an additive mask [N, 1, 1, S]."""
        q, k, v = (signs(heads(layer(x), self.count), self.training) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        context = joined(flags(scores, self.training) @ v)
        return self.norm(x + self.output(context))


class Encoder(nn.Module):
    """Attention, then two linear layers with GELU between them."""

    def __init__(self, width: int, count: int, inner: int) -> None:
        super().__init__()
        self.attention = Attention(width, count)
        self.wide, self.narrow = BinaryLinear(width, inner), BinaryLinear(inner, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, S, width] → [N, S, width]."""
        x = self.attention(x, mask)
        return self.norm(x + self.narrow(F.gelu(self.wide(x))))


class Bert(nn.Module):
    """Words to classes. ``masked``: whether a second input says which words count; else the word 0 does not."""

    def __init__(
        self, vocabulary: int, positions: int, width: int, count: int, inner: int, layers: int, classes: int,
        masked: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.masked = masked
        self.embeddings = Embeddings(vocabulary, positions, width)
        self.layers = nn.ModuleList(Encoder(width, count, inner) for _ in range(layers))
        self.classifier = nn.Linear(width, classes)

    def forward(self, words: Tensor, keep: Tensor | None = None) -> Tensor:
        """int64 [N, S], and float [N, S] of 1 (a word) and 0 (padding) → logits [N, classes]."""
        keep = (words != 0).float() if keep is None else keep
        mask = (1.0 - keep)[:, None, None, :] * MASKED
        x = self.embeddings(words)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(x[:, 0] if self.masked else x.mean(1))


SYSTEM = System(
    name="bibert",
    title="BiBERT: fully binarized BERT, attention without softmax",
    paper="Qin et al., BiBERT: Accurate Fully Binarized BERT, ICLR 2022, https://arxiv.org/abs/2203.06390",
    build=lambda: Bert(256, 49, 64, 4, 128, 2, 10),
    inputs=digits,
    packed_layers=16,
    prepare=words,
    steps=120,
    shapes=(
        Shape(
            name="BiBERT of BERT-base, 128 words",
            build=lambda: Bert(30522, 512, 768, 12, 3072, 12, 2, masked=True),
            inputs=sentence,
            published={"size": "31.2x smaller", "operations": "56.3x fewer"},
        ),
    ),
)
