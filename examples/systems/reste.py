"""ReSTE: plain signs forward, a rectified gradient backward; the order is convolution, ReLU, batch norm, shortcut.

Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks
Training", ICCV 2023. The scale mean|w| is one number a layer and lies in the weight before the convolution.
"""

from __future__ import annotations

import torch
from binarizers import PooledShortcut, power, sign, to_32
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F


class ScaledSignConv2d(nn.Module):
    """3x3 convolution of sign(x) with mean|w| · sign(w), the mean over the whole tensor."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(out_channels, channels, 3, 3))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        weight = sign(self.weight, self.training, power) * self.weight.abs().mean()
        return F.conv2d(sign(x, self.training, power), weight, stride=self.stride, padding=1)


class Unit(nn.Module):
    """Convolution, ReLU, batch norm, plus the shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = ScaledSignConv2d(channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else PooledShortcut(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x))) + self.shortcut(x)


class ResNet(nn.Module):
    """Images [N, C, H, W] -> logits [N, 10]."""

    def __init__(self, inputs: int, widths: tuple[int, ...], units: int, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        layers, channels = [], widths[0]
        for stage, width in enumerate(widths):
            for index in range(units):
                layers.append(Unit(channels, width, 2 if stage and not index else 1))
                channels = width
        self.units = nn.Sequential(*layers)
        # Straight after each other, without a shortcut: this sign is taken of an integer through ReLU and batch norm.
        self.last = ScaledSignConv2d(channels, channels)
        self.last_norm = nn.BatchNorm2d(channels)
        self.plain = ScaledSignConv2d(channels, channels)
        self.plain_norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.units(F.relu(self.stem_norm(self.stem(image))))
        x = self.last_norm(F.relu(self.last(x)))
        x = self.plain_norm(F.relu(self.plain(x)))
        return self.head(x.mean(dim=(2, 3)))


def _image() -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return (torch.rand(1, 1, 32, 32),)


def _color() -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return (torch.rand(1, 3, 32, 32),)


SYSTEM = System(
    name="reste",
    title="ReSTE, ResNet-20 of narrow stages",
    paper=(
        "Wu, Zheng, Liu, Zheng, Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary "
        "Neural Networks Training, ICCV 2023, https://arxiv.org/abs/2308.06689"
    ),
    build=lambda: ResNet(1, (8, 16, 32), 6, stem_stride=2),
    inputs=_image,
    prepare=to_32,
    packed_layers=20,
    published={"CIFAR-10 accuracy, ResNet-20": "86.75%", "CIFAR-10 accuracy, ResNet-18": "92.63%"},
    shapes=(Shape(name="ResNet-20 (CIFAR-10)", build=lambda: ResNet(3, (16, 32, 64), 6), inputs=_color),),
)
