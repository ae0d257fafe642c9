"""Two networks that accelerators are compared by, in their published shapes and with random weights, as ONNX.

``tfc``: 784-64-64-64-10, ±1 pixels. ``cnv``: 3 × 3 convolutions 64-64, pool, 128-128, pool, 256-256 without padding, then
512-512-10, of 8-bit pixels 32 × 32 × 3. Weights and all other activations are ±1 (Umuroglu et al., FINN, FPGA 2017).
What an accelerator takes and how fast it is does not depend on what the weights are.

    python examples/fpga/shapes.py cnv -o cnv.onnx
    xnorc compile cnv.onnx --target ulx3s-85f --fps 10000 -o cnv.xnorc
    xnorc validate cnv.xnorc --device sim
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xnorc


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else −1."""
    return torch.where(x >= 0, 1.0, -1.0)


class Conv(nn.Conv2d):
    """A 3 × 3 convolution with the signs of its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, sign(self.weight))


class Linear(nn.Linear):
    """A dense layer with the signs of its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, sign(self.weight))


class Dense(nn.Module):
    """Signs, ±1 dense layers, batch norms: images float32 in 0..1 of any shape -> scores ``[N, sizes[-1]]``."""

    def __init__(self, sizes: Sequence[int] = (784, 64, 64, 64, 10)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(*pair) for pair in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1) - 0.5
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(sign(x)))
        return x


class Convolutional(nn.Module):
    """CIFAR images float32 ``[N, 3, 32, 32]`` in 0..1 -> scores ``[N, classes]``; pools behind every second convolution."""

    def __init__(
        self,
        channels: Sequence[int] = (64, 64, 128, 128, 256, 256),
        dense: Sequence[int] = (512, 512),
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(*pair) for pair in itertools.pairwise((3, *channels)))
        self.conv_norms = nn.ModuleList(nn.BatchNorm2d(size) for size in channels)
        sizes = (channels[-1], *dense, classes)
        self.dense = nn.ModuleList(Linear(*pair) for pair in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])

    def forward(self, image: Tensor) -> Tensor:
        x = torch.round(torch.clamp(image, 0, 1) * 255)
        for number, (conv, norm) in enumerate(zip(self.convs, self.conv_norms, strict=True)):
            x = sign(norm(conv(x)))
            if number in (1, 3):
                x = F.max_pool2d(x, 2)
        x = x.flatten(1)
        for number, (layer, norm) in enumerate(zip(self.dense, self.norms, strict=True)):
            x = norm(layer(sign(x) if number else x))
        return x


SHAPES = {"tfc": (Dense, (1, 1, 28, 28)), "cnv": (Convolutional, (1, 3, 32, 32))}


def randomize(module: nn.Module, image: Tensor) -> None:
    """Random weights, and batch norms (scales of both signs) that fit what the layers before them give for ``image``."""

    def fit(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(rows.mean(1) + rows.std() * 0.3 * torch.randn(len(rows)))
        norm.running_var.copy_(rows.var() * (0.5 + torch.rand(len(rows))))

    for part in module.modules():
        if isinstance(part, Conv | Linear):
            nn.init.normal_(part.weight)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias, std=0.3)
            part.register_forward_pre_hook(fit)
    with torch.no_grad():
        module(image)
    for part in module.modules():
        part._forward_pre_hooks.clear()


def main() -> None:
    """Write one of the networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kind, shape = SHAPES[options.shape]
    torch.manual_seed(options.seed)
    module = kind().eval()
    randomize(module, torch.rand(4, *shape[1:]))
    path = options.output or Path(f"{options.shape}.onnx")
    xnorc.export(module, torch.rand(shape), path, input_names=["image"], output_names=["scores"])
    print(f"{path}: {sum(weight.numel() for weight in module.parameters()):,} parameters")


if __name__ == "__main__":
    main()
