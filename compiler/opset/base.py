"""What an ``ai.xnorc`` operator is: one declaration that everything else is derived from.

An operator states its inputs, attributes, shape inference, NumPy reference and ONNX function body in one class; the
kernel that lowers it is named by ``kernel`` and imported only when a model is compiled. Tests iterate over ``REGISTRY``,
so an operator is tested by being listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser

from ..errors import ModelError

DOMAIN = "ai.xnorc"
VERSION = 1
STANDARD_OPSET = 18
"""Oldest standard opset of a packed model; older models are converted up to it on reading."""
IR_VERSION = 10
"""IR version written: every ONNX Runtime that xnorc accepts reads it."""

Attrs = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a tensor, both static."""

    shape: Shape
    dtype: np.dtype

    @staticmethod
    def of(array: np.ndarray) -> TensorType:
        """The type of an array."""
        return TensorType(tuple(array.shape), array.dtype)


class Operator:
    """One operator of domain ``ai.xnorc``. Subclass, fill in the fields, and decorate with ``register``."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    output: ClassVar[str] = "y"
    attributes: ClassVar[dict[str, type]] = {}
    """Attribute name → ``int`` or ``list`` (of int). All are required: function bodies have no defaults."""
    body: ClassVar[str]
    """Statements of the ONNX function, in ONNX text syntax, over standard operators of ``STANDARD_OPSET``."""
    kernel: ClassVar[str]
    """``module:function`` under ``xnorc.lower.kernels`` that makes the TIR kernel."""
    packed_output: ClassVar[bool] = False
    """Whether the output holds bits packed along its last axis."""
    factors: ClassVar[tuple[int, int]] = (1, 1)
    """Bits of the two factors of each of its multiplications, for operation counts; 32 for a float."""
    anchor: ClassVar[bool] = False
    """Whether the output is an int32 accumulator, channels last, whose kernel computes an epilogue too."""

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """Type of the output. Raises ``ValueError`` with the reason when inputs and attributes do not fit."""
        raise NotImplementedError

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """The operator's meaning, in NumPy. Slow and plain on purpose."""
        raise NotImplementedError

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Multiply-accumulates of the layer that the operator computes, of whatever width."""
        return 0

    @classmethod
    def factor_bits(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int]:
        """``factors``, where they depend on the operands or the attributes."""
        return cls.factors

    @classmethod
    def reach(cls, inputs: Sequence[TensorType], attrs: Attrs) -> tuple[int, int, int]:
        """Of an anchor: lowest and highest accumulator, and the distance between neighbouring values.

        Every value that the accumulator can have is ``lowest + i·distance``; maybe not all of these can be had.
        """
        raise NotImplementedError(f"{cls.name} computes no accumulator")

    @classmethod
    def check_attributes(cls, attrs: Attrs, node: str = "") -> None:
        """Raise ``ModelError`` unless ``attrs`` has exactly the declared attributes with the declared types."""
        if set(attrs) != set(cls.attributes):
            raise ModelError(
                f"node '{node}' ({cls.name}): attributes {sorted(attrs)}, expected {sorted(cls.attributes)}"
            )
        for key, kind in cls.attributes.items():
            value = attrs[key]
            good = isinstance(value, (list, tuple)) if kind is list else isinstance(value, (int, np.integer))
            if not good:
                raise ModelError(f"node '{node}' ({cls.name}): attribute '{key}' must be {kind.__name__}, is {value!r}")

    @classmethod
    def function(cls, standard_opset: int = STANDARD_OPSET) -> onnx.FunctionProto:
        """The ONNX function that gives the operator its meaning in any ONNX runtime.

        Its statements mean the same in every standard opset from ``STANDARD_OPSET`` on, so it is written for the
        opset of the model that it goes into (runtimes want these equal).
        """
        attrs = f"<{', '.join(cls.attributes)}>" if cls.attributes else ""
        text = (
            f'<domain: "{DOMAIN}", opset_import: ["" : {standard_opset}]>\n'
            f"{cls.name} {attrs} ({', '.join(cls.inputs)}) => ({cls.output}) {{\n{cls.body}\n}}"
        )
        return onnx.parser.parse_function(text)


REGISTRY: dict[str, type[Operator]] = {}


def register(cls: type[Operator]) -> type[Operator]:
    """Class decorator: add an operator to ``REGISTRY``."""
    if cls.name in REGISTRY:
        raise ValueError(f"operator {cls.name} is declared twice")
    REGISTRY[cls.name] = cls
    return cls


def functions(names: Sequence[str] | None = None, standard_opset: int = STANDARD_OPSET) -> list[onnx.FunctionProto]:
    """Function bodies of the named operators (default: all), in name order."""
    return [REGISTRY[name].function(standard_opset) for name in sorted(REGISTRY if names is None else names)]
