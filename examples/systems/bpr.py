"""BPR, learning to hash for dense retrieval: the head of the encoder, its sign code, and the search among the documents'.

A query's code is +1 where its embedding is above zero; a document's, which is made once, where it is not below zero. Inner
products of codes order documents as Hamming distances do; the best k are the candidates of the second step, which ranks them
by the query's own numbers (``examples/retrieval`` has both steps on real embeddings).
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn

CHANNELS, HIDDEN, DOCUMENTS, CANDIDATES = 128, 192, 1500, 50


class Encoder(nn.Module):
    """The last layers of an encoder: an embedding of the text to the one that is binarized."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(CHANNELS, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.out = nn.Linear(HIDDEN, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(nn.functional.gelu(self.hidden(x))))


class Search(nn.Module):
    """From a query's features ``[Q, C]`` to the values and numbers of its candidates, ``[Q, k]`` each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.register_buffer("codes", torch.ones(DOCUMENTS, CHANNELS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query = torch.where(self.encoder(x) > 0, 1.0, -1.0)
        return torch.topk(query @ self.codes.T, CANDIDATES, dim=1)


def texts(count: int, seed: int) -> Tensor:
    """Features with the structure of a real corpus: topics, each with its own spread."""
    draw = torch.Generator().manual_seed(seed)
    topics = torch.randn(40, CHANNELS, generator=torch.Generator().manual_seed(99))
    kind = torch.randint(40, (count,), generator=draw)
    return topics[kind] + (0.2 + 0.02 * kind[:, None]) * torch.randn(count, CHANNELS, generator=draw)


def fill(model: nn.Module) -> None:
    """The documents' codes, by the same encoder and the documents' rule."""
    assert isinstance(model, Search)
    with torch.no_grad():
        found = model.encoder(texts(DOCUMENTS, 1))
        model.codes.copy_(torch.where(found >= 0, 1.0, -1.0))


SYSTEM = System(
    name="bpr",
    title="BPR: hashed passages, searched by Hamming distance",
    paper="Yamada, Asai, Hajishirzi: Efficient Passage Retrieval with Hashing for Open-domain Question Answering, ACL 2021, "
    "https://arxiv.org/abs/2106.00882",
    build=Search,
    inputs=lambda: (texts(1, 2),),
    packed_layers=1,
    task="none",
    fill=fill,
    published={"memory": "32x smaller", "speed": "14x and 2x faster on CPU (learning to hash, zero-shot)"},
)
