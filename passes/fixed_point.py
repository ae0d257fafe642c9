"""``fixed_point``: layers between fixed-point quantizers become integer arithmetic on raw values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..opset import DOMAIN
from ..opset._fixed import Overflow, Rounding
from ..opset.integer import MOST_TERMS
from .base import Context, Pass, Status, add_constant, add_node, constant, producer, static_shape
from .binary_layer import gemm_extras
from .chain import original_name, per_channel
from .graph import dead_nodes, remove_node
from .grid import EXACT, Grid, Quantizer, fixed_type, raw_constant, read_quantizer
from .switched_weights import SwitchedWeights, read_switched
from .windows import window

_FLOAT, _INT32 = 1, 6
_FEW_LEVELS = 16
"""Layers whose activations and weights both have at most so many levels are for bit planes."""
_BINARY_LEVELS = 3
"""Weights with at most so many levels are signs or ternary: other passes pack them in fewer bits."""


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


class FixedPoint(Pass):
    """Quantizers with a power-of-two scale, and the Conv, Gemm, MatMul, Mul, Add, Sub and Relu between them.

    * A Conv, Gemm or MatMul whose activations come from such a quantizer with 8 bits at most, and whose weights are
      constants on a grid of 8 bits, becomes ``IntegerConv`` or ``IntegerGemm`` on raw values.
    * What follows it up to the next quantizer (a scale and bias for each channel on a grid of their own, the sum with
      another such tensor, a Relu) and that quantizer become one ``FixedRescale``: an integer multiply and add, a shift with
      the quantizer's rounding, saturation. The sum of two tensors is two multiplications and a sum in int32 before it.

    The numbers are those of the float model, bit for bit. Each float32 node in between has a result on the grid (an
    integer times a power of two) and below 2^24 in raw units, which is checked for every node and every channel from the
    ranges of the quantizers: so nothing rounds, whatever the order of a sum, and float arithmetic is integer arithmetic.
    Rounding by ``floor(v + 0.5)`` adds one half before it rounds, which is checked as well. Where the check fails, or a
    constant is on no grid, the node stays in float with that reason.

    Weights may be rounded to fewer bits by an integer input of the model (``switched_weights``): ``SwitchedConv`` and
    ``SwitchedGemm`` do so from one stored int8 tensor. A quantizer without scales (f = 0) is any quantizer's codes, so
    that integer layers with real-valued scales behind them are packed as well.

    Left to other passes: layers with 16 levels at most on both sides (bit planes), and weights of three levels at most.
    A tensor that something else reads in float is computed from its integer (exact again).
    """

    name: ClassVar[str] = "fixed_point"
    requires: ClassVar[tuple[str, ...]] = ("recognise_sign",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        lowering = _Lowering(graph, ctx)
        changed = lowering.run()
        if changed:
            for node in dead_nodes(graph):
                remove_node(graph, node)
        return changed


class _Lowering:
    def __init__(self, graph: gs.Graph, ctx: Context) -> None:
        self.graph, self.ctx = graph, ctx
        self.forms: dict[int, Form | str] = {}
        self.quantizers: dict[int, Quantizer] = {}
        self.keep: list[gs.Tensor] = []
        self.noted: list[gs.Node] = []
        self.shifts: dict[int, gs.Tensor] = {}

    def run(self) -> bool:
        nodes = list(self.graph.nodes)
        for node in nodes:
            quantizer = read_quantizer(node)
            if quantizer is not None:
                self.quantizers[id(quantizer.output)] = quantizer
        # A quantizer may end in a part of a longer one (the scale back comes last): the longest counts.
        inner = {id(t) for q in self.quantizers.values() for n in q.nodes for t in n.outputs if t is not q.output}
        self.quantizers = {key: q for key, q in self.quantizers.items() if key not in inner}
        changed = False
        for node in nodes:
            if node.domain:
                continue
            if node.op in ("Conv", "Gemm", "MatMul"):
                changed = self._layer(node) or changed
            elif node.outputs and id(node.outputs[0]) in self.quantizers:
                changed = self._requantize(self.quantizers[id(node.outputs[0])]) or changed
        return changed

    # Layers

    def _layer(self, node: gs.Node) -> bool:
        """Lower a layer. False, with the reason noted, where it is not one on raw values."""
        source = self._origin(node.inputs[0])
        if source is None:
            return False  # nothing to do with fixed point
        value = constant(node.inputs[1])
        switched = read_switched(node.inputs[1]) if value is None else None
        found = (switched.w, 0) if switched is not None else None if value is None else raw_constant(value)
        if found is None:
            return value is not None and self._refuse(node, "its weights are not constants on a fixed-point grid")
        raw, fraction = found
        levels = len(np.unique(raw))
        activations = int(source.high) - int(source.low) + 1
        integer_already = isinstance(self.forms.get(id(node.inputs[0])), Form)
        few = levels <= _BINARY_LEVELS or (not integer_already and max(levels, activations) <= _FEW_LEVELS)
        if few and switched is None:
            return False
        if np.abs(raw).max() > 128 or raw.max() > 127:
            return self._refuse(node, f"its weights have raw values from {raw.min()} to {raw.max()}: 8 bits are packed")
        try:
            bias, apart = self._bias(node)
            accumulator, grid, perm = self._product(node, raw, switched)
            weights = raw if node.op == "Conv" or node.attrs.get("transB", 0) else raw.T
            rows = np.abs(weights.reshape(weights.shape[0], -1)).sum(1)
            # Padding adds zeros: the range always includes them.
            low, high = min(grid.low, 0), max(grid.high, 0)
            flat = weights.reshape(weights.shape[0], -1)
            up, down = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
            form = Form(
                ((accumulator, np.int64(1)),), np.int64(0), grid.fraction + fraction,
                up * low + down * high, up * high + down * low, perm is not None,
            )  # fmt: skip
            most = int(rows.max()) * grid.reach
            if bias is not None:
                try:
                    form = form.shifted(*bias)
                    most = (most << (form.fraction - grid.fraction - fraction)) + int(np.abs(form.add).max())
                except FixedPointError:
                    if node.op != "Conv":
                        raise
                    apart = constant(node.inputs[2])
            if most >= EXACT:  # partial sums, in any order
                raise FixedPointError(f"a sum may reach {most}: float32 is exact below 2^24 only")
        except FixedPointError as error:
            return self._refuse(node, str(error))
        output = node.outputs[0]
        node.inputs.clear()
        if apart is None:
            self._store(output, form)
        self._float(output, form, node, apart)
        word = "int8" if grid.low < 0 else "uint8"
        text = f"integers: {word} activations {grid} times int8 weights of {levels} levels"
        if switched is None:
            self.ctx.note(node, Status.PACKED, f"{text} · 2^{-fraction}")
            return True
        shift = switched.shift.name
        self.ctx.note(
            node, Status.PACKED, f"{text}, rounded to 8 − k bits when the model runs (k from 0 to 7 in '{shift}')"
        )
        for part in switched.nodes:
            self.ctx.note(
                part, Status.FUSED, f"rounding of the weights of '{original_name(self.ctx, node)}' in its kernel"
            )
        return True

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

    def _product(
        self, node: gs.Node, raw: np.ndarray, switched: SwitchedWeights | None
    ) -> tuple[gs.Tensor, Grid, tuple[int, ...] | None]:
        """The accumulators (int32, channels last), the grid of the activations, and how to get the original layout."""
        name = original_name(self.ctx, node)
        x = node.inputs[0]
        terms = int(np.prod(raw.shape[1:])) if node.op == "Conv" else static_shape(x)[-1]
        if terms > MOST_TERMS:
            raise FixedPointError(f"a sum has {terms} terms, at most {MOST_TERMS} are taken")
        if node.op == "Conv":
            if len(static_shape(x)) != 4:
                raise FixedPointError("a convolution over other than two spatial axes")
            codes, grid = self._codes(x, True, node)
            size, kernel = static_shape(x)[2:], raw.shape[2:]
            own = window(node, size, kernel)
            weight = add_constant(self.ctx, f"{name}/raw", np.moveaxis(raw, 1, -1).astype(np.int8))
            more = [] if switched is None else [self._shift(switched, node)]
            accumulator = self._own(
                "SwitchedConv" if more else "IntegerConv", [codes, weight, *more], node,
                group=int(node.attrs.get("group", 1)), strides=list(own.strides), dilations=list(own.dilations),
                pads=list(own.pads),
            )  # fmt: skip
            return accumulator, grid, (0, 3, 1, 2)
        if raw.ndim != 2 or node.attrs.get("transA", 0):
            raise FixedPointError("its weights have other than two axes, or its activations are transposed")
        codes, grid = self._codes(x, False, node)
        rows = raw if node.attrs.get("transB", 0) else raw.T
        weight = add_constant(self.ctx, f"{name}/raw", np.ascontiguousarray(rows).astype(np.int8))
        more = [] if switched is None else [self._shift(switched, node)]
        return self._own("SwitchedGemm" if more else "IntegerGemm", [codes, weight, *more], node), grid, None

    def _shift(self, switched: SwitchedWeights, node: gs.Node) -> gs.Tensor:
        """k in int32."""
        if np.dtype(switched.shift.dtype) == np.int32:
            return switched.shift
        if id(switched.shift) not in self.shifts:
            self.shifts[id(switched.shift)] = add_node(
                self.graph, self.ctx, "Cast", [switched.shift], stands_for=node, to=_INT32,
                shape=static_shape(switched.shift), dtype=np.int32,
            )  # fmt: skip
        return self.shifts[id(switched.shift)]

    def _bias(self, node: gs.Node) -> tuple[tuple[np.ndarray, int] | None, np.ndarray | None]:
        """What a layer adds to each channel: (raw, fraction), or a float bias that a Conv adds to its finished sum."""
        if node.op == "Gemm":
            alpha, beta, third = gemm_extras(node)
            if alpha != 1 or (third is not None and beta != 1):
                raise FixedPointError("it scales its product or its bias")
        else:
            third = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        if third is None:
            return None, None
        value = constant(third)
        channels = static_shape(node.outputs[0])[1 if node.op == "Conv" else -1]
        if value is None or value.size not in (1, channels):
            raise FixedPointError("its bias is not one constant a channel")
        found = raw_constant(value)
        if found is not None:
            return (found[0].reshape(-1), found[1]), None
        if node.op != "Conv":  # a Gemm adds its bias to a part of a long sum, and rounds
            raise FixedPointError("its bias is on no fixed-point grid")
        return None, value

    def _refuse(self, node: gs.Node, reason: str) -> bool:
        self.ctx.note(node, Status.FLOAT, f"not in fixed point: {reason}")
        return False

    # Activations

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
        moved = self._moved(tensor, first, reader)
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
            rounding=int(rounding), overflow=int(overflow), to=_byte(grid) if grid.fits_byte else _INT32,
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

    # What follows a layer

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

    def _requantize(self, quantizer: Quantizer) -> bool:
        """A quantizer of raw values → ``FixedRescale``."""
        kind = fixed_type(quantizer.low, quantizer.high)
        source, above = quantizer.source, producer(quantizer.source)
        relu = None
        if above is not None and above.op == "Relu" and not above.domain and quantizer.low == 0:
            source, relu = above.inputs[0], above  # what is below zero saturates at zero anyway
        if not self._comes_from_integers(source):
            return False
        end = quantizer.nodes[0]
        try:
            form = self._form(source)
            if kind is None:
                raise FixedPointError(
                    f"limits {quantizer.low} and {quantizer.high} are not those of a fixed-point type"
                )
            shift = form.fraction - quantizer.fraction
            if shift < 0:
                form, shift = form.at(quantizer.fraction), 0
            if quantizer.half and (2 * form.reach + 1 if shift == 0 else form.reach + (1 << (shift - 1))) > EXACT:
                raise FixedPointError("v + 0.5 is not exact in float32, so the model's floor(v + 0.5) is not AP_RND")
            if shift > 31:
                raise FixedPointError(f"it drops {shift} fraction bits")
        except FixedPointError as error:
            self.ctx.note(end, Status.FLOAT, f"not in fixed point: {error}")
            return False
        width, signed, overflow = kind
        (term, mul), *more = form.terms
        if more:
            value, mul, add = self._sum(form, end), np.int64(1), form.add
        else:
            value, add = self._int32(term, end), form.add
        name = original_name(self.ctx, end)
        grid = quantizer.grid
        constants = [
            add_constant(self.ctx, f"{name}/{word}", np.atleast_1d(np.asarray(table)).astype(np.int32))
            for word, table in (("mul", mul), ("add", add))
        ]
        codes = self._own(
            "FixedRescale", [value, *constants], end, shift=shift, width=width, signed=int(signed),
            rounding=int(quantizer.rounding), overflow=int(overflow), to=_byte(grid) if grid.fits_byte else _INT32,
        )  # fmt: skip
        known = Form(
            ((codes, np.int64(1)),), np.int64(0), grid.fraction, np.int64(grid.low), np.int64(grid.high), form.first
        )
        end.inputs.clear()
        self._store(quantizer.output, known)
        self._float(quantizer.output, known, end)
        self._absorb(quantizer, f"integer rescale: shift {shift}")
        if relu is not None:
            self.ctx.note(relu, Status.FUSED, f"saturation of '{name}' at 0")
        self._note_between(source, name)
        return True

    def _comes_from_integers(self, tensor: gs.Tensor) -> bool:
        """Whether a layer on raw values is somewhere above, through arithmetic only."""
        stack, seen = [tensor], set()
        while stack:
            x = stack.pop()
            if isinstance(self.forms.get(id(x)), Form):
                return True
            node = producer(x)
            if node is None or node.domain or node.op not in ("Add", "Sub", "Mul", "Relu") or id(node) in seen:
                continue
            seen.add(id(node))
            stack += node.inputs
        return False

    def _note_between(self, tensor: gs.Tensor, name: str) -> None:
        """Record the arithmetic above a rescale as part of it."""
        node = producer(tensor)
        if (
            node is None
            or node.domain
            or node.op not in ("Add", "Sub", "Mul", "Relu")
            or node.name not in self.ctx.original
        ):
            return
        if any(node is other for other in self.noted):
            return
        self.noted.append(node)
        self.ctx.note(node, Status.FUSED, f"exact on raw values, in the rescale of '{name}'")
        for x in node.inputs:
            self._note_between(x, name)

    def _absorb(self, quantizer: Quantizer, how: str) -> None:
        for node in quantizer.nodes:
            self.ctx.note(node, Status.FUSED, f"{how}, {quantizer.describe()}")

    # Nodes

    def _own(self, op: str, inputs: list[gs.Tensor], stands_for: gs.Node, **attrs: object) -> gs.Tensor:
        return add_node(self.graph, self.ctx, op, inputs, stands_for=stands_for, domain=DOMAIN, **attrs)

    def _int32(self, term: gs.Tensor, node: gs.Node) -> gs.Tensor:
        if np.dtype(term.dtype) == np.int32:
            return term
        return add_node(
            self.graph, self.ctx, "Cast", [term], stands_for=node, to=_INT32, shape=static_shape(term), dtype=np.int32
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
            self.graph, self.ctx, "Cast", [value], stands_for=node, to=_FLOAT, shape=shape, dtype=np.float32,
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


def _byte(grid: Grid) -> int:
    """ONNX element type of 8-bit raw values."""
    return 3 if grid.low < 0 or grid.high <= 127 else 2
