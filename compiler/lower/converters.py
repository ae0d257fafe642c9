"""Converters of ONNX operators to Relax where TVM's own are missing, wrong or needlessly slow.

Each takes ``(block builder, inputs, constant values of the inputs or None, attributes)`` and returns a Relax
expression. Every entry says why it is here; ``tests/lower/test_float_ops.py`` compares all operators with ONNX Runtime,
``tests/lower/test_conformance.py`` with ONNX's own node tests. A use of an operator that neither gets right is refused:
by its converter, or by a check (``CHECKS``) that runs before TVM's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from onnx import helper
from tvm import relax, te
from tvm.relax.frontend.onnx import onnx_frontend

from .. import golden
from ..opset import STANDARD_OPSET
from .kernel import EpilogueStep
from .kernels import float_calls, float_product

Converter = Callable[[Any, list[Any], Sequence["np.ndarray | None"], dict[str, Any]], Any]

CONVERTERS: dict[str, Converter] = {}

Check = Callable[[list[Any], Sequence["np.ndarray | None"], dict[str, Any]], None]

CHECKS: dict[str, Check] = {}

F = TypeVar("F", bound=Callable[..., Any])


def _entry(table: dict[str, F], names: Sequence[str]) -> Callable[[F], F]:
    def add(function: F) -> F:
        table.update(dict.fromkeys(names, function))
        return function

    return add


def check(*names: str) -> Callable[[Check], Check]:
    """Decorator: ask the function, which raises ``ValueError`` to refuse, before TVM converts these ONNX operators."""
    return _entry(CHECKS, names)


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Decorator: use the function for these ONNX operators."""
    return _entry(CONVERTERS, names)


def shape_of(expr: Any) -> tuple[int, ...]:
    """Static shape of a Relax expression."""
    return tuple(int(size) for size in expr.ty.shape)


def dtype_of(expr: Any) -> str:
    """Element type of a Relax expression."""
    return str(expr.ty.dtype)


