"""BinaryDM: the noise predictor of a diffusion model with binary weights and activations of 4 bits.

Zheng et al., ICLR 2025. A weight W of the outer stages is two binary bases, σ1·sign(W) + σ2·sign(W − σ1·sign(W)), with learned
scales of each output channel, which training evolves into the first basis alone, as the deep stages have it from the start.
The small network here is caught with both; the network of the paper's size is what the evolution ends in. Only the first and
the last layer are left in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F
from uniform import Uniform

ACTIVATION_BITS = 4
LARGEST = 2.0


def _sign(weight: Tensor) -> Tensor:
    """Signs without a zero, with the gradient of the weight."""
    sign = torch.where(weight >= 0, 1.0, -1.0)
    return (sign - weight).detach() + weight if weight.requires_grad else sign


class Bases(nn.Module):
    """A weight [O, ...] as one binary basis or two, with a learned scale of each output channel."""

    def __init__(self, weight: Tensor, bases: int) -> None:
        super().__init__()
        flat = weight.detach().flatten(1)
        first = flat.abs().mean(1)
        second = (flat - first[:, None] * torch.where(flat >= 0, 1.0, -1.0)).abs().mean(1)
        shape = (-1, *[1] * (weight.ndim - 1))
        self.scales = nn.ParameterList(nn.Parameter(s.reshape(shape)) for s in (first, second)[:bases])

    def forward(self, weight: Tensor) -> Tensor:
        total = self.scales[0] * _sign(weight)
        if len(self.scales) == 2:
            total = total + self.scales[1] * _sign(weight - total.detach())
        return total


class BinaryConv2d(nn.Conv2d):
    """A convolution of 4-bit activations with binary weights."""

    def __init__(self, channels: int, out: int, kernel: int, bases: int, stride: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, kernel // 2)
        self.x = Uniform(ACTIVATION_BITS, True, LARGEST)
        self.w = Bases(self.weight, bases)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.x(x), self.w(self.weight), self.bias)


class BinaryLinear(nn.Linear):
    """A linear layer of 4-bit activations with binary weights."""

    def __init__(self, features: int, out: int, bases: int) -> None:
        super().__init__(features, out)
        self.x = Uniform(ACTIVATION_BITS, True, LARGEST)
        self.w = Bases(self.weight, bases)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.x(x), self.w(self.weight), self.bias)


class Block(nn.Module):
    """Norm, SiLU, convolution, plus the time step, and again; a shortcut where the channels change."""

    def __init__(self, channels: int, out: int, time: int, bases: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(min(8, size // 4), size) for size in (channels, out))
        self.conv1, self.conv2 = BinaryConv2d(channels, out, 3, bases), BinaryConv2d(out, out, 3, bases)
        self.time = BinaryLinear(time, out, bases)
        self.shortcut = BinaryConv2d(channels, out, 1, bases) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(y))) + self.shortcut(x)


class Attention(nn.Module):
    """One head of attention over the pixels of the deepest stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(8, channels // 4), channels)
        self.query, self.key, self.value, self.out = (BinaryConv2d(channels, channels, 1, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (part(y).flatten(2) for part in (self.query, self.key, self.value))
        share = torch.softmax(query.transpose(1, 2) @ key / x.shape[1] ** 0.5, dim=2)
        return x + self.out((value @ share.transpose(1, 2)).reshape(x.shape))


class UNet(nn.Module):
    """Noisy images [N, C, H, W] and time steps as sinusoids [N, T] -> the noise in them.

    Stages that halve the image, of ``blocks`` blocks each, and the way back, which reads what each block of the way down
    gave. The stages above ``deep`` have weights of two bases.
    """

    def __init__(self, inputs: int, base: int, grows: Sequence[int], blocks: int, time: int, deep: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, base, 3, padding=1)
        sizes = [base * grow for grow in grows]
        kinds = [2 if stage < deep else 1 for stage in range(len(sizes))]
        channels, kept = base, [base]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for stage, (size, bases) in enumerate(zip(sizes, kinds, strict=True)):
            for _ in range(blocks):
                self.down.append(Block(channels, size, time, bases))
                channels = size
                kept.append(channels)
            if stage < len(sizes) - 1:
                self.down.append(BinaryConv2d(channels, channels, 3, bases, stride=2))
                kept.append(channels)
        self.middle = nn.ModuleList((Block(channels, channels, time, 1), Block(channels, channels, time, 1)))
        self.attention = Attention(channels)
        for stage in reversed(range(len(sizes))):
            for _ in range(blocks + 1):
                self.up.append(Block(channels + kept.pop(), sizes[stage], time, kinds[stage]))
                channels = sizes[stage]
            if stage:
                self.up.append(BinaryConv2d(channels, channels, 3, kinds[stage]))
        self.norm = nn.GroupNorm(min(8, channels // 4), channels)
        self.last = nn.Conv2d(channels, inputs, 3, padding=1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        x = self.first(image)
        kept = [x]
        for layer in self.down:
            x = layer(x, time) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        x = self.middle[1](self.attention(self.middle[0](x, time)), time)
        for layer in self.up:
            if isinstance(layer, Block):
                x = layer(torch.cat((x, kept.pop()), dim=1), time)
            else:
                x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.norm(x)))


def sinusoids(steps: Tensor, size: int) -> Tensor:
    """Time steps [N] (0 to 1) as sines and cosines [N, size] (Ho et al., "DDPM", NeurIPS 2020)."""
    frequencies = torch.exp(-math.log(1000.0) * torch.arange(size // 2) / (size // 2))
    angles = 1000.0 * steps[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


TIME = 32
STEPS, BATCH = 60, 16


def denoise(module: nn.Module) -> None:
    """A short real training: predict the noise that MNIST images were mixed with."""
    from train import mnist

    images, _ = mnist("train")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    with torch.enable_grad():
        for _ in range(STEPS):
            index = torch.randint(len(images), (BATCH,), generator=generator)
            step = torch.rand(BATCH, generator=generator)
            noise = torch.randn(BATCH, 1, 28, 28, generator=generator)
            keep = torch.cos(step * math.pi / 2)[
                :, None, None, None
            ]  # Nichol and Dhariwal's cosine schedule, ICML 2021
            mixed = keep * (2 * images[index] - 1) + (1 - keep**2).sqrt() * noise
            loss = F.mse_loss(module(mixed, sinusoids(step, TIME)), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _inputs(channels: int, size: int, time: int) -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return torch.randn(1, channels, size, size), sinusoids(torch.tensor([0.4]), time)


PUBLISHED = {
    "operations": "15.2x fewer (W1A4, ICLR; 16.0x in the first preprint)",
    "size": "29.2x smaller (ICLR; 27.1x in the first preprint)",
}

SYSTEM = System(
    name="binarydm",
    title="BinaryDM: a diffusion UNet of binary weights and 4-bit activations",
    paper=(
        "Zheng, Liu, Bian, Ma, Zhang, Wang, Guo, Qin, BinaryDM: Accurate Weight Binarization for Efficient Diffusion "
        "Models, ICLR 2025, https://arxiv.org/abs/2404.05662"
    ),
    build=lambda: UNet(1, 8, (1, 2), 1, TIME, deep=1),
    inputs=lambda: _inputs(1, 28, TIME),
    packed_layers=35,
    task="none",
    fill=denoise,
    shapes=(
        Shape(
            name="UNet of DDPM (CIFAR-10, 35 million weights)",
            build=lambda: UNet(3, 128, (1, 2, 2, 2), 2, 512, deep=0),
            inputs=lambda: _inputs(3, 32, 512),
            published=PUBLISHED,
        ),
    ),
    published=PUBLISHED,
)
