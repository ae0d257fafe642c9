"""Does the exported model compute what the module computes?

Outputs of the two differ by float rounding, and where a network takes signs (or rounds, or compares) a rounding can flip
one and move everything behind it. A difference beyond rounding is therefore put to a test: the module itself is run with
its inputs and parameters changed by about one rounding. If its own outputs jump as far, the signs explain the difference;
if they do not, the exporter made another network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import golden
from .errors import ExportError
from .model_ops import discontinuous

if TYPE_CHECKING:
    import onnx
    import torch

TOLERANCE = 1e-4
"""Allowed difference as a part of the largest magnitude of an output: a float32 sum of k terms in another order differs
by at most about k·2⁻²⁴ of the sum of magnitudes, which 1e-4 covers for k = 1700."""
ROUNDING = 5e-7
"""Relative change of inputs and parameters that stands for float32 rounding (eight ulp)."""
RANDOM_SAMPLES = 3
TRIALS = 4
SLACK = 4.0
"""The module's own jumps are found with few trials: a difference of up to so many times the largest is explained."""


@dataclass(frozen=True)
class Agreement:
    """How ONNX Runtime and torch agree on ``samples`` inputs. Errors are parts of the largest magnitude of an output."""

    samples: int
    max_error: float
    tolerance: float
    differing: int
    """Samples on which the difference is more than ``tolerance``; only flips can explain those."""
    note: str
    """One line for people."""


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a module's result, whatever it is nested in, in order."""
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def compare(
    module: torch.nn.Module, args: tuple[torch.Tensor, ...], model: onnx.ModelProto, outputs: Sequence[str]
) -> Agreement:
    """Compare on the example inputs and on random ones. Raises ``ExportError`` for a difference flips cannot explain."""
    session = golden.session(model)
    names = [info.name for info in model.graph.input]
    if len(names) != len(args):
        raise ExportError(f"the exported model has {len(names)} inputs, the module was given {len(args)}")
    signs = discontinuous(model)
    errors = []
    for seed in range(RANDOM_SAMPLES + 1):
        values = args if seed == 0 else tuple(random_like(value, seed) for value in args)
        try:
            expected = _arrays(module(*values))
        except Exception:  # random data need not be legal for a module: lengths, indices
            if seed == 0:
                raise
            continue
        feeds = {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}
        found = [golden.run(session, feeds)[name] for name in outputs]
        error, worst = _distance(found, expected, outputs)
        errors.append(error)
        if error > TOLERANCE:
            allowed = SLACK * _own_jump(module, values, expected, outputs) if signs else 0.0
            if error > allowed:
                own = f"; the module itself moves by {allowed / SLACK:.1e} when its inputs are rounded" if signs else ""
                raise ExportError(
                    f"output '{worst}' differs from the module's by {error:.1e} (allowed {TOLERANCE:.0e}{own})"
                )
    differing = sum(error > TOLERANCE for error in errors)
    note = f"ONNX Runtime agrees with torch on {len(errors)} inputs, largest difference {max(errors):.1e}"
    if differing:
        note += (
            f"; on {differing} of them signs near zero flip ({', '.join(signs[:3])}): "
            "the module's own outputs move as far when its inputs are rounded"
        )
    return Agreement(len(errors), max(errors), TOLERANCE, differing, note)


def random_like(value: torch.Tensor, seed: int) -> torch.Tensor:
    """Data of the same shape, dtype and spread."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if value.dtype.is_floating_point:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.dtype)
        spread = value.std() if value.numel() > 1 and value.std() > 0 else torch.ones((), dtype=value.dtype)
        return noise * spread + value.mean()
    low, high = int(value.min()), int(value.max())
    return torch.randint(low, high + 1, value.shape, generator=generator).to(value.dtype)


def _arrays(result: Any) -> list[np.ndarray]:
    return [tensor.detach().cpu().numpy() for tensor in tensors_of(result)]


def _distance(found: list[np.ndarray], expected: list[np.ndarray], names: Sequence[str]) -> tuple[float, str]:
    """Largest difference over the outputs, each relative to its largest magnitude, and the output that has it."""
    worst, where = 0.0, names[0]
    for ours, theirs, name in zip(found, expected, names, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ExportError(
                f"output '{name}' is {ours.dtype} {list(ours.shape)}, the module gives {theirs.dtype} {list(theirs.shape)}"
            )
        if not theirs.size:
            continue
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if same.all():
            continue
        scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0) or 1.0
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(a - b)) / scale
        error = float(np.max(np.where(np.isnan(gap), np.inf, gap)))
        if error > worst:
            worst, where = error, name
    return worst, where


def _own_jump(
    module: torch.nn.Module, values: tuple[torch.Tensor, ...], expected: list[np.ndarray], names: Sequence[str]
) -> float:
    """How far the module's outputs move when its inputs, parameters and buffers change by about one rounding."""
    import torch

    state = dict(module.named_parameters()) | dict(module.named_buffers())
    jump = 0.0
    for trial in range(TRIALS):
        generator = torch.Generator().manual_seed(trial)

        def noisy(value: torch.Tensor, generator: torch.Generator = generator) -> torch.Tensor:
            if not value.dtype.is_floating_point:
                return value
            noise = torch.empty(value.shape, dtype=torch.float32).uniform_(-ROUNDING, ROUNDING, generator=generator)
            return value + value * noise.to(value.dtype)

        changed = {name: noisy(value.detach()) for name, value in state.items()}
        result = torch.func.functional_call(module, changed, tuple(noisy(value) for value in values))
        jump = max(jump, _distance(_arrays(result), expected, names)[0])
    return jump
