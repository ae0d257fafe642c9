"""Nearest neighbours among codes: ``HammingTopK``, ``LookupTopK`` and ``RerankTopK``.

All three give ``int32 [Q, k, 2]``: for each query its k best documents, best first, each as (value, document). The value is
an integer and ties go to the document with the lower number, so the result is one and the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .pack import UNPACK_LAST_AXIS, UNPACK_WEIGHTS

LEVELS = 16
"""Entries of one table of ``LookupTopK``: what 4 bits can say."""

# Scores int32 `score` [Q, N] and int64 `documents` of that shape (or one that broadcasts to it): the k largest scores,
# ties by lower document. A key that joins both is unique, so no two runtimes can order it in two ways. `count` (int64
# scalar) is more than any document. Mod first: Div rounds towards zero.
_BEST = """
    score_long = Cast <to = 7> (score)
    scaled = Mul (score_long, count)
    one_long = Constant <value_int = 1> ()
    last_document = Sub (count, one_long)
    rank = Sub (last_document, documents)
    key = Add (scaled, rank)
    k_int = Constant <value_int: int = @k> ()
    one_dim = Constant <value_ints = [1]> ()
    k_dim = Reshape (k_int, one_dim)
    best, places = TopK <axis = -1, largest = 1, sorted = 1> (key, k_dim)
    best_rank = Mod (best, count)
    best_scaled = Sub (best, best_rank)
    best_score = Div (best_scaled, count)
    best_document = Sub (last_document, best_rank)
"""

# The pairs of `best_value` and `best_document`.
_PAIRS = """
    last_axis = Constant <value_ints = [-1]> ()
    value_column = Unsqueeze (best_value, last_axis)
    document_column = Unsqueeze (best_document, last_axis)
    pairs = Concat <axis = -1> (value_column, document_column)
    y = Cast <to = 6> (pairs)
"""

# Number of rows of `table` as int64 scalar `count`.
_COUNT_ROWS = """
    table_shape = Shape (table)
    first_axis = Constant <value_int = 0> ()
    count = Gather (table_shape, first_axis)
