"""A compact binary convolutional network for MNIST: +1/-1 weights and activations except at the two ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _SignSTE(torch.autograd.Function):
    """Sign with 0 -> +1; the gradient passes where |x| <= 1 (clipped straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def binarize(x: Tensor, training: bool) -> Tensor:
    """float32 of any shape -> +1.0 where x >= 0, else -1.0. torch.sign would make zero a third value."""
    # The autograd function is for training alone, so that an export sees plain operators.
    return _SignSTE.apply(x) if training else torch.where(x >= 0, 1.0, -1.0)


class Sign(nn.Module):
    """`binarize` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return binarize(x, self.training)


class BinaryConv2d(nn.Conv2d):
    """3x3 convolution, padding 1 with zeros, of [N,C,H,W] with the signs of its latent weights [O,C,3,3]; no bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, binarize(self.weight, self.training), padding=1)


class BinaryLinear(nn.Linear):
    """Product of [N,I] with the signs of its latent weights [O,I]; no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, binarize(self.weight, self.training))


class Net(nn.Module):
    """Images float32 [N,1,28,28] in 0..1 -> logits float32 [N,10]. Shapes below leave out N."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = Sign()
        self.pool = nn.MaxPool2d(2)
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)  # float: a binary first layer loses the image
        self.bn0 = nn.BatchNorm2d(32)
        self.conv1 = BinaryConv2d(32, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = BinaryConv2d(64, 64)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = BinaryConv2d(64, 64)
        self.bn3 = nn.BatchNorm2d(64)
        self.dense = BinaryLinear(64 * 3 * 3, 128)
        self.bn4 = nn.BatchNorm1d(128)
        self.head = nn.Linear(128, 10)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                # Every fourth channel starts with a negative scale and keeps it, so that the trained model has the
                # hard case: the sign threshold turns round, and max pool and sign no longer commute.
                with torch.no_grad():
                    module.weight[::4] = -1.0

    def forward(self, image: Tensor) -> Tensor:
        x = self.bn0(self.stem(image))  # [32,28,28]
        x = self.bn1(self.pool(self.conv1(self.sign(x))))  # [64,14,14], pooled before the batch norm
        x = self.bn2(self.conv2(self.sign(x))) + x  # [64,14,14], residual: the shortcut stays float
        x = self.pool(x)  # [64,7,7]
        x = self.bn3(self.pool(self.conv3(self.sign(x))))  # [64,3,3]: the pool drops the seventh row and column
        x = self.bn4(self.dense(self.sign(x).flatten(1)))  # [128]
        return self.head(self.sign(x))  # [10]

    @torch.no_grad()
    def clip_latent_weights(self) -> None:
        """Keeps latent weights in [-1,1], outside which the straight-through gradient is zero for good."""
        for module in self.modules():
            if isinstance(module, (BinaryConv2d, BinaryLinear)):
                module.weight.clamp_(-1.0, 1.0)


def make_model() -> Net:
    """A new, untrained network; seed torch before for a fixed start."""
    return Net()
