"""The Python API from a torch module to a validated package, in one page.

    python examples/quickstart.py [--target rpi4] [--device qemu]

The network is small and untrained (its batch norms are given statistics, so that signs fall on both sides); everything
else is as with a real one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import xnorc


class BinaryConv2d(nn.Conv2d):
    """Convolution of sign(x) with sign(weight) times the mean magnitude of each output channel (XNOR-Net)."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(
            torch.where(x >= 0, 1.0, -1.0), scale * torch.sign(self.weight), padding=self.padding
        )


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        BinaryConv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(2),
        BinaryConv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.PReLU(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))  # batch norm statistics
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="host")
    parser.add_argument("--device", default="host")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        exported = xnorc.export(make_model(), torch.randn(1, 3, 32, 32), folder / "model.onnx", input_names=["image"])
        print(f"exported by {exported.exporter}: {exported.report.note}")

        explained = xnorc.explain(folder / "model.onnx")
        print(
            f"nodes: {explained.counts()}; parameters {explained.parameter_bytes:,} → {explained.packed_bytes:,} bytes"
        )
        for record in explained.records:
            print(f"  {record.op:20} {record.status.value:8} {record.reason}")

        package = xnorc.compile(folder / "model.onnx", options.target, output=folder / "model.xnorc")
        package = xnorc.load(folder / "model.xnorc")  # every hash is checked
        print(f"package: {package.device_bytes():,} bytes on the device")

        images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
        outputs = package.run({"image": images}, device=options.device)
        print(f"outputs: { {name: value.shape for name, value in outputs.items()} }")

        result = package.validate(options.device, {"image": images})
        print(f"validated: ok={result.ok}, first difference: {result.first_difference}")
        assert result.ok

        try:
            package.run({"image": images[:, :1]}, device=options.device)
        except xnorc.XnorcError as error:
            print(f"bad input is one line: {error}")


if __name__ == "__main__":
    main()
