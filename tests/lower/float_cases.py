"""One small model per use of every standard operator that xnorc claims: what each must compute is ONNX Runtime's word.

The cases are merged into one model, so that one compilation tests them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xnorc.opset import IR_VERSION

OPSET = 18


@dataclass
class Case:
    """``inputs`` are fed at run time; ``constants`` follow them as the node's inputs (None: left out)."""

    op: str
    inputs: list[np.ndarray]
    constants: list[np.ndarray | None] = field(default_factory=list)
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    tolerance: float = 2e-6
    """Relative to the largest output: float32 rounding of another order of summation or another libm."""


def _rand(*shape: int, seed: int = 0, low: float = -2, high: float = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def float_cases() -> list[Case]:
    x4 = _rand(1, 6, 9, 7)
    x3 = _rand(2, 5, 8, seed=1)
    x2 = _rand(3, 20, seed=2)
    cases = [
        Case("Conv", [x4], [_rand(8, 6, 3, 3, seed=3), _rand(8, seed=4)], {"pads": [1, 1, 1, 1]}),
        Case("Conv", [x4], [_rand(8, 6, 3, 3, seed=3)], {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
        Case("Conv", [x4], [_rand(8, 6, 3, 2, seed=3)], {"dilations": [2, 3]}),
        Case("Conv", [x4], [_rand(6, 1, 3, 3, seed=3), _rand(6, seed=5)], {"group": 6, "pads": [1, 1, 1, 1]}),
        Case("Conv", [x4], [_rand(9, 2, 3, 3, seed=3)], {"group": 3}),
        Case("Conv", [x4], [_rand(10, 6, 1, 1, seed=3)]),
        Case("Conv", [_rand(2, 3, 8, 8)], [_rand(4, 3, 5, 5, seed=3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Case("Conv", [_rand(1, 4, 16)], [_rand(6, 4, 3, seed=3), _rand(6)], {"pads": [1, 1], "strides": [2]}),
        Case("Gemm", [x2], [_rand(20, 7, seed=3), _rand(7, seed=4)]),
        Case("Gemm", [x2], [_rand(7, 20, seed=3), _rand(7, seed=4)], {"transB": 1}),
        Case("Gemm", [x2], [_rand(3, 5, seed=3), _rand(5, seed=4)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
        Case("Gemm", [x2], [_rand(20, 4, seed=3)]),
        Case("MatMul", [x2], [_rand(20, 6, seed=3)]),
        Case("MatMul", [x3, _rand(2, 8, 3, seed=4)]),
        Case("MatMul", [_rand(2, 3, 4, 5), _rand(2, 3, 5, 4, seed=4)]),
        Case("MatMul", [x3], [_rand(8, 3, seed=4)]),
        Case(
            "BatchNormalization",
            [x4],
            [_rand(6, seed=1), _rand(6, seed=2), _rand(6, seed=3), _rand(6, seed=4, low=0.1, high=2)],
        ),
        Case("MaxPool", [x4], attrs={"kernel_shape": [2, 2], "strides": [2, 2]}),
        Case("MaxPool", [x4], attrs={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        Case("MaxPool", [x4], attrs={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        Case("MaxPool", [x4], attrs={"kernel_shape": [2, 2], "dilations": [2, 2]}),
        Case("MaxPool", [x3], attrs={"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
        Case("AveragePool", [x4], attrs={"kernel_shape": [2, 2], "strides": [2, 2]}),
        Case("AveragePool", [x4], attrs={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        Case("AveragePool", [x4], attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        Case("AveragePool", [x4], attrs={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        Case("AveragePool", [x3], attrs={"kernel_shape": [3], "pads": [1, 2], "count_include_pad": 1}),
        Case("MaxPool", [_rand(1, 3, 40, 37)], attrs={"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 2, 1]}),
        Case("MaxPool", [_rand(1, 2, 20, 20)], attrs={"kernel_shape": [7, 7], "auto_pad": "SAME_LOWER"}),
        Case("AveragePool", [_rand(2, 3, 31, 40)], attrs={"kernel_shape": [5, 4], "strides": [1, 3]}),
        Case("GlobalAveragePool", [x4]),
        Case("GlobalMaxPool", [x4]),
        Case("PRelu", [x4], [_rand(6, 1, 1, seed=3)]),
        Case("PRelu", [x4], [_rand(1, seed=3)]),
        Case("LeakyRelu", [x4], attrs={"alpha": 0.1}),
        Case("Clip", [x4], [np.float32(-1), np.float32(1)]),
        Case("Clip", [x4], [np.float32(0)]),
        Case("Clip", [x4], [None, np.float32(0.5)]),
        Case("HardSigmoid", [x4], attrs={"alpha": 0.3, "beta": 0.4}),
        Case("HardSwish", [x4]),
        Case("Elu", [x4], attrs={"alpha": 0.7}),
        Case("Selu", [x4]),
        Case("ThresholdedRelu", [x4], attrs={"alpha": 0.5}),
        Case("Softmax", [x3]),
        Case("Softmax", [x4], attrs={"axis": 1}),
        Case("Softmax", [np.float32([[0, -np.inf, 3, -200, 1e30, 0, -90, 2, -np.inf]] * 2)]),
        *(Case("Softmax", [_rand(3, n, low=-20, high=20)]) for n in (1, 7, 8, 33, 100)),
        Case("Softmax", [_rand(3, 70, 1, 1)], attrs={"axis": 1}),
        *(Case("LayerNormalization", [_rand(5, n)], [_rand(n, seed=3), _rand(n, seed=4)]) for n in (2, 9, 64, 77)),
        Case("LayerNormalization", [_rand(2, 5, 9)], [_rand(5, 9, seed=3)], {"axis": 1}),
        Case("LogSoftmax", [x2], attrs={"axis": -1}),
        Case("LayerNormalization", [x3], [_rand(8, seed=3), _rand(8, seed=4)], {"axis": -1, "epsilon": 1e-5}),
        Case("LayerNormalization", [x3], [_rand(8, seed=3)]),
        Case("InstanceNormalization", [x4], [_rand(6, seed=3), _rand(6, seed=4)]),
        Case("Concat", [x4, _rand(1, 2, 9, 7, seed=8)], attrs={"axis": 1}),
        Case("Concat", [x3, x3 * 2], attrs={"axis": -1}),
        Case("Split", [x4], [_ints(1, 2, 3)], {"axis": 1}, outputs=3),
        Case("Split", [x2], [], {"axis": 1, "num_outputs": 2}, outputs=2),
        Case("Reshape", [x4], [_ints(1, 2, -1, 7)]),
        Case("Reshape", [x4], [_ints(0, -1)]),
        Case("Flatten", [x4]),
        Case("Transpose", [x4], attrs={"perm": [0, 2, 3, 1]}),
        Case("Transpose", [x3]),
        Case("Squeeze", [_rand(1, 4, 1, 5)], [_ints(0, 2)]),
        Case("Unsqueeze", [x2], [_ints(0, 2)]),
        Case("Expand", [_rand(3, 1)], [_ints(2, 3, 4)]),
        Case("Tile", [x2], [_ints(2, 1)]),
        Case("Pad", [x4], [_ints(0, 1, 2, 0, 0, 0, 1, 3), np.float32(1.5)]),
        Case("Pad", [x4], [_ints(0, 0, 1, 1, 0, 0, 1, 1)]),
        Case("Pad", [x4], [_ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
        Case("Pad", [x4], [_ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
        Case("Slice", [x4], [_ints(1, 2), _ints(4, 9), _ints(1, 2), _ints(1, 3)]),
        Case("Einsum", [_rand(2, 3, 8), _rand(3, 9, 8)], attrs={"equation": "qms,mks->qmk"}),
        Case("Slice", [x2], [_ints(-5), _ints(-1), _ints(1)]),
        Case("Slice", [x2], [_ints(10), _ints(0), _ints(1), _ints(-2)]),
        Case("Gather", [x2], [_ints(2, 0, 0)], {"axis": 0}),
        Case("Gather", [x3], [np.int64(-1)], {"axis": 1}),
        Case("Gather", [x3, np.array([[1, -1], [0, 2]], np.int64)], attrs={"axis": 1}),
        Case("ReduceMean", [x4], [_ints(2, 3)], {"keepdims": 1}),
        Case("ReduceMean", [x3], [_ints(-1)], {"keepdims": 0}),
        Case("ReduceSum", [x3], [_ints(1)], {"keepdims": 0}),
        Case("ReduceMax", [x3], [_ints(-1)], {"keepdims": 1}),
        Case("ReduceMin", [x3], [_ints(0)], {"keepdims": 0}),
        Case("ArgMax", [x3], attrs={"axis": -1, "keepdims": 0}),
        Case("TopK", [x2], [_ints(1)], outputs=2, tolerance=0),
        Case("TopK", [x3], [_ints(1)], {"axis": 0, "largest": 0}, outputs=2, tolerance=0),
        Case("TopK", [np.round(x2)], [_ints(5)], outputs=2, tolerance=0),
        Case("TopK", [np.round(x4)], [_ints(4)], {"axis": 1, "largest": 0}, outputs=2, tolerance=0),
        Case("TopK", [np.float32([[0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, -0.0, 2, 2]])], [_ints(9)], outputs=2),
        Case("TopK", [np.float32([[0.0, -0.0, 1e-45, -3, 7, -3]])], [_ints(5)], {"largest": 0}, outputs=2),
        Case("TopK", [np.round(_rand(3, 9001), 2)], [_ints(33)], outputs=2),
        Case("TopK", [np.array([[3, -1, 3, 7, -1, 0]], np.int32)], [_ints(6)], outputs=2),
        Case("Resize", [x4], [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
        Case(
            "Resize",
            [x4],
            [None, np.array([1, 1, 2, 2], np.float32)],
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
        Case("Resize", [x4], [None, None, _ints(1, 6, 18, 21)], {"mode": "linear"}, tolerance=1e-5),
        Case(
            "Resize",
            [x4],
            [None, None, _ints(1, 6, 17, 13)],
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            tolerance=1e-5,
        ),
        Case("Where", [np.array([[True, False, True]]), _rand(2, 3), _rand(2, 1, seed=5)]),
        Case("Cast", [x2], attrs={"to": TensorProto.INT32}),
        Case("Cast", [np.arange(-3, 5, dtype=np.int32)], attrs={"to": TensorProto.FLOAT}),
        Case("Pow", [np.abs(x2)], [np.float32(2)]),
        Case("Pow", [np.abs(x2)], [np.float32(0.5)]),
        Case("Min", [x2, x2[::-1].copy()]),
        Case("Max", [x2, x2[::-1].copy()]),
        Case("DepthToSpace", [_rand(1, 8, 3, 4)], attrs={"blocksize": 2}),
        Case(
            "ConvTranspose", [_rand(1, 4, 5, 6)], [_rand(4, 3, 3, 3, seed=3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        ),
        Case("GatherElements", [x2], [np.array([[0, 3, 5], [1, 1, 2], [19, 0, 7]], np.int64)], {"axis": 1}),
    ]
    for op in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos",
               "Softplus", "Softsign", "Identity"):  # fmt: skip
        cases.append(Case(op, [x4]))
    for op in ("Sqrt", "Log", "Reciprocal"):
        cases.append(Case(op, [np.abs(x4) + np.float32(0.1)]))
    for op in ("Add", "Sub", "Mul", "Div"):
        cases.append(Case(op, [x4, _rand(1, 6, 1, 1, seed=9, low=0.5, high=3)], tolerance=0))
        cases.append(Case(op, [x4], [_rand(7, seed=9, low=0.5, high=3)], tolerance=0))
        cases.append(Case(op, [_rand(1), x3 + 5], tolerance=0))
        cases.append(Case(op, [np.array([7, -8, 9], np.int32), np.array([2, 3, -4], np.int32)]))
    for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
        cases.append(Case(op, [np.round(x2), np.round(x2[::-1].copy())]))
    for op in ("And", "Or", "Xor"):
        cases.append(Case(op, [x2 > 0, x2 > 1]))
    cases.append(Case("Not", [x2 > 0]))
    return cases


def merged(cases: Sequence[Case]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One model with every case as a node of its own, and what to feed it. Outputs of case i: ``y{i}_{k}``."""
    nodes, inputs, initializers, outputs, feeds = [], [], [], [], {}
    for i, case in enumerate(cases):
        names = []
        for k, array in enumerate(case.inputs):
            names.append(f"x{i}_{k}")
            feeds[names[-1]] = array
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(names[-1], kind, array.shape))
        for k, constant in enumerate(case.constants):
            names.append("" if constant is None else f"c{i}_{k}")
            if constant is not None:
                initializers.append(numpy_helper.from_array(np.asarray(constant), names[-1]))
        made = [f"y{i}_{k}" for k in range(case.outputs)]
        nodes.append(helper.make_node(case.op, names, made, name=f"{case.op}_{i}", **case.attrs))
        outputs += [helper.make_empty_tensor_value_info(name) for name in made]
    graph = helper.make_graph(nodes, "cases", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred, feeds
