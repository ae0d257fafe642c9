"""``fixed_point``: layers between fixed-point quantizers become integer arithmetic on raw values."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset.integer import MOST_TERMS
from ..base import Context, Pass, Status, add_constant, add_node, constant, producer, static_shape
from ..chain import original_name
from ..graph import dead_nodes, remove_node
from ..signs.binary_layer import gemm_extras
from ..windows import window
from .attention_codes import read_log_levels
from .grid import EXACT, Grid, Quantizer, fixed_type, raw_constant, read_quantizer
from .raw_values import FLOAT, INT32, FixedPointError, Form, RawGraph, byte_type
from .switched_weights import SwitchedWeights, read_switched

_FEW_LEVELS = 16
"""Layers whose activations and weights both have at most so many levels are for bit planes."""
_BINARY_LEVELS = 3
"""Weights with at most so many levels are signs or ternary: other passes pack them in fewer bits."""


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

    A MatMul of two computed tensors, both quantizers' results, becomes ``IntegerMatMul``. Where the left one holds powers of
    two of quantized logarithms of a Softmax (``attention_codes``), it becomes comparisons and shifts: ``StepCode`` and
    ``ShiftMatMul``.

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


class _Lowering(RawGraph):
    """One run of the pass."""

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

    def _pair(self, node: gs.Node) -> bool:
        """A MatMul of two computed tensors: of raw values, or of powers of two and raw values."""
        a, b = node.inputs
        right = self._origin(b)
        if right is None or not right.fits_byte or static_shape(a)[:-2] != static_shape(b)[:-2]:
            return False
        left = self._origin(a)
        levels = read_log_levels(a, self.quantizers, self.ctx.opset) if left is None else None
        terms = static_shape(a)[-1]
        name = original_name(self.ctx, node)
        if isinstance(levels, str):
            return self._refuse(node, levels)
        if levels is not None:
            most, fraction = int(levels.row_sum * right.reach) + 1, levels.top + right.fraction
            fits = (terms * 255) << max(levels.shifts) < 1 << 31
        elif left is not None and left.fits_byte:
            most, fraction, fits = terms * left.reach * right.reach, left.fraction + right.fraction, terms <= 1 << 15
        else:
            return False
        if most >= EXACT or not fits:
            return self._refuse(node, f"a sum may reach {most}: float32 is exact below 2^24 only")
        codes = self._on_grid(b, right, node)
        if levels is not None:
            key = (id(levels.source), levels.threshold.tobytes())
            if key not in self.steps:  # two products may share their codes, with other levels
                limits = add_constant(self.ctx, f"{name}/threshold", levels.threshold)
                self.steps[key] = self._own("StepCode", [levels.source, limits], node)
            step = self.steps[key]
            value = self._own("ShiftMatMul", [step, codes], node, shifts=list(levels.shifts))
            self.ctx.note(node, Status.PACKED, f"shifts: {len(levels.shifts)} powers of two times integers {right}")
            for part in levels.nodes:
                self.ctx.note(
                    part, Status.FUSED, f"codes of '{name}' by comparison: {len(levels.threshold)} thresholds"
                )
        else:
            assert left is not None
            value = self._own("IntegerMatMul", [self._on_grid(a, left, node), codes], node)
            self.ctx.note(node, Status.PACKED, f"integers: {left} times {right}, both computed")
        output, shape = node.outputs[0], static_shape(value)
        node.inputs.clear()
        last = None if fraction else output
        value = add_node(
            self.graph,
            self.ctx,
            "Cast",
            [value],
            stands_for=node,
            to=FLOAT,
            shape=shape,
            dtype=np.float32,
            output=last,
        )
        if fraction:
            factor = add_constant(self.ctx, f"{name}/step", np.array(2.0**-fraction, np.float32))
            add_node(
                self.graph,
                self.ctx,
                "Mul",
                [value, factor],
                stands_for=node,
                shape=shape,
                dtype=np.float32,
                output=output,
            )
        return True

    def _layer(self, node: gs.Node) -> bool:
        """Lower a layer. False, with the reason noted, where it is not one on raw values."""
        if (
            node.op == "MatMul"
            and all(constant(x) is None for x in node.inputs)
            and read_switched(node.inputs[1]) is None
        ):
            return self._pair(node)
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
                self.graph, self.ctx, "Cast", [switched.shift], stands_for=node, to=INT32,
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
            rounding=int(quantizer.rounding), overflow=int(overflow), to=byte_type(grid) if grid.fits_byte else INT32,
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
