"""Weights for a system: a short real training on MNIST, or what the system fills in by itself; always the same ones.

A network just initialised proves little: its batch norms are the identity and its binarizers sit where chance put them.
So a vision system is trained, briefly and for real, and ``check_moved`` makes sure that it took.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from system import System
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 64
TEST_IMAGES = 1000
EVERY_NEGATIVE = 4
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TrainingError(RuntimeError):
    """A training did not do what it must: weights that stood still, statistics that nothing moved, numbers not finite."""


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in eval mode. ``accuracy``: on the first test images, None where there is no task."""

    module: nn.Module
    steps: int
    accuracy: float | None = None
    seconds: float = 0.0
    flipped: dict[str, float] = field(default_factory=dict)
    """Weight → share of its elements that crossed their row's mean: what a sign of (centred) weights sees."""


@lru_cache(maxsize=2)
def mnist(split: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, 28, 28] in 0..1 and labels int64 [N]."""
    folder = str(Path(__file__).resolve().parent.parent / "mnist")
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: that folder has a train.py, too
    from data import load

    images, labels = load(split)  # type: ignore[arg-type]
    return torch.from_numpy(images), torch.from_numpy(labels)


def prepared(system: System, images: Tensor) -> Tensor:
    """What the network takes for these images."""
    return images if system.prepare is None else system.prepare(images)


def weights_for(system: System, *, steps: int | None = None, seed: int = 0) -> Trained:
    """The network of ``system`` with weights: trained (``steps`` overrides the system's own number), or filled.

    One thread, seeded: the same call gives the same network. Raises ``TrainingError``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        module = system.build()
        if system.task == "mnist":
            return _train(system, module, system.steps if steps is None else steps, seed)
        if system.task != "none" or system.fill is None:
            raise TrainingError(f"{system.name}: task '{system.task}' needs `fill`")
        with torch.no_grad():
            system.fill(module)
        _check_finite(system, module)
        return Trained(module.eval(), 0)
    finally:
        torch.set_num_threads(threads)


def _train(system: System, module: nn.Module, steps: int, seed: int) -> Trained:
    start = time.perf_counter()
    images, labels = mnist("train")
    generator = torch.Generator().manual_seed(seed)
    _negative_scales(module)
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.Adam(
        [parameter for parameter in module.parameters() if parameter.requires_grad], lr=system.learning_rate
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    module.train()
    for _ in range(steps):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(module(prepared(system, images[index])), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    module.eval()
    _check_finite(system, module)
    flipped = check_moved(system, module, before)
    seconds = time.perf_counter() - start
    return Trained(module, steps, accuracy(system, module), seconds, flipped)


@torch.no_grad()
def accuracy(system: System, module: nn.Module, count: int = TEST_IMAGES) -> float:
    """Share of the first ``count`` test images that the module, in eval mode, gives their label.

    One image at a time would be the deployed form; a dynamic scale for each sample makes no difference to that.
    """
    images, labels = mnist("test")
    hits = 0
    for start in range(0, count, 100):
        logits = module(prepared(system, images[start : start + 100]))
        hits += int((logits.argmax(1) == labels[start : start + 100]).sum())
    return hits / count


@torch.no_grad()
def _negative_scales(module: nn.Module) -> None:
    """Every fourth channel of a batch norm starts with a negative scale: the threshold behind it turns round, and a
    max-pool no longer commutes with it. Trained networks have such channels; a short training would make none."""
    for inner in module.modules():
        if isinstance(inner, NORMS) and inner.affine:
            inner.weight[::EVERY_NEGATIVE] *= -1.0


def _check_finite(system: System, module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(f"{system.name}: '{name}' holds numbers that are not finite")


def check_moved(system: System, module: nn.Module, before: dict[str, Tensor]) -> dict[str, float]:
    """Raise ``TrainingError`` unless training moved every trained weight across its binarizer and every statistic.

    Gives, for each weight of two or more axes, the share of elements whose side of the mean of their row changed.
    """
    flipped = {}
    after = module.state_dict()
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2 or parameter.numel() < 64 or not parameter.requires_grad:
            continue
        flipped[name] = float((_side(after[name]) != _side(before[name])).float().mean())
        # A small float stem may keep all its sides in a short training; its numbers move all the same.
        still = flipped[name] == 0 and (parameter.numel() >= 512 or torch.equal(after[name], before[name]))
        if still:
            raise TrainingError(f"{system.name}: training moved nothing in '{name}' across its mean")
    for name, inner in module.named_modules():
        if isinstance(inner, NORMS) and inner.track_running_stats:
            still = bool((inner.running_mean == 0).all()) or bool((inner.running_var == 1).all())
            if still:
                raise TrainingError(f"{system.name}: the statistics of '{name}' are still the initial ones")
    return flipped


def _side(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    return rows > rows.mean(1, keepdim=True)
