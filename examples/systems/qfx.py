"""QFX: fixed point with a learned binary point, trained so that the hardware's numbers are the training's.

Every tensor is of a type ``ap_fixed<W, I, AP_RND, AP_SAT>``: the word length W is given, the position of the binary point is
learned as the exponent of a power-of-two scale. Batch norms have fixed-point scales and biases as well, and shortcuts are
sums of two fixed-point numbers. A constant whose raw value has only K bits set (K-hot) needs K shifts and adds.
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F


def power(exponent: Tensor) -> Tensor:
    """2 to the ``exponent``."""
    return torch.pow(torch.tensor(2.0), exponent)


def fixed(x: Tensor, fraction: Tensor, width: int, signed: bool, training: bool) -> Tensor:
    """``ap_fixed`` (or ``ap_ufixed``) of ``width`` bits, AP_RND and AP_SAT, in float; straight-through inside the range.

    The gradient reaches ``fraction`` through the scale, as in LSQ with a scale of 2^-fraction.
    """
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    if not training:
        scale = power(torch.round(fraction))
        return torch.clamp(torch.floor(x * scale + 0.5), low, high) / scale
    rounded = fraction + (torch.round(fraction) - fraction).detach()
    scale = power(rounded)
    scaled = torch.clamp(x * scale, low, high)
    return (scaled + (torch.floor(scaled + 0.5) - scaled).detach()) / scale


def k_hot(x: Tensor, fraction: Tensor, width: int, training: bool, hot: int = 2) -> Tensor:
    """Signed fixed-point constants of at most ``hot`` nonzero binary digits (each +1 or −1): shift-add multipliers."""
    scale = power(torch.round(fraction.detach()))
    rest = torch.clamp(x.detach() * scale, -(2 ** (width - 1)), 2 ** (width - 1) - 1)
    total = torch.zeros_like(rest)
    for _ in range(hot):
        left = rest - total
        digit = power(torch.round(torch.log2(left.abs().clamp(min=0.5))))
        total = total + torch.where(left.abs() >= 0.5, torch.sign(left) * digit, torch.zeros_like(left))
    value = total / scale
    return value if not training else x + (value - x).detach()


class FixedPoint(nn.Module):
    """A quantizer with a learned binary point."""

    def __init__(self, width: int, fraction: float, signed: bool = True) -> None:
        super().__init__()
        self.width, self.signed = width, signed
        self.fraction = nn.Parameter(torch.tensor(float(fraction)))

    def forward(self, x: Tensor) -> Tensor:
        return fixed(x, self.fraction, self.width, self.signed, self.training)


class FixedConv(nn.Conv2d):
    """A convolution with weights of 6 bits."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(channels, out, 3, stride, 1, bias=False)
        self.fraction = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, fixed(self.weight, self.fraction, 6, True, self.training), None, self.stride, self.padding)


class FixedNorm(nn.BatchNorm2d):
    """Batch normalization as a fixed-point product and sum: K-hot scale, 12-bit bias.

    Training uses the batch's statistics and quantizes what they give, so that the network learns with these constants.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale_fraction = nn.Parameter(torch.tensor(5.0), requires_grad=False)
        self.bias_fraction = nn.Parameter(torch.tensor(6.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
                self.num_batches_tracked += 1
        else:
            mean, var = self.running_mean, self.running_var
        scale = k_hot(self.weight * torch.rsqrt(var + self.eps), self.scale_fraction, 10, self.training)
        bias = fixed(self.bias - mean * scale, self.bias_fraction, 12, True, self.training)
        return x * scale[:, None, None] + bias[:, None, None]


class Block(nn.Module):
    """A residual block: the sum of two fixed-point numbers goes through one more quantizer, which is the ReLU too."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = FixedConv(channels, out, stride), FixedNorm(out), FixedPoint(6, 3, False)
        self.conv2, self.norm2, self.act2 = FixedConv(out, out), FixedNorm(out), FixedPoint(8, 4)
        self.down = FixedConv(channels, out, stride) if stride > 1 else None
        self.short = FixedPoint(8, 4)
        self.out = FixedPoint(6, 3, False)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.down is None else self.short(self.down(x))
        y = self.act1(self.norm1(self.conv1(x)))
        return self.out(self.act2(self.norm2(self.conv2(y))) + short)


class Net(nn.Module):
    """A small residual network, every layer of it in fixed point, the first and the last too."""

    def __init__(self) -> None:
        super().__init__()
        self.image = FixedPoint(8, 7)
        self.stem, self.norm, self.act = FixedConv(1, 16, 2), FixedNorm(16), FixedPoint(6, 3, False)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
        self.pool = FixedConv(32, 32, 2)
        self.last, self.narrow = FixedNorm(32), FixedPoint(6, 3, False)
        self.head = nn.Linear(32 * 16, 10)
        self.head_fraction = nn.Parameter(torch.tensor(6.0))
        self.bias_fraction = nn.Parameter(torch.tensor(6.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(self.image(x))))
        x = self.narrow(self.last(self.pool(self.blocks(x)))).flatten(1)
        bias = fixed(self.head.bias, self.bias_fraction, 12, True, self.training)
        return F.linear(x, fixed(self.head.weight, self.head_fraction, 6, True, self.training), bias)


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.rand(1, 1, 28, 28),)


SYSTEM = System(
    name="qfx",
    title="QFX: fixed point with learned binary points, residual network",
    paper="D. Zhang et al., Trainable Fixed-Point Quantization for Deep Learning Acceleration on FPGAs, 2024; "
    "https://arxiv.org/abs/2401.17544",
    build=Net,
    inputs=inputs,
    packed_layers=10,
    steps=120,
)
