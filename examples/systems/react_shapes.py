"""The ImageNet networks of ReActNet and of Bi-Real Net in their own sizes, for their bytes and operations."""

from __future__ import annotations

import torch
from bibench import BiReal, ReAct, ShiftedPReLU
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each block of the MobileNet-shaped ReActNet."""


class PointwiseReAct(ReAct):
    """The same layer with a kernel of one."""

    kernels = (1, 1)


class ReActBlock(nn.Module):
    """A 3x3 layer and a 1x1 layer, each with a shortcut; to double the channels there are two 1x1 layers side by side."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.spatial, self.spatial_norm = ReAct(2, channels, channels, stride=stride), nn.BatchNorm2d(channels)
        self.spatial_after = ShiftedPReLU(channels, 2)
        count = out_channels // channels
        self.points = nn.ModuleList(PointwiseReAct(2, channels, channels) for _ in range(count))
        self.point_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(count))
        self.after = ShiftedPReLU(out_channels, 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, 2)
        x = self.spatial_after(self.spatial_norm(self.spatial(x)) + shortcut)
        parts = [norm(point(x)) + x for point, norm in zip(self.points, self.point_norms, strict=True)]
        return self.after(parts[0] if len(parts) == 1 else torch.cat(parts, 1))


class ReActNet(nn.Module):
    """ReActNet on MobileNet's frame (Liu et al., ECCV 2020, figure 5): images [N, 3, 224, 224] -> 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        channels, blocks = 32, []
        for out_channels, stride in STAGES:
            blocks.append(ReActBlock(channels, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem_norm(self.stem(image))).mean(dim=(2, 3)))


class BiRealUnit(nn.Module):
    """A 3x3 layer with its own shortcut, which is pooled and widened by a float 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = BiReal(2, channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            widen = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), widen, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.shortcut(x)


class BiRealNet18(nn.Module):
    """Bi-Real Net of 18 layers (Liu et al., ECCV 2018): images [N, 3, 224, 224] -> 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        channels, units = 64, []
        for width in (64, 128, 256, 512):
            for index in range(4):
                units.append(BiRealUnit(channels, width, 2 if width != channels and not index else 1))
                channels = width
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(channels, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem_norm(self.stem(image)), 3, stride=2, padding=1)
        return self.head(self.units(x).mean(dim=(2, 3)))
