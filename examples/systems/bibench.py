"""BiBench's eight binarization operators, each in a network with its two-dimensional, one-dimensional and linear layers.

Qin et al., "BiBench: Benchmarking and Analyzing Network Binarization", ICML 2023, evaluates BNN, XNOR-Net, DoReFa, Bi-Real,
XNOR-Net++, ReActNet, ReCU and FDA as operators that replace convolutions and linear layers. Here one network carries the
three kinds of layer in a row: a residual stage on images, one on their rows of pixels as a sequence, a classifier.
"""

from __future__ import annotations

import torch
from binarizers import clipped, fourier, polynomial, sign
from system import Shape, System
from torch import Tensor, nn
from torch.nn import functional as F

BIBENCH = "Qin et al., BiBench, ICML 2023, https://arxiv.org/abs/2301.11233"


class BinaryLayer(nn.Module):
    """A product of signs: ``axes`` 2 (3x3 convolution), 1 (convolution of 5) or 0 (linear), without a bias.

    ``size``: spatial shape of the output. A method overrides what it does to activations, weights and results.
    """

    slope = staticmethod(clipped)
    kernels: tuple[int, int] = (3, 3)
    """Of a two-dimensional layer."""

    def __init__(self, axes: int, inputs: int, outputs: int, size: tuple[int, ...] = (), stride: int = 1) -> None:
        super().__init__()
        self.axes, self.stride = axes, stride
        self.kernel = {0: (), 1: (5,), 2: self.kernels}[axes]
        self.weight = nn.Parameter(0.1 * torch.randn(outputs, inputs, *self.kernel))
        self.per_input, self.per_output = (1, inputs, *[1] * axes), (1, outputs, *[1] * axes)
        self.prepare(inputs, outputs, size)

    def prepare(self, inputs: int, outputs: int, size: tuple[int, ...]) -> None:
        """Parameters of the method."""

    def activation(self, x: Tensor) -> Tensor:
        """Signs of [N, C, ...], maybe scaled."""
        return sign(x, self.training, self.slope)

    def binary_weight(self) -> Tensor:
        """Two levels for each output channel."""
        return sign(self.weight, self.training)

    def result(self, y: Tensor) -> Tensor:
        """What is done to the sums."""
        return y

    def magnitude(self) -> Tensor:
        """Mean magnitude of each output channel's weights."""
        return self.weight.abs().mean(dim=tuple(range(1, self.weight.ndim)), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.activation(x), self.binary_weight()
        if self.axes == 2:
            return self.result(F.conv2d(x, weight, stride=self.stride, padding=self.kernels[0] // 2))
        if self.axes == 1:
            return self.result(F.conv1d(x, weight, stride=self.stride, padding=2))
        return self.result(F.linear(x, weight))


class Bnn(BinaryLayer):
    """sign(x) · sign(w)."""


class Xnor(BinaryLayer):
    """(mean|x| of each sample · sign(x)) · (mean|w| of each output channel · sign(w))."""

    def activation(self, x: Tensor) -> Tensor:
        scale = x.abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
        return sign(x, self.training) * scale

    def binary_weight(self) -> Tensor:
        return sign(self.weight, self.training) * self.magnitude()


class DoReFa(BinaryLayer):
    """sign(x) · (mean|w| of the whole layer · sign(w))."""

    def binary_weight(self) -> Tensor:
        return sign(self.weight, self.training) * self.weight.abs().mean()


class BiReal(BinaryLayer):
    """sign(x) with a gradient of its own · (mean|w| of each output channel · sign(w))."""

    slope = staticmethod(polynomial)

    def binary_weight(self) -> Tensor:
        return sign(self.weight, self.training) * self.magnitude()


class XnorPlusPlus(BinaryLayer):
    """sign(x) · sign(w), times one learned scale that is the product of a factor of each channel, row and column."""

    def prepare(self, inputs: int, outputs: int, size: tuple[int, ...]) -> None:
        start = 1.0 / (self.weight[0].numel() ** 0.5)
        self.channel = nn.Parameter(torch.full(self.per_output, start))
        self.places = nn.ParameterList(
            nn.Parameter(1 + 0.1 * torch.randn([1] * (2 + axis) + [count] + [1] * (len(size) - 1 - axis)))
            for axis, count in enumerate(size)
        )

    def result(self, y: Tensor) -> Tensor:
        scale: Tensor = self.channel
        for place in self.places:
            scale = scale * place
        return y * scale


class ReAct(BiReal):
    """sign(x + shift of each channel) · (mean|w| · sign(w)); what follows it is ``ShiftedPReLU``."""

    def prepare(self, inputs: int, outputs: int, size: tuple[int, ...]) -> None:
        self.shift = nn.Parameter(0.1 * torch.randn(self.per_input))

    def activation(self, x: Tensor) -> Tensor:
        return sign(x + self.shift, self.training, self.slope)


class ReCU(BinaryLayer):
    """sign(x) · (learned scale of each output channel · sign(w - mean)); training pulls far weights in."""

    slope = staticmethod(polynomial)

    def prepare(self, inputs: int, outputs: int, size: tuple[int, ...]) -> None:
        self.scale = nn.Parameter(self.magnitude().detach().flatten())

    def binary_weight(self) -> Tensor:
        rows = tuple(range(1, self.weight.ndim))
        centred = self.weight - self.weight.mean(dim=rows, keepdim=True)
        if self.training:  # weights past the quantiles 0.02 and 0.98 are revived at the quantile
            centred = centred / centred.std(dim=rows, keepdim=True)
            low, high = torch.quantile(centred.detach().flatten(), torch.tensor([0.02, 0.98]))
            centred = centred.clamp(float(low), float(high))
        return sign(centred, self.training) * self.scale.reshape(-1, *[1] * (self.weight.ndim - 1))


class Fda(BinaryLayer):
    """sign with a Fourier series as its gradient, plus a small learned correction that is faded out while training.

    When training ends its factor is 0, so the network that is deployed computes ``sign(x) + 0 · f(x)``.
    """

    slope = staticmethod(fourier)
    FADE = 100
    """Training steps until the factor is 0."""

    def prepare(self, inputs: int, outputs: int, size: tuple[int, ...]) -> None:
        self.inner = nn.Parameter(0.1 * torch.randn(16, inputs))
        self.outer = nn.Parameter(0.1 * torch.randn(inputs, 16))
        self.register_buffer("factor", torch.tensor(0.1))

    def activation(self, x: Tensor) -> Tensor:
        if self.training:
            self.factor = (self.factor - 0.1 / self.FADE).clamp(min=0)
        last, back = {0: ((0, 1), (0, 1)), 1: ((0, 2, 1), (0, 2, 1)), 2: ((0, 2, 3, 1), (0, 3, 1, 2))}[self.axes]
        rows = F.relu(F.linear(x.permute(last), self.inner))
        noise = F.linear(rows, self.outer).permute(back)
        return sign(x, self.training, self.slope) + self.factor * noise

    def binary_weight(self) -> Tensor:
        return sign(self.weight, self.training) * self.magnitude()


class ShiftedPReLU(nn.Module):
    """PReLU with a learned shift of each channel before and after it (ReActNet's RPReLU)."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        shape = (1, channels, *[1] * axes)
        self.before = nn.Parameter(0.1 * torch.randn(shape))
        self.after = nn.Parameter(0.1 * torch.randn(shape))
        self.prelu = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(x - self.before) + self.after


METHODS: dict[str, tuple[type[BinaryLayer], str, str]] = {
    "bnn": (Bnn, "BNN", "Hubara et al., Binarized Neural Networks, NIPS 2016, https://arxiv.org/abs/1602.02830"),
    "xnor": (Xnor, "XNOR-Net", "Rastegari et al., XNOR-Net, ECCV 2016, https://arxiv.org/abs/1603.05279"),
    "dorefa": (DoReFa, "DoReFa-Net", "Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160"),
    "bireal": (BiReal, "Bi-Real Net", "Liu et al., Bi-Real Net, ECCV 2018, https://arxiv.org/abs/1808.00278"),
    "xnorpp": (XnorPlusPlus, "XNOR-Net++", "Bulat et al., XNOR-Net++, BMVC 2019, https://arxiv.org/abs/1909.13863"),
    "react": (ReAct, "ReActNet", "Liu et al., ReActNet, ECCV 2020, https://arxiv.org/abs/2003.03488"),
    "recu": (ReCU, "ReCU", "Xu et al., ReCU, ICCV 2021, https://arxiv.org/abs/2103.12369"),
    "fda": (
        Fda,
        "FDA",
        "Xu et al., Learning Frequency Domain Approximation, NeurIPS 2021, https://arxiv.org/abs/2103.00841",
    ),
}


class Net(nn.Module):
    """Images [N, 1, 28, 28] -> logits [N, 10] by two layers of each kind. Shapes below leave out N."""

    def __init__(self, method: str) -> None:
        super().__init__()
        layer = METHODS[method][0]

        def after(channels: int, axes: int) -> nn.Module:
            if method == "react":
                return ShiftedPReLU(channels, axes)
            return nn.PReLU(channels) if method == "recu" else nn.Hardtanh() if method == "bnn" else nn.Identity()

        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.image1, self.image1_norm = layer(2, 16, 16, (14, 14)), nn.BatchNorm2d(16)
        self.image2, self.image2_norm = layer(2, 16, 32, (7, 7), stride=2), nn.BatchNorm2d(32)
        self.after1, self.after2 = after(16, 2), after(32, 2)
        self.row1, self.row1_norm = layer(1, 32, 32, (49,)), nn.BatchNorm1d(32)
        self.row2, self.row2_norm = layer(1, 32, 40, (25,), stride=2), nn.BatchNorm1d(40)
        self.after3, self.after4 = after(32, 1), after(40, 1)
        self.linear1, self.linear1_norm = layer(0, 40 * 5, 64), nn.BatchNorm1d(64)
        self.linear2, self.linear2_norm = layer(0, 64, 64), nn.BatchNorm1d(64)
        self.after5, self.after6 = after(64, 0), after(64, 0)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(image))  # [16, 14, 14]
        x = self.after1(self.image1_norm(self.image1(x)) + x)
        x = self.after2(self.image2_norm(self.image2(x)) + F.avg_pool2d(x, 2).repeat(1, 2, 1, 1))  # [32, 7, 7]
        x = x.flatten(2)  # [32, 49]
        x = self.after3(self.row1_norm(self.row1(x)) + x)
        x = self.after4(self.row2_norm(self.row2(x)))  # [40, 25]
        x = F.max_pool1d(x, 5).flatten(1)  # [200]
        x = self.after5(self.linear1_norm(self.linear1(x)))  # [64]
        x = self.after6(self.linear2_norm(self.linear2(x)) + x)
        return self.head(x)


def _image() -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    return (torch.rand(1, 1, 28, 28),)


def _system(name: str) -> System:
    _, title, paper = METHODS[name]
    return System(
        name=f"bibench-{name}",
        title=f"{title}, as BiBench's operator: Conv2d, Conv1d and Linear",
        paper=f"{paper}; {BIBENCH}",
        build=lambda: Net(name),
        inputs=_image,
        packed_layers=6,
        shapes=SHAPES.get(name, ()),
    )


def _react() -> nn.Module:
    from react_shapes import ReActNet

    return ReActNet()


def _bireal() -> nn.Module:
    from react_shapes import BiRealNet18

    return BiRealNet18()


def _imagenet() -> tuple[Tensor, ...]:
    torch.manual_seed(11)
    return (torch.rand(1, 3, 224, 224),)


SHAPES: dict[str, tuple[Shape, ...]] = {
    "react": (Shape("ReActNet-A (ImageNet)", _react, _imagenet, {"size": "117.4 MB → 7.90 MB (measured)"}),),
    "bireal": (Shape("Bi-Real Net-18 (ImageNet)", _bireal, _imagenet, {"accuracy": "56.4%"}),),
}

SYSTEMS = tuple(_system(name) for name in METHODS)
