"""DenseShift: convolutions whose weights are signed powers of two, without zero, in a small ResNet.

A weight is ``sign · 2^e`` with e from 0 to 3: three bits, two of which are found by a chain of thresholds on parameters of
their own (each says whether the exponent goes one further), and the third is the sign of another, where sign(0) is +1. The
layer's scale makes up for the size of the powers, and batch normalization follows. First and last layers are float.
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 3
"""Largest exponent."""


class _Bit(torch.autograd.Function):
    """1 where the argument is not negative, else 0; the gradient passes where the argument is small."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (x.abs() <= 1)


def bit(x: Tensor, training: bool) -> Tensor:
    """``x >= 0`` as 0 and 1."""
    return _Bit.apply(x) if training else (x >= 0).to(x.dtype)


class ShiftConv2d(nn.Module):
    """A convolution by ±2^e."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        shape = (outputs, inputs, kernel, kernel)
        self.sign = nn.Parameter(torch.randn(shape) * 0.3)
        self.further = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.3) for _ in range(STEPS)])
        self.stride, self.padding = stride, kernel // 2
        # The mean square of 2^e is about 22: this keeps the variance of what passes.
        self.scale = (2 / (22 * inputs * kernel * kernel)) ** 0.5

    def weights(self) -> Tensor:
        """``±2^e · scale``: e grows by one where a bit is set, and is 0 again where one is not."""
        power: Tensor | float = 1.0
        for parameter in self.further:
            power = 1 + bit(parameter, self.training) * (2 * power - 1)
        return (2 * bit(self.sign, self.training) - 1) * power * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights(), stride=self.stride, padding=self.padding)


class Block(nn.Module):
    """Two shift convolutions with a shortcut, which is one too where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = ShiftConv2d(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = ShiftConv2d(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(ShiftConv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of one block, 16 to 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def inputs() -> tuple[Tensor, ...]:
    """One image."""
    return (torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)


SYSTEM = System(
    name="denseshift",
    title="DenseShift: convolutions by signed powers of two, without zero",
    paper="X. Li, B. Liu, R. Yang, V. Courville, C. Xing, V. Partovi Nia: DenseShift: Towards Accurate and Efficient Low-Bit "
    "Power-of-Two Quantization, ICCV 2023; https://arxiv.org/abs/2208.09708",
    build=ResNet,
    inputs=inputs,
    packed_layers=8,
    steps=200,
    published={"latency": "1.6 times faster than a half-precision dot product on a Cortex-A57"},
)
