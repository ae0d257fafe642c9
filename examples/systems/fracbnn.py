"""FracBNN: binary weights, activations of one bit and, where it matters, a second one.

An activation has the levels −1, −⅓, ⅓, 1: in signs (2·high + low) / 3. A layer convolves the high bits; only outputs past a
learned threshold Δ of their channel take the low bits' convolution as well. The image enters as a thermometer code, so that
the first layer is binary like the others.
"""

from __future__ import annotations

import torch
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F


class Sign(torch.autograd.Function):
    """+1 for x >= 0, else −1; the gradient passes where |x| <= 1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def sign(x: Tensor, training: bool) -> Tensor:
    return Sign.apply(x) if training else torch.where(x >= 0, 1.0, -1.0)


class Thermometer(nn.Module):
    """Pixels in 0…1 as ``levels`` signs each: is the pixel at least (i + ½) / levels?"""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        steps = (torch.arange(levels) + 0.5) / levels
        self.levels = levels
        self.register_buffer("steps", steps.repeat(channels)[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        repeated = x if x.shape[1] == 1 else x.repeat_interleave(self.levels, 1)
        return sign(repeated - self.steps, self.training)


class BinaryConv(nn.Conv2d):
    """A convolution with the signs of its weights."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(channels, out, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, sign(self.weight, self.training), None, self.stride, self.padding)


class GatedConv(BinaryConv):
    """The high bits' convolution, and the low bits' where the gate is open; in units of a third."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(channels, out, stride)
        self.delta = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        high = sign(x, self.training)
        low = sign(x - high * (2 / 3), self.training)
        first, second = super().forward(high), super().forward(low)
        delta = self.delta[:, None, None]
        if self.training:
            slope = torch.sigmoid((first - delta) / self.in_channels**0.5)
            is_open = (first > delta).float() + slope - slope.detach()
            return 2 * first + is_open * second
        return 2 * first + torch.where(first > delta, second, 0.0)


class Block(nn.Module):
    """Gated convolution, batch norm, shortcut, and a PReLU between two learned shifts."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = GatedConv(channels, out, stride), nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - channels
        self.before, self.after = (nn.Parameter(torch.zeros(out)) for _ in range(2))
        self.act = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        short = F.avg_pool2d(x, 2) if self.stride > 1 else x
        short = torch.cat([short, short], 1) if self.more else short
        y = self.norm(self.conv(x)) + short + self.before[:, None, None]
        return self.act(y) + self.after[:, None, None]


class Net(nn.Module):
    """The shape of the CIFAR network: a binary stem, three stages of gated blocks, a float head."""

    def __init__(self, channels: int = 1, levels: int = 16, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.thermometer = Thermometer(channels, levels)
        self.stem, self.norm = BinaryConv(channels * levels, width), nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        for stage in range(3):
            wide = width << stage
            for index in range(blocks):
                first = stage > 0 and index == 0
                stages.append(Block(wide // 2 if first else wide, wide, 2 if first else 1))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.norm(self.stem(self.thermometer(x))))
        return self.head(x.mean((2, 3)))


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.rand(1, 1, 28, 28),)


def shape_inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.rand(1, 3, 32, 32),)


SYSTEM = System(
    name="fracbnn",
    title="FracBNN: thermometer-coded image, gated 1.4-bit activations",
    paper="Y. Zhang et al., FracBNN: Accurate and FPGA-Efficient Binary Neural Networks with Fractional Activations, "
    "FPGA 2021; https://arxiv.org/abs/2012.12206",
    build=Net,
    inputs=inputs,
    packed_layers=7,
    steps=150,
    learning_rate=1e-2,
    shapes=(
        Shape(
            "FracBNN, CIFAR-10 shape",
            lambda: Net(channels=3, levels=32, width=16, blocks=6),
            shape_inputs,
            published={"accuracy": "89.1 % on CIFAR-10 (the paper's trained network)"},
        ),
    ),
    published={"accuracy": "89.1 % CIFAR-10, 71.7 % ImageNet"},
)
