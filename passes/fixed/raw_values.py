"""Tensors as integers: what ``fixed_point`` knows of them, and the nodes that it makes for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ...opset._fixed import Overflow, Rounding
from ..base import Context, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import original_name, per_channel
from ..windows import max_pool_window
from .grid import EXACT, Grid, Quantizer, fixed_type, raw_constant

FLOAT, INT32 = 1, 6
"""ONNX element types."""


class FixedPointError(ValueError):
    """Why a tensor cannot be computed on raw values."""


@dataclass(frozen=True)
class Form:
    """A tensor as ``(Σ term · mul + add) · 2^-fraction``, in integers, channels last.

    ``terms``: int8, uint8 or int32 tensors with a multiplier each; multipliers, ``add``, ``low`` and ``high`` (of the
    raw value) are int64 ``[]`` or ``[C]``. ``first``: the original has its channels on axis 1 of four.
    """

    terms: tuple[tuple[gs.Tensor, np.ndarray], ...]
    add: np.ndarray
    fraction: int
    low: np.ndarray
    high: np.ndarray
    first: bool

    def __post_init__(self) -> None:
        if self.reach >= EXACT:
            raise FixedPointError(f"its raw values reach {self.reach}: float32 is exact below 2^24 only")

    @property
    def reach(self) -> int:
        """Largest magnitude of the raw value."""
        return int(max(np.abs(self.low).max(), np.abs(self.high).max()))

    def times(self, factor: np.ndarray, fraction: int) -> Form:
        """The form times ``factor · 2^-fraction``."""
        ends = (self.low * factor, self.high * factor)
        return Form(
            tuple((term, mul * factor) for term, mul in self.terms), self.add * factor, self.fraction + fraction,
            np.minimum(*ends), np.maximum(*ends), self.first,
        )  # fmt: skip

    def at(self, fraction: int) -> Form:
        """The same values with more fraction bits."""
        return self.times(np.int64(1 << (fraction - self.fraction)), fraction - self.fraction)

    def plus(self, other: Form) -> Form:
        """The sum of two tensors of the same shape."""
        fraction = max(self.fraction, other.fraction)
        a, b = self.at(fraction), other.at(fraction)
        return Form(a.terms + b.terms, a.add + b.add, fraction, a.low + b.low, a.high + b.high, a.first)

    def shifted(self, addend: np.ndarray, fraction: int) -> Form:
        """The form plus ``addend · 2^-fraction``."""
        common = max(self.fraction, fraction)
        a, more = self.at(common), addend << (common - fraction)
        return Form(a.terms, a.add + more, common, a.low + more, a.high + more, a.first)


class RawGraph:
    """A graph under rewriting, and the raw values (``Form``) of its tensors, found when they are asked for."""

    def __init__(self, graph: gs.Graph, ctx: Context) -> None:
        self.graph, self.ctx = graph, ctx
        self.forms: dict[int, Form | str] = {}
        self.quantizers: dict[int, Quantizer] = {}
        self.keep: list[gs.Tensor] = []
        self.noted: list[gs.Node] = []
        self.shifts: dict[int, gs.Tensor] = {}
        self.steps: dict[tuple[int, bytes], gs.Tensor] = {}

    def _on_grid(self, tensor: gs.Tensor, grid: Grid, reader: gs.Node) -> gs.Tensor:
        """8-bit raw values of a float tensor on ``grid``, in its own layout."""
        width = max(grid.high.bit_length(), (-grid.low - 1).bit_length(), 1) + (grid.low < 0)
        return self._own(
            "FixedQuantize", [tensor], reader, fraction=grid.fraction, width=width, signed=int(grid.low < 0),
            rounding=int(Rounding.RND_CONV), overflow=int(Overflow.SAT), to=byte_type(grid),
        )  # fmt: skip

    def _origin(self, tensor: gs.Tensor) -> Grid | None:
        """The grid of a layer's activations, or None if they come from no quantizer."""
        form = self.forms.get(id(tensor))
        if isinstance(form, Form):
            return Grid(form.fraction, int(np.min(form.low)), int(np.max(form.high)))
        quantizer = self.quantizers.get(id(tensor))
        if quantizer is not None:
            return quantizer.grid
        node = producer(tensor)
        if node is not None and not node.domain and node.op in ("MaxPool", "Relu", "Flatten", "Reshape", "Transpose"):
            return self._origin(node.inputs[0])
        return None

    def _refuse(self, node: gs.Node, reason: str) -> bool:
        self.ctx.note(node, Status.FLOAT, f"not in fixed point: {reason}")
        return False

    def _codes(self, tensor: gs.Tensor, first: bool, reader: gs.Node) -> tuple[gs.Tensor, Grid]:
        """``tensor`` as 8-bit raw values: channels last where ``first`` says that its channels are on axis 1."""
        form = self.forms.get(id(tensor))
        if isinstance(form, Form) and form.first == first:
            grid = Grid(form.fraction, int(np.min(form.low)), int(np.max(form.high)))
            (term, mul), *more = form.terms
            if not more and np.all(mul == 1) and not np.any(form.add) and np.dtype(term.dtype).itemsize == 1:
                return term, grid
        grid_or_none = self._origin(tensor)
        if grid_or_none is None or not grid_or_none.fits_byte:
            raise FixedPointError(f"its activations {grid_or_none} do not fit 8 bits")
        grid = grid_or_none
        moved = self._pooled(tensor, reader) if first else self._moved(tensor, first, reader)
        if moved is not None:
            return moved, grid
        return self._quantized(tensor, grid, first, reader), grid

    def _quantized(self, tensor: gs.Tensor, grid: Grid, first: bool, reader: gs.Node) -> gs.Tensor:
        """Raw values of a float tensor that is on ``grid``: of what its quantizer reads, where that is as exact."""
        quantizer = self.quantizers.get(id(tensor))
        kind = fixed_type(grid.low, grid.high)
        source, rounding, overflow = tensor, Rounding.RND_CONV, Overflow.SAT
        width = max(grid.high.bit_length(), (-grid.low - 1).bit_length()) + (grid.low < 0)
        if quantizer is not None and kind is not None and not quantizer.half:
            source, rounding, (width, _, overflow) = quantizer.source, quantizer.rounding, kind
        if quantizer is not None:
            self._absorb(quantizer, "fixed-point activations")
        codes = self._own(
            "FixedQuantize", [source], reader, fraction=grid.fraction, width=max(width, 1), signed=int(grid.low < 0),
            rounding=int(rounding), overflow=int(overflow), to=byte_type(grid) if grid.fits_byte else INT32,
        )  # fmt: skip
        shape = static_shape(codes)
        if first:
            codes = add_node(
                self.graph, self.ctx, "Transpose", [codes], stands_for=reader, perm=[0, 2, 3, 1],
                shape=[shape[i] for i in (0, 2, 3, 1)], dtype=codes.dtype,
            )  # fmt: skip
        none = np.int64(0)
        known = Form(((codes, np.int64(1)),), none, grid.fraction, np.int64(grid.low), np.int64(grid.high), first)
        self._store(tensor, known)
        return codes

    def _moved(self, tensor: gs.Tensor, first: bool, reader: gs.Node) -> gs.Tensor | None:
        """Raw values of a flattened feature map: the reshape done on 8-bit integers."""
        node = producer(tensor)
        if first or node is None or node.domain or node.op not in ("Flatten", "Reshape"):
            return None
        inner = self.forms.get(id(node.inputs[0]))
        if not isinstance(inner, Form) or not inner.first:
            return None
        codes, _ = self._codes(node.inputs[0], True, reader)
        shape = static_shape(codes)
        channels_first = add_node(
            self.graph, self.ctx, "Transpose", [codes], stands_for=node, perm=[0, 3, 1, 2],
            shape=[shape[i] for i in (0, 3, 1, 2)], dtype=codes.dtype,
        )  # fmt: skip
        target = static_shape(tensor)
        to = add_constant(self.ctx, f"{original_name(self.ctx, node)}/shape", np.array(target, np.int64))
        self.ctx.note(node, Status.FUSED, "moves 8-bit integers, not floats")
        return add_node(
            self.graph, self.ctx, "Reshape", [channels_first, to], stands_for=node, shape=target, dtype=codes.dtype
        )

    def _pooled(self, tensor: gs.Tensor, reader: gs.Node) -> gs.Tensor | None:
        """Raw values of a pooled feature map: the MaxPool done on 8-bit integers, where those that it reads are there."""
        node = producer(tensor)
        if node is None or node.domain or node.op != "MaxPool" or len(node.outputs) > 1:
            return None
        inner = self.forms.get(id(node.inputs[0]))
        if not isinstance(inner, Form) or not inner.first or len(static_shape(tensor)) != 4:
            return None
        window = max_pool_window(node)
        if isinstance(window, str):
            return None
        codes, grid = self._codes(node.inputs[0], True, reader)
        shape, pooled_shape = static_shape(node.inputs[0]), static_shape(tensor)
        value = add_node(
            self.graph, self.ctx, "Transpose", [codes], stands_for=node, perm=[0, 3, 1, 2], shape=shape, dtype=codes.dtype
        )  # fmt: skip
        attrs: dict[str, Any] = dict(window.pool_attrs())
        value = add_node(
            self.graph, self.ctx, "MaxPool", [value], stands_for=node, shape=pooled_shape, dtype=codes.dtype, **attrs
        )  # fmt: skip
        value = add_node(
            self.graph, self.ctx, "Transpose", [value], stands_for=node, perm=[0, 2, 3, 1],
            shape=tuple(pooled_shape[i] for i in (0, 2, 3, 1)), dtype=codes.dtype,
        )  # fmt: skip
        self.ctx.note(node, Status.FUSED, "pools 8-bit integers, not floats")
        ends = np.int64(grid.low), np.int64(grid.high)
        self._store(tensor, Form(((value, np.int64(1)),), np.int64(0), grid.fraction, *ends, True))
        return value

    def _form(self, tensor: gs.Tensor) -> Form:
        """``tensor`` on raw values. Raises ``FixedPointError`` with the reason where it cannot be."""
        if id(tensor) not in self.forms:
            try:
                self._store(tensor, self._find_form(tensor))
            except FixedPointError as error:
                self.forms[id(tensor)] = str(error)
                self.keep.append(tensor)
        found = self.forms[id(tensor)]
        if isinstance(found, str):
            raise FixedPointError(found)
        return found

    def _find_form(self, tensor: gs.Tensor) -> Form:
        node, quantizer = producer(tensor), self.quantizers.get(id(tensor))
        if quantizer is not None and node is not None:
            self._quantized(tensor, quantizer.grid, len(static_shape(tensor)) == 4, node)
            known = self.forms[id(tensor)]
            assert isinstance(known, Form)
            return known
        if node is None or node.domain or node.op not in ("Add", "Sub", "Mul", "Relu"):
            raise FixedPointError(f"'{tensor.name}' is computed in float")
        shape = static_shape(tensor)
        if node.op == "Relu":
            form = self._form(node.inputs[0])
            zero = np.int64(0)
            value = self._integers(form, node)
            least = add_constant(self.ctx, f"{original_name(self.ctx, node)}/zero", np.zeros((), np.int32))
            positive = add_node(
                self.graph, self.ctx, "Max", [value, least], stands_for=node, shape=static_shape(value), dtype=np.int32
            )
            ends = np.maximum(form.low, 0), np.maximum(form.high, 0)
            return Form(((positive, np.int64(1)),), zero, form.fraction, *ends, form.first)
        values = [constant(x) for x in node.inputs]
        live = [x for x, value in zip(node.inputs, values, strict=True) if value is None]
        if any(static_shape(x) != shape for x in live):
            raise FixedPointError(f"{node.op} '{node.name}' broadcasts")
        if len(live) == 2:
            if node.op == "Mul":
                raise FixedPointError(f"Mul '{node.name}' multiplies two computed tensors")
            first, second = (self._form(x) for x in live)
            if first.first != second.first:
                raise FixedPointError(f"{node.op} '{node.name}' joins two layouts")
            return first.plus(second if node.op == "Add" else second.times(np.int64(-1), 0))
        form = self._form(live[0])
        value = next(value for value in values if value is not None)
        each = per_channel(value, shape, 1 if form.first else len(shape) - 1)
        found = None if each is None else raw_constant(each)
        if found is None:
            raise FixedPointError(f"the constant of {node.op} '{node.name}' is on no fixed-point grid")
        raw, fraction = found
        if node.op == "Mul":
            return form.times(raw, fraction)
        if node.op == "Add":
            return form.shifted(raw, fraction)
        return (
            form.shifted(-raw, fraction)
            if values[1] is not None
            else form.times(np.int64(-1), 0).shifted(raw, fraction)
        )

    def _absorb(self, quantizer: Quantizer, how: str) -> None:
        for node in quantizer.nodes:
            self.ctx.note(node, Status.FUSED, f"{how}, {quantizer.describe()}")

    def _own(self, op: str, inputs: list[gs.Tensor], stands_for: gs.Node, **attrs: Any) -> gs.Tensor:
        return add_node(self.graph, self.ctx, op, inputs, stands_for=stands_for, domain=DOMAIN, **attrs)

    def _int32(self, term: gs.Tensor, node: gs.Node) -> gs.Tensor:
        if np.dtype(term.dtype) == np.int32:
            return term
        return add_node(
            self.graph, self.ctx, "Cast", [term], stands_for=node, to=INT32, shape=static_shape(term), dtype=np.int32
        )

    def _sum(self, form: Form, node: gs.Node) -> gs.Tensor:
        """Σ term · mul in int32."""
        total = None
        for term, mul in form.terms:
            value, shape = self._int32(term, node), static_shape(term)
            if np.any(mul != 1):
                factor = add_constant(
                    self.ctx, f"{original_name(self.ctx, node)}/mul", np.asarray(mul).astype(np.int32)
                )
                value = add_node(
                    self.graph, self.ctx, "Mul", [value, factor], stands_for=node, shape=shape, dtype=np.int32
                )
            total = value if total is None else add_node(
                self.graph, self.ctx, "Add", [total, value], stands_for=node, shape=shape, dtype=np.int32
            )  # fmt: skip
        assert total is not None
        return total

    def _integers(self, form: Form, node: gs.Node) -> gs.Tensor:
        """The raw value in int32."""
        value = self._sum(form, node)
        if not np.any(form.add):
            return value
        more = add_constant(self.ctx, f"{original_name(self.ctx, node)}/add", np.asarray(form.add).astype(np.int32))
        return add_node(
            self.graph, self.ctx, "Add", [value, more], stands_for=node, shape=static_shape(value), dtype=np.int32
        )

    def _float(self, output: gs.Tensor, form: Form, node: gs.Node, bias: np.ndarray | None = None) -> None:
        """Fill ``output`` from its raw value, for whoever reads it in float (else it is dead and goes).

        ``bias``: what is added in float, a rounding of its own as in the original.
        """
        value = self._integers(form, node)
        shape = static_shape(value)
        if form.first:
            shape = tuple(shape[i] for i in (0, 3, 1, 2))
            value = add_node(
                self.graph,
                self.ctx,
                "Transpose",
                [value],
                stands_for=node,
                perm=[0, 3, 1, 2],
                shape=shape,
                dtype=np.int32,
            )
        steps: list[tuple[str, np.ndarray]] = []
        if form.fraction:
            steps.append(("Mul", np.array(2.0**-form.fraction, np.float32)))
        if bias is not None:
            steps.append(("Add", bias.reshape(1, -1, 1, 1)))
        value = add_node(
            self.graph, self.ctx, "Cast", [value], stands_for=node, to=FLOAT, shape=shape, dtype=np.float32,
            output=None if steps else output,
        )  # fmt: skip
        for i, (op, operand) in enumerate(steps):
            word = "step" if op == "Mul" else "bias"
            operands = [value, add_constant(self.ctx, f"{original_name(self.ctx, node)}/{word}", operand)]
            value = add_node(
                self.graph, self.ctx, op, operands, stands_for=node, shape=shape, dtype=np.float32,
                output=output if i == len(steps) - 1 else None,
            )  # fmt: skip

    def _store(self, tensor: gs.Tensor, form: Form) -> None:
        self.forms[id(tensor)] = form
        self.keep.append(tensor)  # an id is only good while its tensor lives


def byte_type(grid: Grid) -> int:
    """ONNX element type of 8-bit raw values."""
    return 3 if grid.low < 0 or grid.high <= 127 else 2
