"""BEBR, recurrent binary embeddings: ``b = sign(Wf) + ½ sign(R(f − norm(B sign(Wf))))`` and its score with each document.

W, B and R are small networks here, as in the paper; they stay in float. The score of two such codes is a sum of four
products of signs, b0·d0 + ½ b0·d1 + ½ b1·d0 + ¼ b1·d1, over the document's length: four binary products. Where codes are
searched and not trained, ``xnorc index --code bebr`` scans 4-bit numbers through tables instead (``docs/retrieval.md``).
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn

CHANNELS, SIZE, DOCUMENTS = 128, 128, 1000


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def network(inputs: int, outputs: int) -> nn.Module:
    """A layer, batch norm, ReLU, and a layer."""
    return nn.Sequential(
        nn.Linear(inputs, 2 * inputs), nn.BatchNorm1d(2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs)
    )


class Recurrent(nn.Module):
    """From features ``[Q, C]`` to scores ``[Q, D]``."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b, self.r = network(CHANNELS, SIZE), network(SIZE, CHANNELS), network(CHANNELS, SIZE)
        self.register_buffer("first", torch.ones(DOCUMENTS, SIZE))
        self.register_buffer("second", torch.ones(DOCUMENTS, SIZE))
        self.register_buffer("inverse_length", torch.ones(DOCUMENTS))

    def code(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Both signs of every element."""
        first = sign(self.w(f))
        rest = f - nn.functional.normalize(self.b(first), dim=1)
        return first, sign(self.r(rest))

    def forward(self, f: Tensor) -> Tensor:
        first, second = self.code(f)
        fine = first @ self.second.T + second @ self.first.T
        score = first @ self.first.T + 0.5 * fine + 0.25 * (second @ self.second.T)
        return score * self.inverse_length


def texts(count: int, seed: int) -> Tensor:
    """Unit vectors with the structure of a real corpus: topics, each with its own spread."""
    draw = torch.Generator().manual_seed(seed)
    topics = torch.randn(40, CHANNELS, generator=torch.Generator().manual_seed(99))
    kind = torch.randint(40, (count,), generator=draw)
    found = topics[kind] + (0.2 + 0.02 * kind[:, None]) * torch.randn(count, CHANNELS, generator=draw)
    return nn.functional.normalize(found, dim=1)


def fill(model: nn.Module) -> None:
    """Statistics of the batch norms from a pass over the documents, and then the documents' codes."""
    assert isinstance(model, Recurrent)
    documents = texts(DOCUMENTS, 1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.3)
                part.momentum = None
        model.train()
        for _ in range(3):
            model.code(documents)
        model.eval()
        first, second = model.code(documents)
        model.first.copy_(first)
        model.second.copy_(second)
        model.inverse_length.copy_(1 / (first + 0.5 * second).norm(dim=1))


SYSTEM = System(
    name="bebr",
    title="BEBR: recurrent binarization, two bits a dimension",
    paper="Gan et al.: Binary Embedding-based Retrieval at Tencent, KDD 2023, https://arxiv.org/abs/2302.08714",
    build=Recurrent,
    inputs=lambda: (texts(1, 2),),
    packed_layers=4,
    task="none",
    fill=fill,
    published={"index cost": "30-50% saved", "scan": "faster than a Hamming scan"},
)