"""


def hits(values: np.ndarray, documents: np.ndarray, k: int, largest: bool) -> np.ndarray:
    """The k best of every row: ``values`` and ``documents`` integers ``[Q, N]`` → int32 ``[Q, k, 2]``."""
    signed = values.astype(np.int64) * (-1 if largest else 1)
    order = np.lexsort((documents, signed), axis=-1)[:, :k]
    chosen = [np.take_along_axis(array, order, axis=-1) for array in (values, documents)]
    return np.stack(chosen, axis=-1).astype(np.int32)


def _every_document(queries: int, documents: int) -> np.ndarray:
    return np.broadcast_to(np.arange(documents), (queries, documents))


def _check_k(attrs: Attrs, most: int, what: str) -> None:
    if not 1 <= attrs["k"] <= most:
        raise ValueError(f"k is {attrs['k']}: it must be 1 to {most}, the number of {what}")


@register
class HammingTopK(Operator):
    """The ``k`` documents whose codes differ from the query's in the fewest bits.

    ``queries``: uint8 ``[Q, B]``, ``corpus``: uint8 ``[D, B]``, both packed bits; output: int32 ``[Q, k, 2]`` of (distance,
    document), nearest first, ties by lower document. Every one of the 8·B bits counts, so tail bits must be equal in both
    (zero, as everywhere). For codes of ±1 of length C the inner product is C − 2·distance: the order is the same.
    """

    name = "HammingTopK"
    inputs = ("queries", "corpus")
    attributes = {"k": int}
    body = (
        """
    packed = Identity (queries)
    w = Identity (corpus)
    table = Identity (corpus)
    """
        + UNPACK_LAST_AXIS
        + UNPACK_WEIGHTS
        + _COUNT_ROWS
        + """
    bits_float = Cast <to = 1> (bits)
    w_float = Cast <to = 1> (w_bits)
    w_columns = Transpose <perm = [1, 0]> (w_float)
    both_float = MatMul (bits_float, w_columns)
    both = Cast <to = 6> (both_float)
    ones = ReduceSum <keepdims = 1> (bits, unpack_last)
    w_ones_column = ReduceSum <keepdims = 1> (w_bits, unpack_last)
    w_ones = Transpose <perm = [1, 0]> (w_ones_column)
    all_ones = Add (ones, w_ones)
    both_twice = Mul (both, two)
    distance = Sub (all_ones, both_twice)
    score = Neg (distance)
    from_zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    documents = Range (from_zero, count, step)
    """
        + _BEST
        + "    best_value = Neg (best_score)\n"
        + _PAIRS
    )
    kernel = "search:hamming_top_k"
    factors = (1, 1)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [Q, k, 2]``."""
        queries, corpus = inputs
        if any(len(x.shape) != 2 or x.dtype != np.uint8 for x in inputs) or queries.shape[1] != corpus.shape[1]:
            raise ValueError(f"queries must be uint8 [Q, B] and corpus uint8 [D, B], are {queries} and {corpus}")
        _check_k(attrs, corpus.shape[0], "documents")
        return TensorType((queries.shape[0], attrs["k"], 2), np.dtype(np.int32))

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Queries times documents times bits."""
        return inputs[0].shape[0] * inputs[1].shape[0] * inputs[1].shape[1] * 8

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        queries, corpus = inputs
        cls.infer([TensorType.of(x) for x in inputs], attrs)
        distance = np.stack([np.bitwise_count(row ^ corpus).sum(axis=-1, dtype=np.int64) for row in queries])
        return hits(distance, _every_document(*distance.shape), attrs["k"], largest=False)


@register
class LookupTopK(Operator):
    """The ``k`` documents with the largest sums of table entries, one entry for every 4 bits of their codes.

    ``tables``: uint8 ``[Q, M, 16]``, M tables a query; ``codes``: uint8 ``[D, ceil(M/2)]``, the M numbers 0 to 15 of every
    document, number m in the low half of byte m/2 when m is even and in the high half when it is odd; ``scale``: int32
    ``[D]``. The score of a document is ``(Σ_m tables[q, m, number m] − bias) · scale``. Output: int32 ``[Q, k, 2]`` of (score,
    document), largest score first, ties by lower document.

    No table entry may exceed ``peak`` (1 to 255): the smaller it is, the longer sums stay in bytes. No score may leave int32.
    This is the scan behind the symmetric distance of BEBR (arXiv 2302.08714: two dimensions of two bits each are a number,
    rows of one 16 × 16 table are the tables, 1/norm is the scale) and behind 4-bit product quantization with tables of the
    float query ("fast scan", André et al., VLDB 2015).
    """

    name = "LookupTopK"
    inputs = ("tables", "codes", "scale")
    attributes = {"k": int, "bias": int, "peak": int}
    body = (
        """
    table = Identity (codes)
    """
        + _COUNT_ROWS
        + """
    axis_last = Constant <value_ints = [-1]> ()
    axis_first = Constant <value_ints = [0]> ()
    axis_second = Constant <value_ints = [1]> ()
    tables_shape = Shape (tables)
    axis_third = Constant <value_ints = [2]> ()
    groups = Slice (tables_shape, axis_second, axis_third)
    codes_int = Cast <to = 6> (codes)
    sixteen = Constant <value = int32 {16}> ()
    low = Mod (codes_int, sixteen)
    high = Div (codes_int, sixteen)
    low_column = Unsqueeze (low, axis_last)
    high_column = Unsqueeze (high, axis_last)
    halves = Concat <axis = -1> (low_column, high_column)
    flat_shape = Constant <value_ints = [0, -1]> ()
    halves_flat = Reshape (halves, flat_shape)
    numbers = Slice (halves_flat, axis_first, groups, axis_last)
    numbers_long = Cast <to = 7> (numbers)
    zero_long = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    groups_scalar = Squeeze (groups, axis_first)
    group = Range (zero_long, groups_scalar, step)
    sixteen_long = Constant <value_int = 16> ()
    start = Mul (group, sixteen_long)
    places_in_table = Add (numbers_long, start)
    tables_int = Cast <to = 6> (tables)
    tables_flat = Reshape (tables_int, flat_shape)
    entries = Gather <axis = 1> (tables_flat, places_in_table)
    sums = ReduceSum <keepdims = 0> (entries, axis_last)
    bias_long = Constant <value_int: int = @bias> ()
    bias_int = Cast <to = 6> (bias_long)
    centred = Sub (sums, bias_int)
    score = Mul (centred, scale)
    documents = Range (zero_long, count, step)
    """
        + _BEST
        + "    best_value = Identity (best_score)\n"
        + _PAIRS
    )
    kernel = "search:lookup_top_k"
    factors = (8, 8)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [Q, k, 2]``."""
        tables, codes, scale = inputs
        if len(tables.shape) != 3 or tables.shape[2] != LEVELS or tables.dtype != np.uint8:
            raise ValueError(f"tables must be uint8 [Q, M, {LEVELS}], are {tables}")
        if codes.shape[1:] != ((tables.shape[1] + 1) // 2,) or codes.dtype != np.uint8:
            raise ValueError(f"codes must be uint8 [D, {(tables.shape[1] + 1) // 2}], are {codes}")
        if scale.shape != codes.shape[:1] or scale.dtype != np.int32:
            raise ValueError(f"scale must be int32 [{codes.shape[0]}], is {scale}")
        if not 1 <= attrs["peak"] <= 255:
            raise ValueError(f"peak must be 1 to 255, is {attrs['peak']}")
        _check_k(attrs, codes.shape[0], "documents")
        return TensorType((tables.shape[0], attrs["k"], 2), np.dtype(np.int32))

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Queries times documents times tables: each look-up stands for a product."""
        return inputs[0].shape[0] * inputs[1].shape[0] * inputs[0].shape[1]

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        tables, codes, scale = inputs
        cls.infer([TensorType.of(x) for x in inputs], attrs)
        groups = tables.shape[1]
        numbers = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)[:, :groups]
        sums = np.stack([t[np.arange(groups), numbers].sum(axis=-1, dtype=np.int64) for t in tables])
        score = (sums - attrs["bias"]) * scale
        return hits(score, _every_document(*score.shape), attrs["k"], largest=True)


@register
class RerankTopK(Operator):
    """The ``k`` best of each query's candidates by the inner product of an integer query with ±1 codes.

    ``query``: int32 ``[Q, C]``; ``candidates``: int32 ``[Q, N, 2]`` as ``HammingTopK`` gives them (only the document numbers
    are read, each from 0 to D − 1); ``corpus``: uint8 ``[D, ceil(C/8)]``, packed. The score is Σ_c query[c] · (±1 of the
    document), which may not leave int32. Output: int32 ``[Q, k, 2]`` of (score, document), largest score first, ties by
    lower document.

    The second step of BPR (Yamada et al., ACL 2021), with the float query in fixed point: integers have one sum.
    """

    name = "RerankTopK"
    inputs = ("query", "candidates", "corpus")
    attributes = {"k": int}
    body = (
        """
    table = Identity (corpus)
    """
        + _COUNT_ROWS
        + """
    index_of_document = Constant <value_int = 1> ()
    chosen = Gather <axis = 2> (candidates, index_of_document)
    documents = Cast <to = 7> (chosen)
    packed = Gather <axis = 0> (corpus, documents)
    """
        + UNPACK_LAST_AXIS
        + """
    query_shape = Shape (query)
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    channels = Slice (query_shape, second, third)
    kept = Slice (bits, unpack_first, channels, unpack_last)
    one_int = Constant <value = int32 {1}> ()
    doubled = Mul (kept, two)
    signs = Sub (doubled, one_int)
    query_row = Unsqueeze (query, second)
    products = Mul (signs, query_row)
    score = ReduceSum <keepdims = 0> (products, unpack_last)
    """
        + _BEST
        + "    best_value = Identity (best_score)\n"
        + _PAIRS
    )
    kernel = "search:rerank_top_k"
    factors = (32, 1)

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``int32 [Q, k, 2]``."""
        query, candidates, corpus = inputs
        if len(query.shape) != 2 or query.dtype != np.int32:
            raise ValueError(f"query must be int32 [Q, C], is {query}")
        if len(candidates.shape) != 3 or candidates.shape[::2] != (query.shape[0], 2) or candidates.dtype != np.int32:
            raise ValueError(f"candidates must be int32 [{query.shape[0]}, N, 2], are {candidates}")
        if corpus.shape[1:] != ((query.shape[1] + 7) // 8,) or corpus.dtype != np.uint8:
            raise ValueError(f"corpus must be uint8 [D, {(query.shape[1] + 7) // 8}], is {corpus}")
        _check_k(attrs, candidates.shape[1], "candidates")
        return TensorType((query.shape[0], attrs["k"], 2), np.dtype(np.int32))

    @classmethod
    def macs(cls, inputs: Sequence[TensorType], output: TensorType, attrs: Attrs) -> int:
        """Candidates times channels."""
        return inputs[0].shape[0] * inputs[0].shape[1] * inputs[1].shape[1]

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        query, candidates, corpus = inputs
        cls.infer([TensorType.of(x) for x in inputs], attrs)
        documents = candidates[:, :, 1]
        signs = (
            np.unpackbits(corpus[documents], axis=-1, count=query.shape[1], bitorder="little").astype(np.int64) * 2 - 1
        )
        score = (signs * query[:, None, :].astype(np.int64)).sum(axis=-1)
        return hits(score, documents, attrs["k"], largest=True)
