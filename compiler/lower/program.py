"""A lowered model before it becomes C: tensors, constants, and the steps that run in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..opset import REGISTRY, TensorType

if TYPE_CHECKING:
    from .templates import Template

DTYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")
"""Element types of tensors on a device, in the order of ``xnorc_dtype`` in ``runtimes/c/xnorc.h``; there ``STORED`` follows."""

STORED = "float16"
"""What floats can be stored as between steps; nothing is computed in it."""

ALIGNMENT = 64
"""Alignment in bytes of every tensor in the arena and of every constant."""


@dataclass
class Tensor:
    """A tensor that lives in memory during a run. ``place``: arena offset, or number of the model input or output."""

    name: str
    type: TensorType
    space: Literal["arena", "input", "output"] = "arena"
    place: int = 0
    channels_last: bool = False
    """Whether a tensor ``[N, C, H, W]`` lies in memory as ``[N, H, W, C]``."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.type.shape, dtype=np.int64)) * self.type.dtype.itemsize


@dataclass(frozen=True)
class Argument:
    """What a kernel is called with: a tensor or a constant, by index."""

    kind: Literal["tensor", "constant"]
    index: int


@dataclass
class Call:
    """One kernel call, ``symbol(*inputs, *outputs)``, or a plain copy (``symbol`` None). ``outputs`` index tensors."""

    symbol: str | None
    inputs: list[Argument]
    outputs: list[int]
    in_place: tuple[int, ...] = ()
    """Inputs, by position, that the first output may lie on top of."""

    @property
    def arguments(self) -> list[Argument]:
        """Inputs and then outputs, as the kernel takes them."""
        return [*self.inputs, *(Argument("tensor", index) for index in self.outputs)]


@dataclass
class Step:
    """What one node (or group) of the packed model became. ``reads`` and ``writes`` index the tensors."""

    name: str
    op: str
    nodes: list[str]
    calls: list[Call]
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    macs: int = 0
    """Multiply-accumulates, of whatever width."""


@dataclass
class Program:
    """Everything that is needed to write the C file. ``kernels`` is the IRModule of scheduled TIR functions."""

    name: str
    tensors: list[Tensor]
    inputs: list[int]
    outputs: list[int]
    steps: list[Step]
    constants: list[np.ndarray]
    kernels: Any
    arena_bytes: int = 0
    workspace_bytes: int = 0
    templates: dict[str, Template] = field(default_factory=dict)
    """Kernel → what it was made by, for those of our own."""

    def chosen(self, step: Step) -> dict[str, dict[str, int]]:
        """What was chosen for a step's kernels in place of the defaults, by knob: ``shipped`` and ``tuned``."""
        made = [self.templates[call.symbol].call.knobs for call in step.calls if call.symbol in self.templates]
        found: dict[str, dict[str, int]] = {}
        for knobs in made:
            if changed := knobs.changed():
                found.setdefault(knobs.source, {}).update(changed)
        return found

    def kind(self, step: Step) -> str:
        """``integer`` when everything that the step writes is, ``mixed`` when an accumulator becomes float in it."""
        if all(self.tensors[i].type.dtype.kind in "iub" for i in step.writes):
            return "integer"
        operator = REGISTRY.get(step.op.split("+")[0])
        return "mixed" if operator is not None and operator.anchor else "float"
