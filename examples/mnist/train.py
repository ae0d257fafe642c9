"""Trains the binary MNIST network, saves its weights, exports it to ONNX, and tests the ONNX file.

python examples/mnist/train.py --epochs 12
python examples/mnist/train.py --epochs 0      # export again from the saved weights, and test
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from data import DataError, load
from model import Net, make_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import xnorc

HERE = Path(__file__).resolve().parent
MAX_SHIFT = 2


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image of [N,1,28,28] by up to MAX_SHIFT pixels both ways, filling with background (0)."""
    n, _, height, width = images.shape
    padded = F.pad(images[:, 0], (MAX_SHIFT,) * 4)
    offset = torch.randint(2 * MAX_SHIFT + 1, (2, n, 1), generator=generator)
    rows = offset[0] + torch.arange(height)  # [N,28]
    cols = offset[1] + torch.arange(width)  # [N,28]
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]][:, None]


def train(model: Net, images: Tensor, labels: Tensor, epochs: int, batch_size: int, lr: float, seed: int) -> None:
    """Trains in place on images float32 [N,1,28,28] and labels int64 [N]; Adam with a cosine learning rate."""
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, len(images) // batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    model.to(memory_format=torch.channels_last).train()  # channels_last: twice as fast on a CPU
    for epoch in range(epochs):
        start, loss_sum, hits, seen = time.perf_counter(), 0.0, 0, 0
        order = torch.randperm(len(images), generator=generator)
        for index in order[: steps * batch_size].split(batch_size):
            batch = shift(images[index], generator).contiguous(memory_format=torch.channels_last)
            logits = model(batch)
            loss = F.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.clip_latent_weights()
            loss_sum += loss.item() * len(index)
            hits += int((logits.argmax(1) == labels[index]).sum())
            seen += len(index)
        seconds = time.perf_counter() - start
        result = f"loss {loss_sum / seen:.4f}, train accuracy {hits / seen:.2%}"
        print(f"epoch {epoch + 1}/{epochs}: {result}, {seconds:.0f} s", flush=True)


def onnx_accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images float32 [N,1,28,28] that the ONNX file, run as it is, gives its label int64 [N]."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = [session.run(["logits"], {"image": image[None]})[0].argmax() for image in images]
    return float(np.mean(np.array(found) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="0: use the saved weights as they are")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on the first N images only")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of weights.safetensors and model.onnx")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    weights, onnx_file = args.out / "weights.safetensors", args.out / "model.onnx"

    if args.epochs:
        images, labels = (torch.from_numpy(array[: args.limit]) for array in load("train"))
        model = make_model()
        train(model, images, labels, args.epochs, args.batch_size, args.lr, args.seed)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    model = make_model()
    model.load_state_dict(load_file(weights))  # the file is what gets exported, so that it can be again
    exported = xnorc.export(model, torch.zeros(1, 1, 28, 28), onnx_file, input_names=["image"], output_names=["logits"])
    print(f"exported by {exported.exporter}; {exported.report.note}")
    accuracy = onnx_accuracy(onnx_file, *load("test"))
    print(f"{onnx_file}: {onnx_file.stat().st_size} bytes, test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    try:
        main()
    except (xnorc.XnorcError, DataError) as error:
        sys.exit(f"error: {error}")
