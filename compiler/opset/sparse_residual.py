"""``SparseResidualGemm``: float32 activations times weights of one bit, but for a few that are stored in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._codes import CODES, PLANES, PRODUCT, infer_product, product, product_macs
from .base import Attrs, TensorType, register
from .low_bit import GROUP_WEIGHTS, LowBit

# After `base_weights` [O, k]: those at (row, column) of the CSR arrays are replaced.
_SALIENT = """
    salient_float = Cast <to = 1> (values)
    starts_long = Cast <to = 7> (starts)
    columns_long = Cast <to = 7> (columns)
    row_ends = Slice (starts_long, at_one, minus_one)
    value_shape = Shape (values)
    one_more = Add (value_shape, at_one)
    no_marks = ConstantOfShape <value = int64[1] {0}> (one_more)
    end_shape = Shape (row_ends)
    marks = ConstantOfShape <value = int64[1] {1}> (end_shape)
    counted = ScatterElements <axis = 0, reduction = "add"> (no_marks, row_ends, marks)
    marked = Slice (counted, at_zero, value_shape)
    axis_zero = Constant <value = int64 {0}> ()
    row_of = CumSum (marked, axis_zero)
    value_zero_each = Gather (value_zero, row_of)
    value_scale_each = Gather (value_scale, row_of)
    salient_centred = Sub (salient_float, value_zero_each)
    salient = Mul (salient_centred, value_scale_each)
    row_column = Unsqueeze (row_of, minus_one)
    column_column = Unsqueeze (columns_long, minus_one)
    places = Concat <axis = 1> (row_column, column_column)
    weights = ScatterND (base_weights, places, salient)
"""


@register
class SparseResidualGemm(LowBit):
    """Float32 rows times weights of one bit, some of which 8-bit numbers replace: ``y = Σ x·w``, a float32 sum in any order.

    ``x``: float32 ``[..., K]``; ``w``, ``scale``, ``zero``, ``offset``: one plane of codes, as of ``LowBitGemm``. Weights that
    matter more are listed row by row (CSR): those of channel o are entries ``starts[o]`` to ``starts[o + 1]`` of ``columns``
    (int32 or uint16, rising within a row) and ``values`` (int8), and are ``(value − value_zero[o])·value_scale[o]``, rounded
    after each operation. ``starts``: int32 ``[O + 1]``; ``value_scale``, ``value_zero``: float32 ``[O]``; output float32
    ``[..., O]``.
    """

    name = "SparseResidualGemm"
    inputs = (
        "x", "w", "scale", "zero", "offset", "values", "columns", "starts", "value_scale", "value_zero",
    )  # fmt: skip
    attributes = {"k": int, "group_size": int}
    body = (
        PLANES
        + CODES
        + GROUP_WEIGHTS.replace("weights =", "base_weights =")
        + _SALIENT
        + PRODUCT.replace("columns", "transposed")
    )
    kernel = "sparse_residual:sparse_gemm"
    most_planes = 1

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [..., O]``."""
        cls.check_groups(inputs, attrs)
        values, columns, starts, *tables = inputs[5:]
        channels = inputs[1].shape[1]
        if values.dtype != np.int8 or len(values.shape) != 1 or columns.shape != values.shape:
            raise ValueError(f"values must be int8 [n] and columns as long, are {values} and {columns}")
        if columns.dtype not in (np.int32, np.uint16) or starts.dtype != np.int32 or starts.shape != (channels + 1,):
            raise ValueError(
                f"columns must be int32 or uint16 and starts int32 [{channels + 1}], are {columns} and {starts}"
            )
        if any(table.dtype != np.float32 or table.shape != (channels,) for table in tables):
            raise ValueError(
                f"value_scale and value_zero must be float32 [{channels}], are {tables[0]} and {tables[1]}"
            )
        if not values.shape[0]:
            raise ValueError("there are no values: that is a LowBitGemm")
        return infer_product(inputs[0], inputs[1], attrs["k"])

    @classmethod
    def check_lists(cls, columns: np.ndarray, starts: np.ndarray, k: int) -> None:
        """Raise ``ValueError`` unless the lists lie in order and inside the weights."""
        if starts[0] != 0 or starts[-1] != len(columns) or (np.diff(starts) < 0).any():
            raise ValueError(f"starts must rise from 0 to {len(columns)}")
        if (columns < 0).any() or (columns >= k).any():
            raise ValueError(f"columns must lie in [0, {k})")
        step = np.diff(columns.astype(np.int64))
        ends = starts[1:-1]
        step[ends[(ends > 0) & (ends < len(columns))] - 1] = 1
        if (step <= 0).any():
            raise ValueError("columns must rise within a row")

    @classmethod
    def weights(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """The weights ``float32 [O, K]``."""
        made = super().weights(inputs, attrs).copy()
        values, columns, starts, scale, zero = inputs[5:]
        cls.check_lists(columns, starts, attrs["k"])
        row = np.repeat(np.arange(len(made)), np.diff(starts))
        made[row, columns.astype(np.int64)] = (values.astype(np.float32) - zero[row]) * scale[row]
        return made

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        return product(inputs[0], cls.weights(inputs, attrs))

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Rows times weights."""
        return product_macs(inputs[0], inputs[1])
