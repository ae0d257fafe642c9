"""Converters of functions of one number, and of Concat: see ``converters``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from .converters import _floats_at_run_time, _standard, converter, dtype_of, shape_of
from .kernels import float_calls, float_functions

GELU_OPSET = 20
"""The opset that brought Gelu, the newest of the functions here."""


def _mapped(name: str) -> None:
    @converter(name)
    def convert(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
        """TVM's calls the C library for every element."""
        mode = attrs.get("approximate", b"none").decode()
        function = name if mode == "none" else f"{name}:{mode}"
        if not _floats_at_run_time(inputs, values) or function not in float_functions.FUNCTIONS:
            return _standard(name, bb, inputs, attrs, GELU_OPSET)
        return float_calls.emit(bb, "function", {"function": function}, inputs, shape_of(inputs[0]))


for _name in float_functions.FUNCTIONS:
    if ":" not in _name:
        _mapped(_name)


@converter("Concat")
def concat(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's asks of every element which input it comes from."""
    if not _floats_at_run_time(inputs, values):
        return _standard("Concat", bb, inputs, attrs)
    shapes = [shape_of(x) for x in inputs]
    axis = attrs["axis"] % len(shapes[0])
    whole = (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])
    return float_calls.emit(bb, "concat", {"runs": [math.prod(shape[axis:]) for shape in shapes]}, inputs, whole)


def _computed(bb: Any, x: Any, name: str, function: Callable[[Any, Any], Any]) -> Any:
    """``function(x, e^-|x|)``, element by element."""
    if dtype_of(x) != "float32":
        raise ValueError("only float32 is computed")

    def compute(given: te.Tensor) -> te.Tensor:
        def at(*index: Any) -> Any:
            value = given(*index)
            return function(value, te.exp(-te.abs(value)))

        return te.compute(given.shape, at, name=name)

    return bb.emit_te(compute, x, primfunc_name_hint=name)


@converter("Mish")
def mish(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's loses every digit below about -16, where ``1 + exp(x)`` is 1. With e = exp(-|x|), tanh(ln(1 + exp(x))) is
    (1 + 2e) / (1 + 2e + 2e²) for x >= 0 and e(e + 2) / (e(e + 2) + 2) for x < 0: neither overflows nor cancels."""

    def function(value: Any, small: Any) -> Any:
        above, below = 1 + 2 * small, small * (small + 2)
        return value * te.if_then_else(value >= 0, above / (above + 2 * small * small), below / (below + 2))

    return _computed(bb, inputs[0], "mish", function)


@converter("Softplus")
def softplus(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's loses digits below about -7 and has none left below -16, where ``1 + exp(x)`` is 1. Here the logarithm of
    the rounded u = 1 + e is corrected by e / (u - 1)."""

    def function(value: Any, small: Any) -> Any:
        rounded = tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", 1 + small)
        log1p = te.if_then_else(rounded == 1, small, te.log(rounded) * (small / (rounded - 1)))
        return te.max(value, 0) + log1p

    return _computed(bb, inputs[0], "softplus", function)
