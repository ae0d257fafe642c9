"""Double Rounding: weights are stored once, as 8-bit integers, and rounded a second time to the bits that one wants to run.

The bit width is an input of the model: 8 − ``shift`` bits. Batch norms and activation scales are kept for each width, as
switchable-precision networks do, and selected by the same input. ``python examples/systems/double_rounding.py`` trains
the network, compiles one package and reports its accuracy at each width.
"""

from __future__ import annotations

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

SHIFTS = (0, 2, 4, 5)
"""8, 6, 4 and 3 bits."""


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` with the gradient of ``x``."""
    return x + (rounded - x).detach()


class Switched(nn.Module):
    """What the switched layers share: the stored integers, and those of fewer bits."""

    weight: nn.Parameter

    def set_up(self) -> None:
        self.scale = nn.Parameter(self.weight.detach().abs().max() / 127)

    def stored(self) -> Tensor:
        """The weights as integers of 8 bits."""
        scaled = self.weight / self.scale
        return torch.clamp(through(scaled, torch.round(scaled)), -128, 127)

    def narrowed(self, step: Tensor) -> Tensor:
        """The weights as integers of 8 − k bits, where ``step`` is 2^k: the second rounding."""
        divided = self.stored() / step
        rounded = through(divided, torch.round(divided)) if self.training else torch.round(divided)
        return torch.minimum(rounded, 128.0 / step - 1.0)


class SwitchedConv(nn.Conv2d, Switched):
    """Integers convolved with integers, then scaled."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(channels, out, 3, stride, 1, bias=False)
        self.set_up()

    def forward(self, codes: Tensor, step: Tensor) -> Tensor:
        return F.conv2d(codes, self.narrowed(step), None, self.stride, self.padding) * (self.scale * step)


class SwitchedLinear(nn.Linear, Switched):
    """The same for rows."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__(size, out, bias=False)
        self.set_up()

    def forward(self, codes: Tensor, step: Tensor) -> Tensor:
        return F.linear(codes, self.narrowed(step)) * (self.scale * step)


class Codes(nn.Module):
    """Activations as 8-bit codes: ``clip(round(x / s), 0, 255)``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / self.scale
        return torch.clamp(through(scaled, torch.round(scaled)) if self.training else torch.round(scaled), 0, 255)


class Norm(nn.Module):
    """A batch norm with statistics, scale and bias for each width; ``pick`` is one-hot over the widths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in SHIFTS)

    def forward(self, x: Tensor, pick: Tensor) -> Tensor:
        if self.training:
            return self.norms[int(pick.argmax())](x)
        scales = torch.stack([n.weight * torch.rsqrt(n.running_var + n.eps) for n in self.norms])
        biases = torch.stack([n.bias - n.running_mean * s for n, s in zip(self.norms, scales, strict=True)])
        scale, bias = (torch.sum(pick[:, None] * table, 0) for table in (scales, biases))
        return x * scale[:, None, None] + bias[:, None, None]


class Net(nn.Module):
    """Three switched convolutions and a switched head. ``shift``: int32 [1], one of ``SHIFTS``."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 16), (16, 32), (32, 32))
        self.convs = nn.ModuleList(SwitchedConv(a, b, 2) for a, b in sizes)
        self.norms = nn.ModuleList(Norm(b) for _, b in sizes)
        self.codes = nn.ModuleList(Codes(s) for s in (1 / 255, 0.02, 0.02, 0.02))
        self.head = SwitchedLinear(32 * 16, 10)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        if shift is None:  # training: every width takes its turn
            turn = int(torch.randint(len(SHIFTS), ())) if self.training else 0
            shift = torch.tensor([SHIFTS[turn]], dtype=torch.int32)
        step = torch.pow(torch.tensor(2.0), shift.float())
        pick = (torch.tensor(SHIFTS, dtype=torch.int32) == shift).float()
        for conv, norm, codes in zip(self.convs, self.norms, self.codes, strict=False):
            x = norm(conv(codes(x), step) * codes.scale, pick)
        last = self.codes[-1]
        return self.head(last(x).flatten(1), step) * last.scale


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.rand(1, 1, 28, 28), torch.tensor([4], dtype=torch.int32)


SYSTEM = System(
    name="double_rounding",
    title="Double Rounding: one package of 8-bit weights that runs at 8, 6, 4 and 3 bits",
    paper="H. Huang et al., Nearly Lossless Adaptive Bit Switching, 2025; https://arxiv.org/abs/2502.01199",
    build=Net,
    inputs=inputs,
    packed_layers=4,
    steps=160,
)


def main() -> None:
    """Accuracy of one package at each bit width, beside that of the module."""
    import sys
    from pathlib import Path

    import numpy as np

    import xnorc

    sys.path.append(str(Path(__file__).resolve().parent.parent / "mnist"))
    from train import mnist, weights_for

    module = weights_for(SYSTEM).module
    exported = xnorc.export(module, inputs())
    package = xnorc.compile(exported.model, "host", name="double_rounding")
    image, shift = (info.name for info in exported.model.graph.input)
    images, labels = mnist("test")
    images, labels = images[:1000], labels[:1000]
    for k in SHIFTS:
        given = torch.tensor([k], dtype=torch.int32)
        with torch.no_grad():
            expected = module(images, given).argmax(1)
        outputs = package.run({image: images[:, None].numpy(), shift: np.full((1000, 1), k, np.int32)})
        (logits,) = outputs.values()
        found = logits.reshape(1000, 10).argmax(1)
        same = float((found == expected.numpy()).mean())
        print(
            f"{8 - k} bits: accuracy {float((found == labels.numpy()).mean()):.1%} on the device, "
            f"{float((expected == labels).float().mean()):.1%} in torch, same class {same:.1%}"
        )


if __name__ == "__main__":
    main()
