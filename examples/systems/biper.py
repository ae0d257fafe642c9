"""BiPer: weights are the signs of a sine, activations plain signs, and a learned scale of each channel follows the layer.

Vargas et al., "BiPer: Binary Neural Networks using a Periodic Function", CVPR 2024. The real weight w of a binary weight is
kept inside a period of sin(20 w); the second stage of training, the one that is deployed, uses sign(sin(20 w)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from binarizers import PooledShortcut, clipped, polynomial, sign, to_32
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCY = 20.0


class PeriodicConv2d(nn.Module):
    """3x3 convolution of sign(x) with sign(sin(20 w)), times a learned scale of each output channel, of either sign."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(out_channels, channels // groups, 3, 3))
        start = 1.0 / (9 * channels // groups) ** 0.5
        signs = torch.where(torch.arange(out_channels) % 5 == 4, -1.0, 1.0)
        self.scale = nn.Parameter((start * signs).reshape(1, out_channels, 1, 1))
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        weight = sign(torch.sin(FREQUENCY * self.weight), self.training, clipped)
        y = F.conv2d(sign(x, self.training, polynomial), weight, stride=self.stride, padding=1, groups=self.groups)
        return y * self.scale


class Block(nn.Module):
    """Two binary convolutions, each with its own shortcut; what leaves each sum is clipped to [-1, 1]."""

    def __init__(self, channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = PeriodicConv2d(channels, out_channels, stride, groups), nn.BatchNorm2d(out_channels)
        self.conv2, self.norm2 = PeriodicConv2d(out_channels, out_channels, 1, groups), nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else PooledShortcut(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.norm1(self.conv1(x)) + self.shortcut(x))
        return F.hardtanh(self.norm2(self.conv2(x)) + x)


class ResNet(nn.Module):
    """Images [N, C, H, W] -> logits [N, 10]: a float stem, stages of ``Block`` that halve the image, a float classifier."""

    def __init__(
        self, inputs: int, widths: tuple[int, ...], blocks: int, stem_stride: int = 1, groups: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        layers, channels = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(Block(channels, width, stride, groups[stage] if groups else 1))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.hardtanh(self.stem_norm(self.stem(image))))
        return self.head(self.norm(x.mean(dim=(2, 3))))


class VggSmall(nn.Module):
    """The order of BiPer's VGG: convolution, max-pool, then batch norm, which a sign follows."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width, width), (width, 2 * width), (2 * width, 2 * width), (2 * width, 4 * width)]
        self.convs = nn.ModuleList(PeriodicConv2d(*size) for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size[1]) for size in sizes)
        self.head = nn.Linear(4 * width * 9, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardtanh(self.stem_norm(F.max_pool2d(self.stem(image), 2)))  # 14 x 14
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = F.hardtanh(norm(F.max_pool2d(x, 2) if index % 2 else x))  # 7 x 7, 3 x 3
        return self.head(x.flatten(1))


def _image(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    def inputs() -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return (torch.rand(1, *shape),)

    return inputs


PAPER = (
    "Vargas, Correa, Hinojosa, Arguello, BiPer: Binary Neural Networks using a Periodic Function, CVPR 2024, "
    "https://arxiv.org/abs/2404.01278"
)

SYSTEMS = (
    System(
        name="biper-resnet20",
        title="BiPer, ResNet-20 of narrow stages",
        paper=PAPER,
        build=lambda: ResNet(1, (12, 24, 48), 3, stem_stride=2),
        inputs=_image(1, 32, 32),
        prepare=to_32,
        packed_layers=18,
        learning_rate=8e-3,
        published={"CIFAR-10 accuracy, ResNet-20": "86.98%"},
        shapes=(
            Shape(
                name="ResNet-18 (CIFAR-10)",
                build=lambda: ResNet(3, (64, 128, 256, 512), 2),
                inputs=_image(3, 32, 32),
                published={"size": "44.04 MB → 1.467 MB (measured)", "accuracy": "93.75%"},
            ),
        ),
    ),
    System(
        name="biper-vgg",
        title="BiPer, VGG-small: max-pools in front of batch norms",
        paper=PAPER,
        build=lambda: VggSmall(1, 16),
        inputs=_image(1, 28, 28),
        packed_layers=4,
        learning_rate=5e-3,
        published={"CIFAR-10 accuracy, VGG-small": "92.46%"},
    ),
    System(
        name="biper-grouped",
        title="BiPer with grouped binary convolutions, as in its MobileNet",
        paper=PAPER,
        build=lambda: ResNet(1, (16, 32), 2, stem_stride=2, groups=(4, 16)),
        inputs=_image(1, 32, 32),
        prepare=to_32,
        packed_layers=8,
    ),
)
