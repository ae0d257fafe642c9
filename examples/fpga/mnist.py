"""A network for MNIST all of whose products are hardware: 8-bit pixels, ±1 weights and activations, scores of a ±1 dense layer.

python examples/fpga/mnist.py -o mnist.onnx
xnorc compile mnist.onnx --target ulx3s-85f --fps 20000 -o mnist.xnorc
xnorc validate mnist.xnorc --device sim
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xnorc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mnist"))
from data import load


def sign(x: Tensor, training: bool) -> Tensor:
    """+1 where x >= 0, else −1; the gradient of x cut to −1..1."""
    plain = torch.where(x >= 0, 1.0, -1.0)
    if not training:
        return plain
    cut = x.clamp(-1, 1)
    return cut + (plain - cut).detach()


class Conv(nn.Conv2d):
    """A 3 × 3 convolution without padding, with the signs of its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, sign(self.weight, self.training))


class Linear(nn.Linear):
    """A dense layer with the signs of its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, sign(self.weight, self.training))


class Net(nn.Module):
    """Images float32 ``[N, 1, 28, 28]`` in 0..1 -> scores ``[N, 10]``. The second pool's windows overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList((Conv(1, 16), Conv(16, 32), Conv(32, 32)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (16, 32, 32))
        self.hidden, self.hidden_norm = Linear(32 * 5 * 5, 64), nn.BatchNorm1d(64)
        self.last, self.last_norm = Linear(64, 10), nn.BatchNorm1d(10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.round(torch.clamp(image, 0, 1) * 255)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = sign(norm(conv(x)), self.training)
            if number == 1:
                x = F.max_pool2d(x, 2)
            if number == 2:
                x = F.max_pool2d(x, 3, 2, 1)
        x = sign(self.hidden_norm(self.hidden(x.flatten(1))), self.training)
        return self.last_norm(self.last(x))


def train(net: Net, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Fit ``net`` to images ``[N, 1, 28, 28]`` and labels ``[N]``, with Adam and a rate that falls to nothing."""
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    batches = -(-len(images) // 100) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / batches)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for layer in (*net.convs, net.hidden, net.last):
                    layer.weight.clamp_(-1, 1)
    net.eval()


def main() -> None:
    """Train and write the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("mnist.onnx"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="train on the first N images only")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = Net()
    images, labels = (torch.from_numpy(array[: options.limit]) for array in load("train"))
    train(net, images, labels, options.epochs)
    images, labels = (torch.from_numpy(array) for array in load("test"))
    with torch.no_grad():
        right = sum(
            int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    xnorc.export(net, torch.zeros(1, 1, 28, 28), options.output, input_names=["image"], output_names=["scores"])
    print(f"{options.output}: {right / len(labels):.2%} of the test images right")


if __name__ == "__main__":
    main()
