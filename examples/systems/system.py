"""What every file of this folder says about its system: ``SYSTEM`` (or ``SYSTEMS``), a small network that is trained or
filled for real, the paper's own architecture for sizes and operation counts, and what has been published.

``registry.py`` finds the systems, ``train.py`` gives them weights, ``run.py`` takes one from training to the emulated Pi:

    python examples/systems/run.py NAME
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A network of the paper's own size: only its bytes and operations are counted, so its weights may be random.

    ``binary_modules``: name → (weight bits, activation bits) of every binarized or low-bit module, for the operation count.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    published: Mapping[str, str] = field(default_factory=dict)
    """What the paper (or a measurement of its code) reports for it: "size" → "31.2x smaller", say."""


@dataclass(frozen=True)
class System:
    """One published system and a small network of its kind.

    ``build`` makes the network in training mode with fresh weights. ``task``: "mnist" networks take float32 [N, 1, 28, 28]
    (or what ``prepare`` makes of it) and give logits [N, 10]; "none": ``fill`` gives honest, non-degenerate weights and
    statistics, and ``inputs`` a batch of one.
    """

    name: str
    title: str
    paper: str
    """Authors, title, venue, year; a URL."""
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    """One sample (batch 1), seeded: the shapes that are exported."""
    packed_layers: int
    """How many layers (Conv, Gemm, MatMul of the exported model, products of activations among them) the system binarizes
    or quantizes: so many must be packed, none left in float."""
    task: str = "mnist"
    prepare: Callable[[Tensor], Tensor] | None = None
    """Images [N, 1, 28, 28] to what the network takes."""
    fill: Callable[[nn.Module], None] | None = None
    steps: int = 150
    """Training steps of 64 images."""
    learning_rate: float = 2e-3
    sign_zero: int | None = None
    """Passed to the compiler where the paper's own deployment fixes sign(0)."""
    exporters: Mapping[str, str | None] = field(default_factory=lambda: {"dynamo": None, "torchscript": None})
    """Exporter → None where it works, else the reason why it cannot."""
    shapes: tuple[Shape, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
