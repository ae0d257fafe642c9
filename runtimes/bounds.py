"""How far a float32 result may be off: a running error analysis of a model, from its operators alone.

For every tensor it finds ``e`` such that any float32 evaluation, whatever the order of its sums and with or without fused
multiply-add, lies within ``e`` of the exact result on the exact input. Two evaluations then differ by at most ``2 e``.
The bounds are a priori (N. Higham, "Accuracy and Stability of Numerical Algorithms", chapters 2 and 3): they are computed
before anything is compared, and an operator that has no rule gets the bound zero, so that equality is required.

``u`` is 2^-24, the unit roundoff of float32, and ``gamma(n) = n u / (1 - n u)``.

Integers in float32 are exact below 2^24. Where every factor and addend is an integer that carries no error, and
Σ|x·w| + |b| < 2^24, every partial sum in every order is an integer below 2^24, thus a float32: nothing rounds, e = 0.

The packed model against the original (``judge_passes``) are two evaluations of *two* formulas: s·Σx·sign(w) rounds once
where Σx·(±s) rounds at every term. So each model has an analysis of its own, and the two may differ by
``e_packed + e_original``, given that both are bounds on the distance to one exact function. That function is the packed
model's; the original's differs from it by its weights, which enter the original's analysis as an error of its constants
(``weight_errors``; |Δw| is carried through a sum as Σ|x||Δw|). Signs that are equal in both are exact in both: this is
what the order of the comparison (``judge``) sees to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from .. import golden
from ..opset import DOMAIN
from .bound_ops import RULES, SUMS, Use
from .bound_rules import (
    FLUSH,
    FUNCTION,
    FUNCTIONS,
    JUMPS,
    NOTHING,
    SMOOTH,
    Error,
    U,
    affine,
    attribute,
    contracted,
    gamma,
    jump,
    lipschitz,
    text,
)

_MOVES = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Concat", "Split", "Gather", "GatherElements",
    "GatherND", "Expand", "Identity", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool", "ReduceMax",
    "ReduceMin", "Where", "Pad",
}  # fmt: skip
"""Operators whose error is themselves, applied to the error: they move values, or take one of several. Which one of several
is taken may change, but |max(a + d) - max(a)| <= max|d|, and the same for min: of the errors it is always the largest."""
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ReduceSum", "ReduceL1", "ReduceSumSquare", "CumSum"}
"""Sums of products (with 1, with a weight, with themselves) that no division follows: integers stay integers."""
_LINEAR = _PRODUCTS | {"AveragePool", "GlobalAveragePool", "ReduceMean"}
_ONE_TO_ONE = {"Relu", "Clip", "Abs", "Neg"}
_IEEE = {"Add", "Sub", "Mul", "Div", "Sqrt", "Cast", "PRelu", "LeakyRelu", "BatchNormalization"}
"""Single IEEE operations an element, in ONNX Runtime: equal operands give equal bits. (Its BatchNormalization is
x·a + b, whose float32 a and b the pass ``fold_affine`` takes over bit for bit.)"""
_EXACT_INTEGERS = {"Shape", "Size", "Constant", "ConstantOfShape", "Range", "ArgMax", "ArgMin"}
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
"""Operators that a device need not compute: the bytes stay as they are."""


class Analysis:
    """The rules, applied to the nodes of one model. Sessions for single nodes are kept between samples.

    ``original``: the analysis of an original model beside its packed one, both in ONNX Runtime. Then nodes of constants are
    exact (``fold_constants`` evaluates the same nodes in the same runtime), so is each `Sign` given its own argument (a
    flip is found by ``judge``, not carried on), and so are the single IEEE operations of ``_IEEE`` on exact operands.
    """

    def __init__(self, model: onnx.ModelProto, *, original: bool = False) -> None:
        self.original = original
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 18)
        self._sessions: dict[Any, Any] = {}
        self._integers: dict[str, bool] = {}
        self.of_constants: set[str] = set()
        """Tensors that constants alone determine."""
        for node in self.nodes:
            inner = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
            if not inner and not node.op_type.startswith("Random") and all(map(self.is_constant, node.input)):
                self.of_constants.update(filter(None, node.output))

    def is_constant(self, name: str) -> bool:
        """Whether a tensor (or a left-out input) is the same for every sample."""
        return not name or name in self.constants or name in self.of_constants

    def run(
        self,
        values: Mapping[str, np.ndarray],
        nodes: Iterable[onnx.NodeProto] | None = None,
        given: Mapping[str, Error] | None = None,
        fixed: Mapping[str, Error] | None = None,
    ) -> tuple[dict[str, Error], dict[str, np.ndarray]]:
        """Bounds of every tensor that ``nodes`` (default: all) compute, every other tensor taken as exact.

        ``values``: the tensors of one sample. ``given``: errors of constants; ``fixed``: of
        computed tensors, in place of the computed bounds. The second result maps packed tensors to
        masks of the bits that a sign within the bound of its threshold leaves open, packed like the tensor.
        """
        errors: dict[str, Error] = dict(given or {})
        open_bits: dict[str, np.ndarray] = {}
        for node in self.nodes if nodes is None else nodes:
            output = node.output[0]
            if self.original and output in self.of_constants:
                continue
            if node.domain == DOMAIN:
                self._own(node, values, errors, open_bits)
            elif node.op_type in VIEWS and node.input[0] in open_bits:
                open_bits[output] = open_bits[node.input[0]].reshape(values[output].shape)
            elif output in values and node.op_type in ("Transpose", "Reshape") and values[output].dtype == np.int32:
                # An accumulator that rounding left open, on its way to a Cast.
                if np.any(errors.get(node.input[0], 0.0)):
                    source = self._value(node.input[0], values)
                    moved = np.broadcast_to(errors[node.input[0]], source.shape).astype(np.float32)
                    others = [self._value(name, values) for name in node.input[1:]]
                    errors[output] = self.evaluate(node, [moved, *others])[0].astype(np.float64) * (1 + 2.0**-22)
            elif output in values and values[output].dtype.kind == "f":
                bounds = self._standard(node, values, errors)
                for name, bound in zip(node.output, bounds, strict=False):
                    errors[name] = bound if fixed is None else fixed.get(name, bound)
        return errors, open_bits

    def reason(self, nodes: Sequence[onnx.NodeProto], values: Mapping[str, np.ndarray]) -> str:
        """Why a float32 result of ``nodes`` may differ, in words."""
        parts: list[str] = []
        rounded: list[str] = []
        errors, _ = self.run(values, nodes)
        for node in nodes:
            op = node.op_type
            if op in _LINEAR:
                terms = self._terms(node, values)
                if np.any(errors.get(node.output[0], 0.0)):
                    parts.append(f"{op} sums {terms} terms in any order: γ({terms + 2})·Σ|x·w|")
                else:
                    parts.append(f"{op} sums integers below 2^24: exact")
            elif op in SMOOTH or op in ("Exp", "Log", "Sqrt", "Softmax", "LogSoftmax", "Reciprocal", "Pow"):
                parts.append(f"{op} is approximated: 4 ulp + 2^-22")
            elif op in FUNCTIONS or op in ("Sum", "Mean", "ReduceL2"):
                parts.append(f"{op}: γ of its sums and roundings")
            elif op == "Resize" and text(node, "mode", "nearest") != "nearest":
                parts.append("Resize: γ of its weighted sum, and the rounding of its coordinates")
            elif op in JUMPS:
                parts.append(f"{op} jumps: open where its argument is within its bound of a jump")
            elif node.domain == DOMAIN and op in SUMS:
                terms = int(attribute(node, "k", 1))
                parts.append(f"{op} sums {terms} terms in any order: γ({terms + 2})·Σ|x·w|")
            elif op in ("Add", "Sub", "Mul", "Div", "PRelu", "LeakyRelu"):
                rounded.append(op)
            elif not self._known(node):
                parts.append(f"no bound is known for {op}: equality is required")
        if rounded:
            parts.append(f"{', '.join(dict.fromkeys(rounded))}: half an ulp a rounding")
        if parts and not any(np.any(error) for error in errors.values()):
            return (
                "; ".join(part for part in parts if part.startswith("no bound")) or "no rounding: equality is required"
            )
        return "; ".join(parts) + "; twice, for two evaluations" if parts else "no rounding: equality is required"

    def _known(self, node: onnx.NodeProto) -> bool:
        op = node.op_type
        others = {"Cast", "Max", "Min", "Resize", "Dropout", "TopK"}
        return node.domain == DOMAIN or op in _MOVES | _ONE_TO_ONE | _EXACT_INTEGERS | others

    # ---- rules ----

    def _own(
        self, node: onnx.NodeProto, values: Mapping[str, np.ndarray], errors: dict[str, Error], masks: dict[str, Any]
    ) -> None:
        """An operator of ours, by the rules of ``bound_ops``."""
        rule, output = RULES.get(node.op_type), node.output[0]
        if rule is None or output not in values:
            return
        bound = rule(
            Use(
                node.op_type,
                {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
                [self._value(name, values) for name in node.input],
                values[output],
                [errors.get(name, 0.0) for name in node.input],
                [masks.get(name) for name in node.input],
            )
        )
        if bound.error is not None:
            errors[output] = bound.error
        if bound.mask is not None:
            masks[output] = bound.mask

    def _standard(
        self, node: onnx.NodeProto, values: Mapping[str, np.ndarray], errors: Mapping[str, Error]
    ) -> list[Error]:
        op, y = node.op_type, values[node.output[0]].astype(np.float64)
        inputs = [self._value(name, values) if name else None for name in node.input]
        given = [errors.get(name, 0.0) for name in node.input]
        zero = not any(np.any(error) for error in given)
        first = given[0] if given else 0.0
        if zero and self.original and op in _IEEE:
            return [0.0] * len(node.output)
        rounding: Error = U * np.abs(y) + FLUSH
        if op in ("Add", "Sub", "Mul", "Sum") and zero and self._are_integers(node, inputs):
            magnitudes = [np.abs(np.asarray(value, np.float64)) for value in inputs]
            if np.max(np.abs(y) if op == "Mul" else sum(magnitudes), initial=0) < 2**24:
                return [0.0]
        if op in _MOVES or (op == "Resize" and text(node, "mode", "nearest") == "nearest"):
            return [0.0] * len(node.output) if zero else self._moved(node, inputs, given)
        if op == "Resize":
            return [self._resized(node, inputs, first, y)]
        if op in _LINEAR:
            return [self._linear(node, inputs, given, values)]
        if op == "ReduceL2":
            # |‖x + d‖ - ‖x‖| ≤ ‖d‖; n squares, their sum, a root.
            moved = self._moved(node, inputs, given)[0] if np.any(first) else 0.0
            return [moved + gamma(self._terms(node, values) + 4) * (np.abs(y) + moved) + FLUSH]
        if op in ("Sum", "Mean"):
            total = sum(
                np.abs(np.asarray(value, np.float64)) + error for value, error in zip(inputs, given, strict=True)
            )
            bound = sum(given) + gamma(len(given)) * total
            return [(bound / len(given) if op == "Mean" else bound) + rounding]
        if op in JUMPS:
            return [0.0 if self.original and op == "Sign" else jump(node, np.asarray(inputs[0], np.float64), first)]
        if op == "Dropout":
            return [first] + [0.0] * (len(node.output) - 1)
        if op in _ONE_TO_ONE:
            return [first]
        if op == "TopK":  # the k-th largest of numbers that move by at most e moves by at most e
            return [float(np.max(first)), 0.0]
        if op in ("Max", "Min"):
            return [_largest(given)]
        if op in ("Add", "Sub"):
            return [given[0] + given[1] + rounding]
        if op == "Mul":
            a, b = (np.abs(np.asarray(value, np.float64)) for value in inputs)
            return [a * given[1] + b * given[0] + np.multiply(given[0], given[1]) + rounding]
        if op == "Div":
            below = np.maximum(np.abs(np.asarray(inputs[1], np.float64)) - given[1], FLUSH)
            return [np.minimum((given[0] + np.abs(y) * given[1]) / below, NOTHING) + 2 * rounding]
        if op in ("PRelu", "LeakyRelu"):
            slope = attribute(node, "alpha", 0.01) if op == "LeakyRelu" else np.asarray(inputs[1], np.float64)
            return [np.maximum(1.0, np.abs(slope)) * first + rounding]
        if op == "Cast":
            source = inputs[0]
            if values[node.output[0]].dtype == np.float16:
                # Equal floats round to equal ones; others may part by what a rounding to float16 moves them.
                return [0.0 if zero else first + 2.0**-11 * (np.abs(y) + first) + 2.0**-25]
            small = source is None or source.dtype.kind not in "iu" or np.abs(source).max(initial=0) < 2**24
            exact = small and (source is None or source.dtype != np.float64)
            return [first if exact else first + rounding]
        rule = FUNCTIONS.get(op)
        if op in SMOOTH:
            wide = np.maximum(1.0, np.abs(np.asarray(inputs[0], np.float64)))
            return [lipschitz(node) * first + 8 * U * np.abs(y) + FUNCTION * (wide if op in ("Gelu", "Mish") else 1.0)]
        if op == "BatchNormalization" and self.original:
            return [affine(node, [np.asarray(v, np.float64) for v in inputs if v is not None], y, first)]
        if rule is not None:
            return [rule(node, [np.asarray(v, np.float64) for v in inputs if v is not None], y, first)]
        return [0.0] * len(node.output)

    def _moved(self, node: onnx.NodeProto, inputs: Sequence[Any], given: Sequence[Error]) -> list[Error]:
        """The node on the bounds in place of the values."""
        arrays: list[Any] = []
        for position, (value, error) in enumerate(zip(inputs, given, strict=True)):
            if value is None or value.dtype.kind != "f":
                arrays.append(value)
            elif node.op_type == "Pad" and position == 2:
                arrays.append(np.zeros_like(value))  # what is padded is exact
            elif node.op_type == "Resize" and position:
                arrays.append(value)  # region and scales
            else:
                arrays.append(_as_float32(np.broadcast_to(error, value.shape)))
        if node.op_type == "ReduceMin":
            largest = onnx.NodeProto()
            largest.CopyFrom(node)
            largest.op_type = "ReduceMax"
            node = largest
        return [result.astype(np.float64) for result in self.evaluate(node, arrays)]

    def _resized(self, node: onnx.NodeProto, inputs: Sequence[Any], e: Error, y: np.ndarray) -> Error:
        """Linear and cubic interpolation: a weighted sum in every axis that changes.

        Σ|weights| of an axis is S = 1 for linear, and at most 1 + |a|/2 for cubic (at t = 1/2: 2·(1/2 - a/8) + 2·|a|/8), so
        the error of the argument grows to at most S^axes·max(e). n terms an axis round by γ(n + 4) for weights and sum.
        A coordinate is (i + 1/2)·scale - 1/2 or alike: 4 roundings of numbers up to the size of the axis (of input and
        output, as scale is rounded too), so it is off by d ≤ 4·(size_in + 1)·2u. A shift by d moves a linear result by
        d times the slope, at most 2·max|x|, and a cubic one by at most 4·d·max|x| (Σ|w'| < 4 for |a| ≤ 1).
        """
        if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            return 0.0  # jumps at its border: equality is required
        x = np.abs(np.asarray(inputs[0], np.float64))
        cubic = text(node, "mode", "nearest") == "cubic"
        weight = 1 + abs(attribute(node, "cubic_coeff_a", -0.75)) / 2 if cubic else 1.0
        factor, rounding = 1.0, 0.0
        for before, after in zip(x.shape, y.shape, strict=True):
            if before == after:
                continue
            spread = max(1.0, before / after) if attribute(node, "antialias", 0) else 1.0
            terms = math.ceil((4 if cubic else 2) * spread) + 1
            factor *= weight * (2 if attribute(node, "exclude_outside", 0) else 1)
            rounding += gamma(terms + 4) + (4 if cubic else 2) * 8 * (before + 1) * U
        return factor * (np.max(e) + rounding * (x.max(initial=0) + np.max(e))) + FLUSH

    def _are_integers(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> bool:
        """Whether every float input holds integers only. What is known of a constant is kept."""
        for name, value in zip(node.input, inputs, strict=True):
            if value is None or value.dtype.kind != "f":
                continue
            known = self._integers.get(name)
            if known is None:
                known = bool((value == np.rint(value)).all()) and bool(np.isfinite(value).all())
                if name in self.constants:
                    self._integers[name] = known
            if not known:
                return False
        factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")] if node.op_type == "Gemm" else []
        return all(float(factor).is_integer() for factor in factors)

    def _linear(
        self, node: onnx.NodeProto, inputs: Sequence[Any], given: Sequence[Error], values: Mapping[str, np.ndarray]
    ) -> Error:
        """A sum of products: γ times the same sum of absolute values, and the errors of the factors carried through.

        The sum of integers below 2^24 is exact (see the module), and so is then the sum of absolute values that shows it.
        """
        absolute = [_magnitude(value) for value in inputs]
        rounding = gamma(self._terms(node, values) + 2)
        spread = 1 + 2 * rounding  # the sum of absolute values is itself computed in float32
        sums = self.evaluate(node, absolute, "abs")[0].astype(np.float64)
        exact = not any(np.any(error) for error in given)
        if exact and node.op_type in _PRODUCTS and sums.max(initial=0) < 2**24 and self._are_integers(node, inputs):
            return 0.0
        total: Error = rounding * spread * sums + FLUSH
        # x w + b with errors: |dx| |w| + |x| |dw| + |dx| |dw| + |db|
        widened = [
            value if value is None or value.dtype.kind != "f" else _as_float32(np.abs(value) + error)
            for value, error in zip(inputs, given, strict=True)
        ]
        if any(np.any(error) for error in given):
            more = self.evaluate(node, widened, "abs")[0].astype(np.float64)
            total = total + (more - sums) + 2 * rounding * spread * more
        return total

    def _terms(self, node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> int:
        """Number of terms that one result sums."""
        op, x = node.op_type, self._value(node.input[0], values)
        if op in ("Conv", "ConvTranspose"):
            w = self._value(node.input[1], values)
            count = math.prod(w.shape[1:]) if op == "Conv" else w.shape[0] * math.prod(w.shape[2:])
            return count + (len(node.input) > 2 and bool(node.input[2]))
        if op == "Gemm":
            return x.shape[0 if attribute(node, "transA", 0) else 1] + 1
        if op == "MatMul":
            return x.shape[-1]
        if op == "Einsum":
            equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
            return contracted(equation, [self._value(name, values).shape for name in node.input]) + len(node.input)
        if op == "CumSum":
            return max(x.shape)
        if op == "AveragePool":
            return math.prod(next(a.ints for a in node.attribute if a.name == "kernel_shape"))
        y = values.get(node.output[0])
        return max(1, x.size // max(1, y.size)) if y is not None else x.size

    def _value(self, name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values[name] if name in values else self.constants[name]

    def evaluate(self, node: onnx.NodeProto, inputs: Sequence[Any], variant: str = "") -> list[np.ndarray]:
        """The node on other inputs. Variant ``abs``: with non-negative attributes too."""
        names = [f"x{index}" if value is not None else "" for index, value in enumerate(inputs)]
        feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if value is not None}
        shapes = tuple((value.shape, str(value.dtype)) for value in feeds.values())
        key = (node.output[0], node.op_type, variant, shapes)
        if key not in self._sessions:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            del copy.input[:], copy.output[:]
            copy.input.extend(names)
            copy.output.extend(f"y{index}" for index in range(len(node.output)))
            for attribute in copy.attribute if variant == "abs" else []:
                if attribute.name in ("alpha", "beta"):
                    attribute.f = abs(attribute.f)
            model = golden.small_model([copy], feeds, list(copy.output), opset=self._opset)
            self._sessions[key] = golden.session(model)
        return list(golden.run(self._sessions[key], feeds).values())


def weight_errors(weight: np.ndarray, axis: int) -> np.ndarray | None:
    """How far a weight of two levels may be from the ±s that the pass ``binary_weights`` made of it, or None: not at all.

    The pass takes magnitudes of an output channel (an index of ``axis``) that are at most 4 ulp from their mean, and s is
    one of them. So they span at most 8 ulp, and |w - (±s)| is at most the distance to the farther end of the span. A
    weight with a wider channel was left as it is.
    """
    rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).astype(np.float64)
    if not rows.size:
        return None
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    if np.any(high - low > 8 * np.spacing(high.astype(np.float32))) or np.all(high == low):
        return None
    error = np.maximum(rows - low, high - rows)
    moved = (weight.shape[axis], *np.delete(weight.shape, axis))
    return np.moveaxis(error.reshape(moved), 0, axis)


def few_bit_errors(weight: np.ndarray, axis: int) -> np.ndarray:
    """How far a weight of few bits may be from the scaled integers that the pass ``level_weights`` made of it.

    The pass takes numbers that are at most 4 ulp from the scale times an integer, and its scale is rounded once, which is
    at most another ulp: of the largest weight of the output channel (an index of ``axis``), to count sums of bases too.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    return np.broadcast_to(5 * np.spacing(largest).astype(np.float64), weight.shape)


def _largest(errors: Sequence[Error]) -> Error:
    total: Error = 0.0
    for error in errors:
        total = np.maximum(total, error)
    return total


def _magnitude(value: Any) -> Any:
    return value if value is None or value.dtype.kind != "f" else np.abs(value)


def _as_float32(value: Any) -> np.ndarray:
    """To float32, never downwards, but to at most ``NOTHING``."""
    return np.asarray(np.minimum(np.asarray(value, np.float64) * (1 + 2.0**-22), NOTHING), np.float32)
