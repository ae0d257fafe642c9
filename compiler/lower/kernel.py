"""What the lowering asks of a kernel, and what a kernel gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..opset import Lies, TensorType
from .knobs import Knobs

if TYPE_CHECKING:
    from ..targets import Target


@dataclass(frozen=True)
class EpilogueStep:
    """One elementwise float32 operation on the running value ``v`` (what the accumulator has become so far).

    ``op``: ``mul`` v·p, ``add`` v+p, ``sub`` v−p, ``rsub`` p−v, ``div`` v/p, ``relu`` max(v, 0), ``prelu`` v if v ≥ 0 else v·p,
    ``clip`` min(max(v, p), q), ``cut`` v if v > p else 0. ``p`` (and ``q``) is a float32 array ``[O]``; or, where ``lies`` says
    along which axes of the output ``p`` varies, a float32 array, or an int: the index into ``KernelCall.extra`` of a float32
    tensor (a residual, a scale of each sample). An int alone is a tensor in the output's order. Each operation rounds to
    float32 by itself.
    """

    op: Literal["mul", "add", "sub", "rsub", "div", "relu", "prelu", "clip", "cut"]
    p: np.ndarray | int | None = None
    q: np.ndarray | None = None
    lies: Lies | None = None


@dataclass(frozen=True)
class PackedCopy:
    """A second output of an epilogue: the planes of bits that the accumulator or the final float is compared into.

    ``threshold``: int32 or float32 ``[T, O]`` or ``[T, 1]``; ``flip``: uint8 ``[O]`` or ``[1]``. The level is the number of
    steps t with ``(v >= threshold[t]) xor flip`` (never for a threshold of NaN), bit i of ``codes[level]`` goes to plane i.
    One step and the codes 0 and 1 are a sign. Stored as uint8 ``[planes, ..., ceil(O/8)]``, of a sign without the planes' axis.
    """

    threshold: np.ndarray
    flip: np.ndarray
    codes: tuple[int, ...] = (0, 1)
    planes: int = 1


@dataclass(frozen=True)
class Epilogue:
    """What a kernel does with an int32 accumulator before it stores it.

    ``acc``: stores int32, channels last. ``bits``: stores packed bits, channels last, ``(acc >= threshold) xor flip`` with
    int32 ``threshold [O]`` and uint8 ``flip [O]``. ``float``: converts to float32, applies ``steps`` in order and stores
    float32: channels first (NCHW) when ``channels_first``, else channels last. ``copies`` (of ``acc``, or of a
    ``float`` that lies channels last) are stored in the same pass; where ``kept`` is False they are all that is stored.
    """

    kind: Literal["acc", "bits", "float"] = "acc"
    threshold: np.ndarray | None = None
    flip: np.ndarray | None = None
    steps: tuple[EpilogueStep, ...] = ()
    channels_first: bool = False
    copies: tuple[PackedCopy, ...] = ()
    kept: bool = True
    half: bool = False
    """Whether the floats are rounded to float16 when they are stored (``KernelCall.output`` is of that type then)."""


@dataclass(frozen=True)
class KernelCall:
    """One operator to lower. ``constants`` maps an input's index to its value where that is known at compile time."""

    name: str
    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[TensorType, ...]
    constants: Mapping[int, np.ndarray]
    output: TensorType
    """Type of what the epilogue makes, without its packed copies."""
    target: Target
    epilogue: Epilogue = field(default_factory=Epilogue)
    extra: tuple[TensorType, ...] = ()
    """Tensors that the epilogue reads besides."""
    knobs: Knobs = field(default_factory=Knobs, compare=False)
    """What the template leaves open."""
    twin: int | None = None
    """The extra tensor that is the operand of this layer's twin (a layer of the same weights and attributes), whose
    accumulators the first step of the epilogue adds. Where both operands are equal, so are the accumulators."""
    copies: tuple[TensorType, ...] = ()
    """Types of the epilogue's packed copies."""

    @property
    def outputs(self) -> tuple[TensorType, ...]:
        """Types of all that is stored, in the order of the function's last parameters."""
        return (*((self.output,) if self.epilogue.kept else ()), *self.copies)


@dataclass(frozen=True)
class Kernel:
    """A scheduled TIR function and its arguments.

    ``func`` is a PrimFunc whose buffer parameters are ``args`` in order and then the outputs. An argument is an array (a
    constant, placed with the weights), ``("input", i)`` or ``("extra", i)``: an input or extra tensor of the call.
    """

    func: Any
    args: tuple[np.ndarray | tuple[str, int], ...]
    in_place: tuple[int, ...] = ()
    """Arguments that the first output may lie on top of: each of their elements is read once, before it is written there."""
