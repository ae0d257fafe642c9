"""The ONNX model of an index: from queries to ``hits`` int32 ``[Q, k, 2]``, with the operators of ``ai.xnorc``.

Between a query and its code everything that needs no trained matrix is exact: comparisons, constants, single roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..opset import DOMAIN, IR_VERSION, STANDARD_OPSET, VERSION, functions, pack_bits, packed_bytes
from . import codes
from .codes import Binarizer

INPUT, OUTPUT = "query", "hits"
FIXED_POINT = 32767
"""Largest magnitude of an element of a query in fixed point, for ``RerankTopK``."""
TABLE_MIDDLE, TABLE_REACH = 128, 127
"""Entries of the tables of a float query: 128 ± 127."""
TINY = 1e-30
"""In place of the largest magnitude of a query of zeros, which would be divided by."""


@dataclass
class Graph:
    """Nodes and constants under construction; every method returns the name of the tensor that it makes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def constant(self, name: str, value: Any) -> str:
        """A constant; the same name gives the same one."""
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, domain: str = "", **attrs: Any) -> str:
        """A node called ``name``, and its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, domain=domain, **attrs))
        return name

    def own(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """A node of ``ai.xnorc``."""
        return self.node(op, inputs, name, DOMAIN, **attrs)

    def pack(self, x: str, size: int, name: str, strict: int) -> str:
        """Bits of ``x > 0`` (``strict``) or ``x >= 0``."""
        zero = self.constant(f"zero_{size}", np.zeros(size, np.float32))
        flip = self.constant(f"no_flip_{size}", np.zeros(size, np.uint8))
        return self.own("Pack", [x, zero, flip], name, perm=[0, 1], strict=strict)

    def model(self, kind: int, shape: Sequence[int], batch: int, k: int) -> onnx.ModelProto:
        """The finished model with function bodies."""
        graph = helper.make_graph(
            self.nodes,
            "index",
            [helper.make_tensor_value_info(INPUT, kind, shape)],
            [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.INT32, [batch, k, 2])],
            initializer=[numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        used = sorted({node.op_type for node in self.nodes if node.domain == DOMAIN})
        imports = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(DOMAIN, VERSION)]
        return helper.make_model(
            graph, opset_imports=imports, functions=functions(used), ir_version=IR_VERSION, producer_name="xnorc"
        )


def hamming(
    bits: np.ndarray, size: int, channels: int, binarizer: Binarizer, batch: int, k: int, rerank: int, packed: bool
) -> onnx.ModelProto:
    """Search by Hamming distance. ``bits``: uint8 ``[D, ceil(size/8)]``; ``rerank``: how many candidates, or 0.

    A query's bit is 1 where ``W f > 0`` (BPR); ``packed``: queries come as bits.
    """
    graph = Graph()
    corpus = graph.constant("corpus", bits)
    if packed:
        graph.own("HammingTopK", [INPUT, corpus], OUTPUT, k=k)
        return graph.model(onnx.TensorProto.UINT8, [batch, packed_bytes(size)], batch, k)
    projected = _project(graph, INPUT, "w", binarizer.w)
    query = graph.pack(projected, size, "query_bits", strict=1)
    if not rerank:
        graph.own("HammingTopK", [query, corpus], OUTPUT, k=k)
        return graph.model(onnx.TensorProto.FLOAT, [batch, channels], batch, k)
    candidates = graph.own("HammingTopK", [query, corpus], "candidates", k=rerank)
    scale = _scale(graph, graph.node("Abs", [projected], "magnitudes"), FIXED_POINT, [-1])
    scaled = graph.node("Mul", [projected, scale], "query_scaled")
    rounded = graph.node("Round", [scaled], "query_rounded")
    fixed = graph.node("Cast", [rounded], "query_fixed", to=onnx.TensorProto.INT32)
    graph.own("RerankTopK", [fixed, candidates, corpus], OUTPUT, k=k)
    return graph.model(onnx.TensorProto.FLOAT, [batch, channels], batch, k)


def bebr(
    code: np.ndarray, channels: int, binarizer: Binarizer, batch: int, k: int, asymmetric: bool
) -> onnx.ModelProto:
    """Search by the inner product of two-bit codes over the document's length. ``code``: uint8 ``[D, m]``, 0 to 3.

    Symmetric: the query is coded as the documents are. ``asymmetric``: its tables are made of ``W f`` itself, in 8 bits.
    """
    graph = Graph()
    size = code.shape[1]
    groups = size // 2
    projected = _project(graph, INPUT, "w", binarizer.w)
    make = _float_tables if asymmetric else _code_tables
    tables, bias, peak = make(graph, projected, size, channels, binarizer, batch)
    most = np.iinfo(np.int32).max // max(bias, peak * groups - bias)
    documents = graph.constant("codes", codes.nibbles(codes.numbers(code)))
    scale = graph.constant("inverse_lengths", codes.inverse_lengths(code, most))
    graph.own("LookupTopK", [tables, documents, scale], OUTPUT, k=k, bias=bias, peak=peak)
    return graph.model(onnx.TensorProto.FLOAT, [batch, channels], batch, k)


def _project(graph: Graph, x: str, name: str, matrix: np.ndarray | None) -> str:
    """``x @ matrix.T``, or ``x`` itself."""
    if matrix is None:
        return x
    return graph.node("MatMul", [x, graph.constant(f"{name}_transposed", np.ascontiguousarray(matrix.T))], f"{name}_x")


def _scale(graph: Graph, magnitudes: str, reach: float, axes: Sequence[int]) -> str:
    """``reach`` over the largest of ``magnitudes`` along ``axes``, which stay."""
    largest = graph.node(
        "ReduceMax", [magnitudes, graph.constant("axes", np.array(axes, np.int64))], "largest", keepdims=1
    )
    safe = graph.node("Max", [largest, graph.constant("tiny", np.float32(TINY))], "largest_safe")
    return graph.node("Div", [graph.constant("reach", np.float32(reach)), safe], "scale")


def _code_tables(
    graph: Graph, projected: str, size: int, channels: int, binarizer: Binarizer, batch: int
) -> tuple[str, int, int]:
    """Tables of a coded query: rows of the 16 × 16 table. Gives also bias and peak."""
    first = graph.pack(projected, size, "first_bits", strict=0)
    signs = graph.own("Unpack", [first], "first_signs", channels=size, perm=[0, 1])
    if binarizer.b is None or binarizer.r is None:
        level = graph.constant("unit_level", codes.unit_level(channels))
        residual = graph.node("Sub", [INPUT, graph.node("Mul", [signs, level], "rebuilt")], "residual")
    else:
        back = _project(graph, signs, "b", binarizer.b)
        squares = graph.node("Mul", [back, back], "squares")
        total = graph.node(
            "ReduceSum", [squares, graph.constant("last", np.array([-1], np.int64))], "total", keepdims=1
        )
        length = graph.node("Sqrt", [total], "length")
        safe = graph.node("Max", [length, graph.constant("shortest", np.float32(1e-12))], "length_safe")
        rest = graph.node("Sub", [INPUT, graph.node("Div", [back, safe], "rebuilt")], "rest")
        residual = _project(graph, rest, "r", binarizer.r)
    second = graph.pack(residual, size, "second_bits", strict=0)
    fine = graph.own("Unpack", [second], "second_signs", channels=size, perm=[0, 1])
    # The element c is (2·first + second + 3) / 2 in signs, and a number is c of the first of a pair + 4 · c of the second.
    half = graph.constant("half", np.float32(0.5))
    middle = graph.constant("one_and_a_half", np.float32(1.5))
    small = graph.node("Add", [graph.node("Mul", [fine, half], "fine"), middle], "small")
    elements = graph.node("Add", [signs, small], "elements")
    pairs = _pairs(graph, elements, batch, size)
    weighted = graph.node("Mul", [pairs, graph.constant("places", np.array([1, 4], np.float32))], "weighted")
    axis = graph.constant("pair_axis", np.array([-1], np.int64))
    number = graph.node("ReduceSum", [weighted, axis], "number", keepdims=0)
    whole = graph.node("Cast", [number], "numbers", to=onnx.TensorProto.INT32)
    table, offset = codes.pair_table()
    tables = graph.node("Gather", [graph.constant("pair_table", table), whole], "tables", axis=0)
    return tables, offset * (size // 2), int(table.max())


def _float_tables(
    graph: Graph, projected: str, size: int, channels: int, binarizer: Binarizer, batch: int
) -> tuple[str, int, int]:
    """Tables of a float query: q·v of every pair, rounded to 8 bits around ``TABLE_MIDDLE``. Gives also bias and peak."""
    pairs = _pairs(graph, projected, batch, size)
    values = np.array([[2 * (n % 4) - 3, 2 * (n // 4) - 3] for n in range(codes.pair_table()[0].shape[0])], np.float32)
    parts = []
    for i, word in enumerate(("even", "odd")):
        at = graph.constant(f"{word}_place", np.array([i], np.int64))
        element = graph.node("Gather", [pairs, at], word, axis=2)
        parts.append(graph.node("Mul", [element, graph.constant(f"{word}_values", values[:, i])], f"{word}_products"))
    products = graph.node("Add", parts, "products")
    scale = _scale(graph, graph.node("Abs", [products], "magnitudes"), TABLE_REACH, [1, 2])
    rounded = graph.node("Round", [graph.node("Mul", [products, scale], "scaled")], "rounded")
    moved = graph.node("Add", [rounded, graph.constant("middle", np.float32(TABLE_MIDDLE))], "moved")
    tables = graph.node("Cast", [moved], "tables", to=onnx.TensorProto.UINT8)
    return tables, TABLE_MIDDLE * (size // 2), TABLE_MIDDLE + TABLE_REACH


def _pairs(graph: Graph, x: str, batch: int, size: int) -> str:
    """``[Q, size]`` as ``[Q, size/2, 2]``."""
    shape = graph.constant("pairs_shape", np.array([batch, size // 2, 2], np.int64))
    return graph.node("Reshape", [x, shape], "pairs")


def pack_rows(bits: np.ndarray) -> np.ndarray:
    """bool ``[D, m]`` → uint8 ``[D, ceil(m/8)]``."""
    return pack_bits(bits)
