"""Trains a linear BEBR binarizer on embeddings alone: no labels, under a minute on two cores.

The loss asks that inner products of codes order documents as those of the embeddings do: cross entropy between the two
distributions over the other documents of a batch (as in BEBR, section 3.1, embeddings stand for their own labels).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xnorc.retrieval import Binarizer

TEMPERATURE = 0.05
"""Of the softmax over inner products of unit vectors."""


class _Sign(torch.autograd.Function):
    """+1 where x >= 0, else −1; the gradient passes where |x| is small."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 3 / math.sqrt(x.shape[1]))


class Recurrent(nn.Module):
    """``b = sign(Wf) + ½ sign(R(f − norm(B sign(Wf))))``, or its first term alone."""

    def __init__(self, data: Tensor, size: int, bits: int) -> None:
        super().__init__()
        channels = data.shape[1]
        w = torch.eye(channels)
        if size < channels:  # the directions of most variance, turned so that all elements matter alike
            turn = torch.linalg.qr(torch.randn(size, size))[0]
            w = turn @ torch.linalg.eigh(data.T @ data)[1][:, -size:].T
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(self.w.detach().T.clone())
        self.r = nn.Parameter(self.w.detach().clone())
        self.bits = bits

    def forward(self, f: Tensor) -> Tensor:
        first = _Sign.apply(f @ self.w.T)
        if self.bits == 1:
            return first
        rest = f - F.normalize(first @ self.b.T, dim=1)
        return first + 0.5 * _Sign.apply(rest @ self.r.T)

    def binarizer(self) -> Binarizer:
        """The matrices as NumPy arrays."""
        names = ("w",) if self.bits == 1 else ("w", "b", "r")
        return Binarizer(*(getattr(self, name).detach().numpy().copy() for name in names))


def train(
    documents: np.ndarray, size: int, bits: int, steps: int = 300, batch: int = 256, rate: float = 1e-4, seed: int = 0
) -> Binarizer:
    """A binarizer for unit vectors float32 ``[D, C]``: codes of ``size`` elements of 1 or 2 bits."""
    torch.manual_seed(seed)
    data = torch.from_numpy(documents)
    model = Recurrent(data, size, bits)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        f = data[torch.randint(len(data), (batch,))]
        code = F.normalize(model(f), dim=1)
        itself = torch.eye(batch, dtype=torch.bool)
        target = (f @ f.T / TEMPERATURE).masked_fill(itself, -torch.inf).softmax(dim=1)
        found = (code @ code.T / TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(dim=1)
        loss = -(target * found.masked_fill(itself, 0)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.binarizer()
