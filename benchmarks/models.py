"""The networks that the benchmarks run: published architectures in their own sizes, random weights, one sample at a time.

Speed depends on shapes, not on what a network has learned; statistics of batch normalization and scales are drawn so that
signs fall on either side. Each network is written in torch; those that Larq can express have a twin in ``larq_worker.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples" / "systems"))

from bibert import Encoder
from bitnet_reloaded import BitLinear
from react_shapes import BiRealNet18, ReActNet


def sign(x: Tensor) -> Tensor:
    """−1 and +1; zero is +1, as Larq has it."""
    return torch.where(x >= 0, 1.0, -1.0)


class SignConv(nn.Module):
    """3x3 of signs on signs, padded with +1 (Larq's ``pad_values=1``): [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(sign(x), (1, 1, 1, 1), value=1.0), sign(self.weight))


class QuickNetUnit(nn.Module):
    """Binary layer, ReLU, batch norm, shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = SignConv(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x))) + x


class QuickNetTransition(nn.Module):
    """ReLU, a 2x2 maximum, a 3x3 blur of stride 2, a float 1x1 layer, batch norm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        blur = (line[:, None] * line[None, :] / 16).expand(channels, 1, 3, 3).clone()
        self.blur = nn.Parameter(blur, requires_grad=False)
        self.point, self.norm = nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(F.relu(x), (0, 1, 0, 1)), 2, stride=1)
        x = F.conv2d(x, self.blur, stride=2, padding=1, groups=x.shape[1])
        return self.norm(self.point(x))


class QuickNet(nn.Module):
    """QuickNet (Bannink et al., "Larq Compute Engine", MLSys 2021): images [N, 3, 224, 224] -> 1000 logits."""

    def __init__(self, units: Sequence[int], widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first // 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first // 4),
            nn.ReLU(),
            nn.Conv2d(first // 4, first // 4, 3, stride=2, padding=1, groups=first // 4, bias=False),
            nn.BatchNorm2d(first // 4),
            nn.Conv2d(first // 4, first, 1, bias=False),
            nn.BatchNorm2d(first),
        )
        layers: list[nn.Module] = []
        for index, (count, width) in enumerate(zip(units, widths, strict=True)):
            if index:
                layers.append(QuickNetTransition(widths[index - 1], width))
            layers += [QuickNetUnit(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.layers(self.stem(image))).mean(dim=(2, 3)))


class TwoBitConv(nn.Module):
    """Activations of two bits (0, 1/3, 2/3, 1; DoReFa-Net) on ±mean|w|: 3x3, stride 1 or 2."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(out_channels, channels, 3, 3)), stride

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.round(x.clamp(0, 1) * 3) / 3
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(levels, sign(self.weight) * scale, stride=self.stride, padding=1)


class TwoBitBlock(nn.Module):
    """ResNet's basic block; where the shape changes the shortcut is a float 1x1 layer."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = TwoBitConv(channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        self.second, self.second_norm = TwoBitConv(out_channels, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            widen = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(widen, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class TwoBitResNet18(nn.Module):
    """ResNet-18 with 1-bit weights and 2-bit activations between a float stem and head: [N, 3, 224, 224] -> 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        channels, blocks = 64, []
        for width in (64, 128, 256, 512):
            blocks += [TwoBitBlock(channels, width, 1 if width == channels else 2), TwoBitBlock(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(image))), 3, stride=2, padding=1)
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class TernaryMlp(nn.Module):
    """Ternary layers on 8-bit activations (BitNet b1.58 Reloaded), 784 -> 2048 -> 2048 -> 2048 -> 10, batch 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (784, 2048, 2048, 2048, 10)
        self.layers = nn.ModuleList(BitLinear(a, b, median=True) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class BertEncoder(nn.Module):
    """BiBERT's encoder in BERT-base's width: embedded words [N, 128, 768] and which of them count [N, 128] -> [N, 768]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Encoder(768, 12, 3072) for _ in range(layers))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        mask = (1.0 - keep)[:, None, None, :] * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return x.mean(1)


@dataclass(frozen=True)
class Network:
    """One network. ``larq``: whether ``larq_worker.py`` has its twin; ``note`` says why not, or what it is."""

    name: str
    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    larq: bool = False
    note: str = ""


def _images() -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def _words() -> tuple[Tensor, ...]:
    return torch.randn(1, 128, 768, generator=torch.Generator().manual_seed(0)), torch.ones(1, 128)


def _row() -> tuple[Tensor, ...]:
    return (torch.rand(1, 784, generator=torch.Generator().manual_seed(0)),)


_NO_LARQ = "Larq Compute Engine has binary convolutions only"

NETWORKS = {
    network.name: network
    for network in (
        Network("bireal18", "Bi-Real Net 18, 224x224", BiRealNet18, _images, larq=True),
        Network("reactnet", "ReActNet-A, 224x224", ReActNet, _images, larq=True),
        Network("quicknet", "QuickNet, 224x224", lambda: QuickNet((4, 4, 4, 4)), _images, larq=True),
        Network("quicknet_large", "QuickNet-Large, 224x224", lambda: QuickNet((6, 8, 12, 6)), _images, larq=True),
        Network("resnet18_w1a2", "ResNet-18 W1A2, 224x224", TwoBitResNet18, _images, note=_NO_LARQ),
        Network("ternary_mlp", "Ternary MLP 784-2048-2048-2048-10", TernaryMlp, _row, note=_NO_LARQ),
        Network("bibert", "BiBERT encoder, 12 layers, 128 words", lambda: BertEncoder(12), _words, note=_NO_LARQ),
    )
}
"""By the name that the command line takes."""


def make(network: Network, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with seeded weights and statistics."""
    torch.manual_seed(seed)
    module = network.build()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.3, 1.0)
            nn.init.normal_(part.bias, std=0.3)
    return module.eval()
