"""Binary Latent Diffusion and Instella-T2I: an image as bits, each the sign of a probability, embedded by float vectors.

The encoder gives a probability for each bit of each place; a bit is 1 where that is above one half (training may draw it at
random: what is deployed may not). A place's code then selects, and adds up, float vectors, and a decoder makes an image of
them. Here a classifier reads that image, so that the whole can be trained on labels.
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

PAPERS = {
    "binary-latent": "Z. Wang, J. Wang, Z. Liu, Q. Qiu: Binary Latent Diffusion, CVPR 2023; https://arxiv.org/abs/2304.04820",
    "instella-t2i": "Z. Wang et al.: Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation, 2025; "
    "https://arxiv.org/abs/2506.21022",
}


def code(logits: Tensor, training: bool) -> Tensor:
    """0 and 1: whether the probability is above one half. When training, the gradient is that of the probability."""
    probability = torch.sigmoid(logits)
    bits = (probability > 0.5).to(logits.dtype)
    return bits + probability - probability.detach() if training else bits


class Autoencoder(nn.Module):
    """Two convolutions to a map of ``bits`` a place, their embedding, a decoder to an image, a classifier of the image."""

    def __init__(self, bits: int = 32, width: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, bits, 3, padding=1)
        )
        self.embed = nn.Linear(bits, width, bias=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, stride=4)
        )
        self.reader = nn.Linear(28 * 28, 10)

    def forward(self, x: Tensor) -> Tensor:
        bits = code(self.encoder(x), self.training)
        latent = self.embed(bits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.reader(torch.sigmoid(self.decoder(latent)).flatten(1))


class Tokens(nn.Module):
    """One-dimensional tokens: a row of ``tokens`` codes for the whole image, embedded and decoded by a float MLP."""

    def __init__(self, tokens: int = 16, bits: int = 24, width: int = 32) -> None:
        super().__init__()
        self.tokens = tokens
        self.encoder = nn.Sequential(nn.Linear(784, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, tokens * bits))
        self.embed = nn.Linear(bits, width)
        self.decoder = nn.Sequential(nn.Linear(tokens * width, 128), nn.GELU(), nn.Linear(128, 784))
        self.reader = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.encoder(x.flatten(1)).reshape(x.shape[0], self.tokens, -1)
        latent = F.gelu(self.embed(code(logits, self.training)))
        return self.reader(torch.sigmoid(self.decoder(latent.flatten(1))))


def inputs() -> tuple[Tensor, ...]:
    """One image."""
    return (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


SYSTEMS = (
    System(
        name="binary-latent",
        title="Binary Latent Diffusion: a map of bits from an encoder, embedded by float vectors",
        paper=PAPERS["binary-latent"],
        build=Autoencoder,
        inputs=inputs,
        packed_layers=1,
        published={"sampling": "16 steps in place of hundreds"},
    ),
    System(
        name="instella-t2i",
        title="Instella-T2I: an image as a row of binary tokens, embedded by float vectors",
        paper=PAPERS["instella-t2i"],
        build=Tokens,
        inputs=inputs,
        packed_layers=1,
        published={"tokens": "128 binary tokens an image of 1024×1024 pixels"},
    ),
)
