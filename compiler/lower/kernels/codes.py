"""Codes of a few bits as kernels read them, and what turns them into float32 weights, many lanes at a time.

A code's planes are cut into fields of 1, 2 or 4 bits (3 = 2 + 1). A byte of a field holds the codes of 8/width
consecutive steps of one lane; ``lanes`` such bytes lie side by side, so that one load, a shift and a mask give the field of
one step in every lane. Steps come in runs of 8, whose bytes lie together: field by field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset import unpack_bits
from ..kernel import KernelCall
from .common import Expr, Flat, Function, apart, broadcast, cast, constant_input, number, typed

RUN = 8
"""Steps whose bytes lie together."""

FIELDS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,)}
"""Planes of a code → widths of its fields, low planes first."""


def lay_out(codes: np.ndarray, planes: int) -> np.ndarray:
    """Codes ``[blocks, steps, lanes]`` → bytes ``uint8 [blocks, bytes, lanes]``; ``run_bytes`` says where a run begins."""
    blocks, steps, lanes = codes.shape
    made: list[np.ndarray] = []
    for first in range(0, steps, RUN):
        run = codes[:, first : first + RUN].astype(np.uint8)
        shift = 0
        for width in FIELDS[planes]:
            field, each = (run >> shift) & ((1 << width) - 1), 8 // width
            padded = np.zeros((blocks, -(-run.shape[1] // each) * each, lanes), np.uint8)
            padded[:, : run.shape[1]] = field
            places = (np.arange(each, dtype=np.uint8) * width)[:, None]
            grouped = padded.reshape(blocks, -1, each, lanes)
            made.append(np.bitwise_or.reduce(grouped << places, axis=2).astype(np.uint8))
            shift += width
    return np.ascontiguousarray(np.concatenate(made, axis=1))


def run_bytes(planes: int) -> int:
    """Bytes of one lane of a whole run."""
    return sum(FIELDS[planes])


@dataclass(frozen=True)
class Place:
    """Where a run lies: its first byte's vector, and the group of weights that its scale belongs to."""

    vector: Expr
    scale: Expr


class Decoder:
    """Declares the constants that weights are made of (before the loops), then gives the weights of a run.

    ``lay``: from ``[O, K]`` to ``[blocks, steps, lanes]``. Scales lie ``[tables]`` as ``scales`` lays them, and ``wide`` says
    whether each lane has a scale of its own (lanes are channels) or all share one (lanes are weights of one channel).
    """

    def __init__(
        self, fn: Function, lay: Callable[[np.ndarray], np.ndarray], scales: Callable[[np.ndarray], np.ndarray],
        lanes: int, wide: bool,
    ) -> None:  # fmt: skip
        call = fn.call
        stored = constant_input(call, 1, "the codes of the weights")
        k = int(call.attrs["k"])
        self.lanes, self.wide, self.planes = lanes, wide, len(stored)
        self.shifts = call.op.startswith("Shift")
        codes = np.zeros((stored.shape[1], k), np.uint8)
        for p, plane in enumerate(stored):
            codes |= unpack_bits(plane, k).astype(np.uint8) << np.uint8(p)
        laid = lay(codes)
        self.steps = laid.shape[1]
        bytes_ = lay_out(laid, self.planes)
        self.block_bytes = bytes_.shape[1]
        """Vectors of bytes of a block."""
        self.codes = fn.constant("codes", bytes_)
        self.tables: list[Flat | None] = []
        self.numbers: list[float | None] = []
        """What all weights have in place of a table."""
        scale = constant_input(call, 2, "the scale")
        if self.shifts:
            values: list[np.ndarray | None] = [scale[:, None]]
        else:
            zero, offset = (constant_input(call, i, what) for i, what in ((3, "the zero"), (4, "the offset")))
            values = [scale, *(v if v.any() else None for v in (zero, offset))]
        for name, value in zip(("scale", "zero", "offset"), values, strict=False):
            one = value is not None and value.size == 1
            self.tables.append(None if value is None or one else fn.constant(name, scales(value)))
            self.numbers.append(float(value.reshape(-1)[0]) if value is not None and one else None)

    def table(self, index: int, place: Place) -> Expr | None:
        """The entry of a table for the run at ``place``."""
        if index >= len(self.tables):
            return None
        table, same = self.tables[index], self.numbers[index]
        if same is not None:
            return number(same, "float32", self.lanes)
        if table is None:
            return None
        if self.wide:
            return T.Bind(table.load(place.scale * self.lanes, self.lanes))
        return T.Bind(broadcast(table.load(place.scale), self.lanes))

    def weights(self, place: Place, steps: int) -> list[Expr]:
        """The weights of the first ``steps`` (at most a run) of the run at ``place``: vectors of float32."""
        tables = [self.table(i, place) for i in range(3)]
        fields: list[list[Expr]] = []
        vector = 0
        for width in FIELDS[self.planes]:
            each = 8 // width
            found: list[Expr] = []
            for _ in range(-(-steps // each)):
                loaded = self.codes.load((place.vector + vector) * self.lanes, self.lanes)
                byte = T.Bind(cast(loaded, "int32", self.lanes))
                mask = number((1 << width) - 1, "int32", self.lanes)
                found += [(byte >> number(i * width, "int32", self.lanes)) & mask for i in range(each)]
                vector += 1
            fields.append(found[:steps])
        return [self._weight([field[i] for field in fields], tables) for i in range(steps)]

    def _weight(self, fields: Sequence[Expr], tables: Sequence[Expr | None]) -> Expr:
        lanes, scale = self.lanes, tables[0]
        if self.shifts:
            exponent, sign = fields[0], fields[-1]
            if len(fields) == 1:  # one field holds both
                bits = self.planes - 1
                exponent = fields[0] & number((1 << bits) - 1, "int32", lanes)
                sign = fields[0] >> number(bits, "int32", lanes)
            # An IEEE number is its sign, the exponent plus 127, and a fraction of 0.
            whole = (exponent + number(127, "int32", lanes)) << number(23, "int32", lanes)
            whole = whole | (sign << number(31, "int32", lanes))
            return tirx.reinterpret(typed("float32", lanes), whole) * scale
        code = fields[0]
        if len(fields) > 1:
            code = code | (fields[1] << number(2, "int32", lanes))
        value = cast(code, "float32", lanes)
        if tables[1] is not None:
            value = value - tables[1]
        value = value * scale
        return value if tables[2] is None else apart(value, lanes) + tables[2]


def groups_of(call: KernelCall) -> tuple[int, int]:
    """Weights of a group, and groups of a channel."""
    k = int(call.attrs["k"])
    size = int(call.attrs.get("group_size", k))
    return size, -(-k // size)
