"""Networks whose layers have bit widths of their own, from 2 to 8, as a search or an elastic network deploys them.

EQ-Net (Xu et al., ICCV 2023) trains one network for many widths; FLIQS (Dotzel et al., AutoML 2024) and SimQ-NAS (Sridhar et
al., 2023) search a width for each layer. What is deployed is the same for all: uniform quantizers with a learned step, one
for the weights and one for the activations of each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F
from uniform import QuantConv2d, QuantLinear

Width = tuple[int, int]
"""Bits of the weights and of the activations of a layer."""


class Block(nn.Module):
    """Two quantized 3x3 convolutions and a shortcut, quantized too where it changes the shape."""

    def __init__(self, channels: int, out: int, stride: int, first: Width, second: Width) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(channels, out, 3, w_bits=first[0], x_bits=first[1], stride=stride)
        self.conv2 = QuantConv2d(out, out, 3, w_bits=second[0], x_bits=second[1])
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                QuantConv2d(channels, out, 1, w_bits=first[0], x_bits=first[1], stride=stride), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, C, H, W] -> logits [N, 10]: a float stem, ``Block`` for every two of ``widths``, a float classifier."""

    def __init__(self, inputs: int, channels: Sequence[int], blocks: int, widths: Sequence[Width]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels[0], 3, stride=1 if inputs > 1 else 2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels[0])
        layers, before, place = [], channels[0], 0
        for stage, out in enumerate(channels):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(
                    Block(before, out, stride, widths[place % len(widths)], widths[(place + 1) % len(widths)])
                )
                before, place = out, place + 2
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(before, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem_norm(self.stem(image))))
        return self.head(x.mean(dim=(2, 3)))


class Mobile(nn.Module):
    """Inverted residuals with depthwise convolutions, pooled and classified by quantized linear layers."""

    def __init__(self, width: int, bits: Sequence[Width]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        wide, (a, b, c, d, e) = 3 * width, bits
        self.expand = QuantConv2d(width, wide, 1, w_bits=a[0], x_bits=a[1])
        self.depthwise = QuantConv2d(wide, wide, 3, w_bits=b[0], x_bits=b[1], groups=wide)
        self.project = QuantConv2d(wide, width, 1, w_bits=c[0], x_bits=c[1])
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (wide, wide, width))
        self.hidden = QuantLinear(width * 49, 48, w_bits=d[0], x_bits=d[1], signed=True)
        self.norm = nn.BatchNorm1d(48)
        self.head = QuantLinear(48, 10, w_bits=e[0], x_bits=e[1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = F.relu6(self.norms[0](self.expand(x)))
        y = F.relu6(self.norms[1](self.depthwise(y)))
        x = F.max_pool2d(x + self.norms[2](self.project(y)), 2)
        return self.head(F.relu(self.norm(self.hidden(x.flatten(1)))))


def _image(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    def inputs() -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        return (torch.rand(1, *shape),)

    return inputs


EQNET = "Xu, Han, Xie, Tian, EQ-Net: Elastic Quantization Neural Networks, ICCV 2023, https://arxiv.org/abs/2308.07650"
FLIQS = (
    "Dotzel, Wu, Li, Umar, Ni, Abdelfattah, Zhang, Cheng, Dixon, Jouppi, Le, Li, FLIQS: One-Shot Mixed-Precision "
    "Floating-Point and Integer Quantization Search, AutoML 2024, https://arxiv.org/abs/2308.03290"
)
SIMQNAS = (
    "Sridhar, Szankin, Chen, Sundaresan, Sarah, SimQ-NAS: Simultaneous Quantization Policy and Neural Architecture Search, "
    "2023, https://arxiv.org/abs/2312.13301"
)

SYSTEMS = (
    System(
        name="eqnet",
        title="EQ-Net: a residual network at 2, 3 and 4 bits",
        paper=EQNET,
        build=lambda: ResNet(1, (8, 16), 1, ((2, 2), (3, 3), (4, 4), (2, 4))),
        inputs=_image(1, 28, 28),
        packed_layers=5,
        steps=300,
        learning_rate=4e-3,
        shapes=(
            Shape(
                name="ResNet-18 (CIFAR-10), 2 bits",
                build=lambda: ResNet(3, (64, 128, 256, 512), 2, ((2, 2),)),
                inputs=_image(3, 32, 32),
            ),
        ),
    ),
    System(
        name="fliqs",
        title="FLIQS: 4 and 8 bits side by side, depthwise convolutions and linear layers",
        paper=FLIQS,
        build=lambda: Mobile(8, ((4, 8), (8, 8), (4, 4), (4, 8), (8, 4))),
        inputs=_image(1, 28, 28),
        packed_layers=5,
    ),
    System(
        name="simq-nas",
        title="SimQ-NAS: every width from 2 to 8 bits in one network",
        paper=SIMQNAS,
        build=lambda: ResNet(1, (8, 16), 1, ((8, 6), (7, 5), (6, 3), (5, 8))),
        inputs=_image(1, 28, 28),
        packed_layers=5,
        steps=300,
        learning_rate=4e-3,
        published={"latency": "up to 4.80x less", "size": "up to 3.44x smaller"},
    ),
)
