"""``LookupSum``: sums of table entries that codes of at most 8 bits choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register


@register
class LookupSum(Operator):
    """``y[q, d] = Σ_m tables[q, m, codes[d, m]]``, a float32 sum in any order.

    ``tables``: float32 ``[Q, M, K]``, K at most 256; ``codes``: uint8 ``[D, M]``, each below K; output: float32 ``[Q, D]``.

    The scan of product quantization (Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011, asymmetric
    distances), as in JPQ (Zhan et al., CIKM 2021): M tables of a query's products with the centroids, M bytes a document.
    """

    name = "LookupSum"
    inputs = ("tables", "codes")
    attributes = {}
    body = """
    tables_shape = Shape (tables)
    one_dim = Constant <value_ints = [1]> ()
    two_dim = Constant <value_ints = [2]> ()
    three_dim = Constant <value_ints = [3]> ()
    zero_long = Constant <value_int = 0> ()
    one_long = Constant <value_int = 1> ()
    last_axis = Constant <value_ints = [-1]> ()
    count_dim = Slice (tables_shape, one_dim, two_dim)
    count = Squeeze (count_dim)
    entries = Slice (tables_shape, two_dim, three_dim)
    group = Range (zero_long, count, one_long)
    start = Mul (group, entries)
    codes_long = Cast <to = 7> (codes)
    places = Add (codes_long, start)
    flat_shape = Constant <value_ints = [0, -1]> ()
    flat = Reshape (tables, flat_shape)
    chosen = Gather <axis = 1> (flat, places)
    y = ReduceSum <keepdims = 0> (chosen, last_axis)
    """
    kernel = "lookup_sum:lookup_sum"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``float32 [Q, D]``."""
        tables, codes = inputs
        if len(tables.shape) != 3 or tables.dtype != np.float32 or not 1 <= tables.shape[2] <= 256:
            raise ValueError(f"tables must be float32 [Q, M, K] with K from 1 to 256, are {tables}")
        if len(codes.shape) != 2 or codes.dtype != np.uint8 or codes.shape[1] != tables.shape[1]:
            raise ValueError(f"codes must be uint8 [D, {tables.shape[1]}], are {codes}")
        return TensorType((tables.shape[0], codes.shape[0]), np.dtype(np.float32))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class. Raises ``ValueError`` for a code that is no entry."""
        tables, codes = inputs
        cls.infer([TensorType.of(x) for x in inputs], attrs)
        if codes.size and int(codes.max()) >= tables.shape[2]:
            raise ValueError(f"a code is {codes.max()}, but a table has {tables.shape[2]} entries")
        total = np.zeros((len(tables), len(codes)), np.float32)
        for m in range(tables.shape[1]):
            total += tables[:, m, codes[:, m]]
        return total