@converter("Identity")
def identity(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's has a kernel copy the tensor."""
    return inputs[0]


@converter("Dropout")
def dropout(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """At inference Dropout passes its input through, which needs no kernel; TVM's ignores ``training_mode``."""
    if len(inputs) > 2 and inputs[2] is not None and (values[2] is None or values[2].any()):
        raise ValueError("training_mode is not constant false: export the model for inference")
    return inputs[0]


@converter("Gather")
def gather(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's keeps the axis of a scalar index. Constant indices also have their negative values resolved here."""
    axis = attrs.get("axis", 0) % len(shape_of(inputs[0]))
    size = shape_of(inputs[0])[axis]
    if values[1] is not None:
        indices = np.where(values[1] < 0, values[1] + size, values[1]).astype(np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < size):
            raise ValueError(f"an index is outside of axis {axis} of size {size}")
        flat = relax.const(indices.reshape(-1))
    else:
        given = inputs[1]
        indices = np.empty(shape_of(given), np.int64)
        whole = bb.emit(relax.op.astype(given, "int64"))
        moved = bb.emit(relax.op.add(whole, relax.const(size, "int64")))
        whole = bb.emit(relax.op.where(relax.op.less(whole, relax.const(0, "int64")), moved, whole))
        flat = bb.emit(relax.op.reshape(whole, (indices.size,)))
    taken = bb.emit(relax.op.take(inputs[0], flat, axis=axis, mode="clip"))
    shape = shape_of(inputs[0])
    return relax.op.reshape(taken, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))


@converter("Cast")
def cast(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's takes nine kernels to define what float to integer does out of range, where ONNX leaves it undefined."""
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(attrs["to"]))
    if str(inputs[0].ty.dtype) == str(dtype):
        return inputs[0]
    if dtype == np.bool_:
        return relax.op.not_equal(inputs[0], relax.const(np.zeros((), dtype_of(inputs[0])), dtype_of(inputs[0])))
    return relax.op.astype(inputs[0], str(dtype))


@converter("Min")
def minimum(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's stacks the operands in memory first."""
    return functools.reduce(lambda a, b: bb.emit(relax.op.minimum(a, b)), inputs)


@converter("Max")
def maximum(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's stacks the operands in memory first."""
    return functools.reduce(lambda a, b: bb.emit(relax.op.maximum(a, b)), inputs)


def _standard(op: str, bb: Any, inputs: list[Any], attrs: dict[str, Any], opset: int = STANDARD_OPSET) -> Any:
    """TVM's own converter: for what the kernels in ``kernels/float_*.py`` do not take."""
    given = onnx_frontend.onnx_input()
    given.extend(inputs)
    return onnx_frontend._get_convert_map()[op].get_converter(opset)(bb, given, attrs, [{}, {}])


def _floats_at_run_time(inputs: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether all inputs are non-empty float32 tensors and the first one is computed: what the float kernels ask for."""
    given = [expr for expr in inputs if expr is not None]
    plain = all(str(expr.ty.dtype) == "float32" and np.prod(shape_of(expr), dtype=np.int64) for expr in given)
    return bool(plain) and values[0] is None


def _paddings(attrs: dict[str, Any], sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]) -> list[int]:
    """``pads`` (all starts, then all ends) that the attributes ask for, ``windows`` being dilated."""
    mode = attrs.get("auto_pad", b"NOTSET").decode()
    if not mode.startswith("SAME"):
        return list(attrs.get("pads", [0] * 2 * len(sizes))) if mode == "NOTSET" else [0] * 2 * len(sizes)
    totals = [
        max(0, (-(-size // stride) - 1) * stride + window - size)
        for size, window, stride in zip(sizes, windows, strides, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if mode == "SAME_UPPER" else large + small


@converter("Conv")
def conv(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's arrives without a schedule. Float32, one or two axes."""
    data, weights = shape_of(inputs[0]), shape_of(inputs[1])
    axes = len(data) - 2
    given = [expr for expr in inputs if expr is not None]
    if axes not in (1, 2) or not _floats_at_run_time(given, values):
        if attrs.get("epilogue"):
            raise ValueError("an epilogue for a convolution that is not ours")
        return _standard("Conv", bb, inputs, attrs)
    group, strides = attrs.get("group", 1), list(attrs.get("strides", [1] * axes))
    dilations = list(attrs.get("dilations", [1] * axes))
    windows = [(size - 1) * dilation + 1 for size, dilation in zip(weights[2:], dilations, strict=True)]
    pads = _paddings(attrs, data[2:], windows, strides)
    out = [(data[2 + i] + pads[i] + pads[axes + i] - windows[i]) // strides[i] + 1 for i in range(axes)]
    if min(*out, *pads, 0) < 0 or min(out) < 1:
        return _standard("Conv", bb, inputs, attrs)
    # One axis is the last of two. Pads at the ends are implied by the output's size.
    missing = 2 - axes
    described = {
        "group": group,
        "window": [1] * missing + list(weights[2:]),
        "strides": [1] * missing + strides,
        "dilations": [1] * missing + dilations,
        "pads": [0] * missing + pads[:axes] + [0] * missing + pads[axes:],
    }
    kernel = "depthwise" if weights[1] == 1 and group > 1 else "conv"
    described["epilogue"], parameters = finish(attrs.get("epilogue", ()))
    given += [relax.const(value) for value in parameters]
    return float_calls.emit(bb, kernel, described, given, (data[0], weights[0], *out))


def finish(steps: Sequence[EpilogueStep]) -> tuple[list[tuple[str, int]], list[np.ndarray]]:
    """Steps of an epilogue as ``kernels/float_finish.py`` takes them: operations, and the parameters of all."""
    described: list[tuple[str, int]] = []
    parameters: list[np.ndarray] = []
    for step in steps:
        own = [value for value in (step.p, step.q) if isinstance(value, np.ndarray)]
        described.append((step.op, len(own)))
        parameters += [np.ascontiguousarray(value, np.float32) for value in own]
    return described, parameters


@converter("Gemm")
def gemm(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's arrives without a schedule. A constant right side is laid out here."""
    extra = inputs[2] if len(inputs) > 2 else None
    if not _floats_at_run_time(inputs, values):
        return _standard("Gemm", bb, inputs, attrs)
    left, right, constant = inputs[0], inputs[1], values[1]
    if attrs.get("transA", 0):
        left = bb.emit(relax.op.permute_dims(left))
    if attrs.get("transB", 0):
        right = bb.emit(relax.op.permute_dims(right)) if constant is None else right
        constant = None if constant is None else constant.T
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    columns = shape_of(right)[1] if constant is None else constant.shape[1]
    bias = None
    if constant is None:
        made = _products(bb, left, right)
    else:
        given = values[2] if extra is not None and alpha == beta == 1 else None
        # [n] or [1, n], or one number; [n, 1] of as many rows as columns is another matter.
        if given is not None and given.size in (1, columns) and given.shape[-1:] in ((), (given.size,)):
            bias, extra = np.broadcast_to(given.reshape(-1), (columns,)), None
        made = linear(bb, left, constant, bias, (shape_of(left)[0], columns))
    if alpha != 1:
        made = relax.op.multiply(bb.emit(made), relax.const(alpha, "float32"))
    if extra is not None:
        scaled = extra if beta == 1 else bb.emit(relax.op.multiply(extra, relax.const(beta, "float32")))
        made = relax.op.add(bb.emit(made), scaled)
    return made


@converter("MatMul")
def matmul(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's arrives without a schedule. Float32; batch axes alike on both sides, or on one side alone."""
    left, right = shape_of(inputs[0]), shape_of(inputs[1])
    computed = _floats_at_run_time(inputs, values) or _floats_at_run_time(inputs[::-1], values[::-1])
    alike = left[:-2] == right[:-2] or len(left) == 2 or len(right) == 2
    if not computed or not alike or min(len(left), len(right)) < 2:
        return _standard("MatMul", bb, inputs, attrs)
    if values[1] is not None and len(right) == 2:
        return linear(bb, inputs[0], values[1], None, (*left[:-1], right[-1]))
    return _products(bb, inputs[0], inputs[1])


def linear(
    bb: Any,
    left: Any,
    right: np.ndarray,
    bias: np.ndarray | None,
    shape: Sequence[int],
    steps: Sequence[EpilogueStep] = (),
) -> Any:
    """``left [..., k] @ right [k, n]`` with a constant right side, and steps on its columns."""
    depth, columns = right.shape
    args = [left, relax.const(float_product.lay_out(right))]
    if bias is not None:
        args.append(relax.const(float_product.lay_out(bias[None]).reshape(-1)))
    described, parameters = finish(steps)
    args += [relax.const(float_product.lay_out(value[None]).reshape(-1)) for value in parameters]
    attrs = {"m": int(np.prod(shape[:-1])), "k": depth, "n": columns, "epilogue": described}
    return float_calls.emit(bb, "linear", attrs, args, shape)


def _products(bb: Any, left: Any, right: Any) -> Any:
    """``left [..., m, k] @ right [..., k, n]``; one of them may be a plain matrix."""
    a, b = shape_of(left), shape_of(right)
    rows, batches = a[-2], b[:-2] or a[:-2]
    shape = (*batches, rows, b[-1])
    batch = int(np.prod(batches))
    if len(b) == 2:  # all rows meet the same columns
        rows, batch = rows * batch, 1
    row_batches = batch if len(a) > 2 and len(b) > 2 else 1
    attrs = {"batch": batch, "row_batches": row_batches, "m": rows, "k": a[-1], "n": b[-1]}
    return float_calls.emit(bb, "matmul", attrs, [left, right], shape)


@converter("IsInf")
def is_infinite(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's ignores ``detect_positive`` and ``detect_negative``."""
    found, zero = bb.emit(relax.op.isinf(inputs[0])), relax.const(0.0, dtype_of(inputs[0]))
    if not attrs.get("detect_positive", 1):
        found = bb.emit(relax.op.logical_and(found, relax.op.less(inputs[0], zero)))
    if not attrs.get("detect_negative", 1):
        found = bb.emit(relax.op.logical_and(found, relax.op.greater(inputs[0], zero)))
    return found


@converter("Mod")
def modulo(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's gives a zero of the wrong sign, or NaN for an infinite divisor, for floats without ``fmod``."""
    if attrs.get("fmod", 0):
        return relax.op.mod(inputs[0], inputs[1])
    if dtype_of(inputs[0]).startswith("float"):
        raise ValueError("fmod = 0 on floats: only the remainder of C (fmod = 1) is computed")
    return relax.op.floor_mod(inputs[0], inputs[1])


@converter("Pow")
def power(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's wants one element type for both operands, and makes no kernel for integers."""
    base, exponent = inputs
    if not dtype_of(base).startswith("float"):
        raise ValueError("the base is an integer: cast it to float32 first")
    if dtype_of(exponent) != dtype_of(base):
        exponent = bb.emit(relax.op.astype(exponent, dtype_of(base)))
    return relax.op.power(base, exponent)


def _normalized_axes(inputs: list[Any], attrs: dict[str, Any]) -> list[int]:
    rank = len(shape_of(inputs[0]))
    if dtype_of(inputs[0]) != "float32":
        raise ValueError("only float32 is normalized")
    return list(range(attrs.get("axis", -1) % rank, rank))


@converter("LayerNormalization")
def layer_normalization(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's takes the axes from the shape of the scale, which may be broadcast, and does not give mean and deviation."""
    axes = _normalized_axes(inputs, attrs)
    x, scale, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    sizes = shape_of(x)[axes[0] :]
    epsilon = attrs.get("epsilon", 1e-5)
    mean = bb.emit(relax.op.mean(x, axes, keepdims=True))
    spread = bb.emit(relax.op.add(relax.op.variance(x, axes, keepdims=True), relax.const(epsilon, "float32")))
    deviation = bb.emit(relax.op.divide(relax.const(1.0, "float32"), relax.op.sqrt(spread)))
    if shape_of(scale) == sizes and (bias is None or shape_of(bias) == sizes) and np.prod(shape_of(x), dtype=np.int64):
        described = {"size": int(np.prod(sizes, dtype=np.int64)), "epsilon": epsilon}
        given = [x, scale] if bias is None else [x, scale, bias]
        return relax.Tuple([float_calls.emit(bb, "layer_norm", described, given, shape_of(x)), mean, deviation])
    y = bb.emit(relax.op.multiply(relax.op.multiply(relax.op.subtract(x, mean), deviation), scale))
    return relax.Tuple([y if bias is None else relax.op.add(y, bias), mean, deviation])


@converter("Softmax")
def softmax(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's arrives without a schedule. Float32, along the last axis (or one that only axes of size 1 follow)."""
    shape = shape_of(inputs[0])
    axis = attrs.get("axis", -1) % max(1, len(shape))
    if not shape or not _floats_at_run_time(inputs, values) or shape[axis] != np.prod(shape[axis:], dtype=np.int64):
        return _standard("Softmax", bb, inputs, attrs)
    return float_calls.emit(bb, "softmax", {"size": shape[axis]}, inputs, shape)


@converter("RMSNormalization")
def rms_normalization(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's fails on several axes, and on a scale that is broadcast."""
    axes = _normalized_axes(inputs, attrs)
    square = bb.emit(relax.op.mean(relax.op.multiply(inputs[0], inputs[0]), axes, keepdims=True))
    size = bb.emit(relax.op.sqrt(relax.op.add(square, relax.const(attrs.get("epsilon", 1e-5), "float32"))))
    return relax.op.multiply(relax.op.divide(inputs[0], size), inputs[1])


@converter("Resize")
def resize(bb: Any, inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """TVM's ignores ``axes`` and ``antialias``, takes the ratio of the sizes for the scale, and resizes the last two or
    three axes only. Interpolation is linear and works on one axis after the other: ONNX Runtime tells the weights, by
    resizing a unit matrix."""
    given = [*values, None, None, None]
    roi, scales, sizes = (None if v is None or not v.size else v for v in given[1:4])
    lacking = [i for i, expr in enumerate(inputs[1:], 1) if expr is not None and values[i] is None]
    if lacking or (scales is None and sizes is None):
        raise ValueError("scales, sizes and roi must be constant")
    if attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("keep_aspect_ratio_policy is not stretch")
    if attrs.get("extrapolation_value", 0.0) != 0.0:
        raise ValueError("extrapolation_value is not 0")
    if attrs.get("mode", b"nearest") != b"nearest" and dtype_of(inputs[0]) != "float32":
        raise ValueError("interpolation of integers: cast to float32 first")
    rank = len(shape_of(inputs[0]))
    axes = [axis % rank for axis in attrs.get("axes", range(rank))]
    x = inputs[0]
    lengths = [shape_of(x)[axis] for axis in axes]
    whole = scales is None or not any(n * float(scale) % 1 for n, scale in zip(lengths, scales, strict=True))
    if not whole and attrs.get("coordinate_transformation_mode") == b"align_corners":
        raise ValueError("align_corners with scales that give no whole sizes: give sizes, ONNX is ambiguous here")
    for number, axis in enumerate(axes):
        feeds = {"x": np.eye(lengths[number], dtype=np.float32)}
        if roi is not None:
            bounds = roi[[number, number + len(axes)]]
            feeds["roi"] = np.array([0, bounds[0], 1, bounds[1]], np.float32)
        if scales is not None:
            feeds["scales"] = np.array([1, scales[number]], np.float32)
        else:
            assert sizes is not None
            feeds["sizes"] = np.array([lengths[number], sizes[number]], np.int64)
        names = [name if name in feeds else "" for name in ("x", "roi", "scales", "sizes")]
        kept = {key: value for key, value in attrs.items() if key not in ("axes", "tvm_custom")}
        node = helper.make_node("Resize", names, ["y"], **kept)
        x = _interpolate(bb, x, axis, golden.evaluate([node], feeds, ["y"])["y"].T)
    return x


def _interpolate(bb: Any, x: Any, axis: int, weights: np.ndarray) -> Any:
    """``y[.., i, ..] = sum over j of weights[i, j] * x[.., j, ..]`` along an axis; each i has few j."""
    count, size = weights.shape
    taps = max(1, int((weights != 0).sum(1).max(initial=0)))
    if count == size and (weights == np.eye(size)).all():
        return x
    places = np.sort(np.argsort(weights == 0, axis=1, kind="stable")[:, :taps], axis=1).astype(np.int64)
    factors = np.take_along_axis(weights, places, axis=1)
    if taps == 1 and (factors == 1).all():
        return bb.emit(relax.op.take(x, relax.const(places[:, 0], "int64"), axis=axis))

    def compute(data: te.Tensor, place: te.Tensor, factor: te.Tensor) -> te.Tensor:
        shape = [*data.shape[:axis], count, *data.shape[axis + 1 :]]

        def tap(index: tuple[Any, ...], k: Any) -> Any:
            i = index[axis]
            return factor[i, k] * data(*index[:axis], place[i, k], *index[axis + 1 :])

        if taps > 4:
            k = te.reduce_axis((0, taps), "k")
            return te.compute(shape, lambda *index: te.sum(tap(index, k), axis=k), name="interpolate")
        return te.compute(
            shape, lambda *index: functools.reduce(lambda a, b: a + b, [tap(index, k) for k in range(taps)])
        )

    tables = [relax.const(places.astype(np.int32), "int32"), relax.const(factors.astype(np.float32), "float32")]
    return bb.emit_te(compute, x, *tables, primfunc_name_hint="interpolate")


@check("BatchNormalization")
def _inference_only(inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> None:
    """TVM's gives other running statistics."""
    if attrs.get("training_mode", 0):
        raise ValueError("training_mode is set: export the model for inference")


@check("RoiAlign")
def _average_only(inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> None:
    """TVM's takes the maximum of interpolated values, ONNX of the values that are interpolated."""
    if attrs.get("mode", b"avg") != b"avg":
        raise ValueError("mode max is not computed")


@check("ReduceMax", "ReduceMin")
def _no_truth_values(inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> None:
    """TVM knows no least value of bool."""
    if dtype_of(inputs[0]) == "bool":
        raise ValueError("the input is bool: cast it to uint8 first")


@check("Scatter", "ScatterElements", "ScatterND", "MaxUnpool")
def _no_scatter(inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> None:
    """TVM writes these kernels as code that its own scheduler cannot read."""
    raise ValueError("TVM's scatter kernels cannot be built without its runtime")


@check("Attention")
def _no_attention(inputs: list[Any], values: Sequence[Any], attrs: dict[str, Any]) -> None:
    """TVM's is the operator of this name of ``com.microsoft``, another one."""
    raise ValueError("xnorc has no lowering for this operator: export attention as MatMul and Softmax")
