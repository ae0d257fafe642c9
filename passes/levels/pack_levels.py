"""``pack_levels``: layers of few-bit integers become operations on bit planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, pack_bits
from ..base import Context, Origin, Pass, Status, add_constant, add_node, constant, consumers, producer, static_shape
from ..chain import absorbed, original_name
from ..graph import dead_nodes, remove_node
from ..pack.pack import reshape
from ..signs.binary_layer import gemm_extras
from ..signs.bit_route import Route, Step, channels_last, find_route, find_rows
from ..windows import Window, window
from .level_codes import Coding, encode_levels, encode_weights

_LEVELS = frozenset({"Quantize"})
_FLOAT = 1
"""ONNX element type of float32, as Cast wants it."""


@dataclass(frozen=True)
class _Weight:
    """Bit planes bool ``[m, O, ...]`` of an integer weight."""

    coding: Coding
    bits: np.ndarray

    def describe(self) -> str:
        planes = len(self.coding.coeffs)
        return f"{planes}-bit weights" + (" of odd levels" if self.coding.bipolar and planes > 1 else "")


class PackLevels(Pass):
    """Conv, Gemm and MatMul whose activations come from a ``Quantize`` to integers and whose weights are integers.

    They become ``PackLevels → BitSerialConv/BitSerialGemm → (Transpose to NCHW) → Cast``; the last tensor keeps the original
    output's name. The sums are exact integers; those of the original are too while Σ|x·w| stays below 2^24, beyond that
    the float32 sum rounds and the integer one does not.

    * One ``PackLevels`` serves every reader of a quantizer. ``level_codes`` chooses how levels lie in planes.
    * Transpose, Reshape, Flatten, Squeeze and Unsqueeze between the quantizer and the layer act on the planes' bytes; a
      flattened feature map keeps its channels-last order, and the weights are permuted.
    * Zero padding adds nothing: where 0 is not the code 0, the kernel corrects the borders.
    * A 1-D Conv is a 2-D one of height 1.

    A node whose activations are such levels and that does not match keeps the reason: see ``level_weights``.
    """

    name: ClassVar[str] = "pack_levels"
    requires: ClassVar[tuple[str, ...]] = ("level_weights",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        return _Packer(graph, ctx).run()


class _Packer:
    """State of one run: what is already packed, so that it is shared."""

    def __init__(self, graph: gs.Graph, ctx: Context) -> None:
        self.graph, self.ctx = graph, ctx
        self.planes: dict[Any, gs.Tensor] = {}
        self.weights: dict[Any, gs.Tensor] = {}
        self.readers: dict[str, set[str]] = {}

    def run(self) -> bool:
        for node in list(self.graph.nodes):
            if node.domain or node.op not in ("Conv", "Gemm", "MatMul"):
                continue
            reason = self._conv(node) if node.op == "Conv" else self._rows(node)
            if reason:
                self.ctx.note(node, Status.FLOAT, reason)
        for node in dead_nodes(self.graph):
            remove_node(self.graph, node)
        for name, readers in self.readers.items():
            count = len(readers)
            text = f"packed into bit planes for {count} layer{'s' if count > 1 else ''}"
            kept = [
                f"'{original_name(self.ctx, reader)}'"
                for node in self.graph.nodes
                if node.op == "Quantize" and original_name(self.ctx, node) == name
                for reader in consumers(node.outputs[0])
            ]
            self.ctx.note(name, Status.PACKED, text + (f"; also kept in float for {', '.join(kept)}" if kept else ""))
        return bool(self.planes)

    # Activations

    def _coded(self, source: gs.Node) -> tuple[Coding, list[int]] | str:
        value = constant(source.inputs[3])
        if value is None or (value != np.rint(value)).any():
            return ""  # level_weights has said why
        return encode_levels(value.astype(np.int64))

    def _activations(self, route: Route, coding: Coding, codes: list[int], reader: gs.Node) -> gs.Tensor:
        """The planes of a layer's operand."""
        base = original_name(self.ctx, route.binarize)
        self.readers.setdefault(base, set()).add(original_name(self.ctx, reader))
        for step in route.steps:
            absorbed(self.ctx, step.node, Status.FUSED, "moves bit planes, not floats")
        key: Any = (id(route.binarize), route.perm)
        if key not in self.planes:
            self.planes[key] = self._pack(route, coding, codes)
        tensor = self.planes[key]
        for step in route.steps:
            key = (key, step.kind, step.sizes)
            if key not in self.planes:
                self.planes[key] = self._step(tensor, step)
            tensor = self.planes[key]
        return tensor

    def _pack(self, route: Route, coding: Coding, codes: list[int]) -> gs.Tensor:
        source = route.binarize
        packed = add_node(
            self.graph, self.ctx, "PackLevels", source.inputs[:3], stands_for=source, domain=DOMAIN,
            perm=list(route.perm), codes=codes, planes=len(coding.coeffs),
        )  # fmt: skip
        info = self.ctx.quantizers.get(source.outputs[0].name)
        if info is not None:
            channels = static_shape(source.inputs[0])[route.perm[-1]]
            self.ctx.origins[packed.name] = Origin(info.tensor, list(route.perm), channels, moves=info.moves)
        return packed

    def _step(self, tensor: gs.Tensor, step: Step) -> gs.Tensor:
        """A step of a route on bytes, with the planes in front."""
        shape = static_shape(tensor)
        if step.kind == "reshape":
            return reshape(self.graph, self.ctx, tensor, (shape[0], *step.sizes), step.node)
        perm = (0, *(i + 1 for i in step.sizes))
        return add_node(
            self.graph, self.ctx, "Transpose", [tensor], stands_for=step.node, perm=list(perm),
            shape=[shape[i] for i in perm], dtype=np.uint8,
        )  # fmt: skip

    # Layers

    def _weight(self, tensor: gs.Tensor, axis: int) -> _Weight | str:
        """The weight as planes with the output channels first."""
        value = constant(tensor)
        if value is None:
            return f"its weights '{tensor.name}' are computed at run time"
        if value.dtype != np.float32 or (value != np.rint(value)).any():
            return ""  # level_weights has said why
        coded = encode_weights(np.moveaxis(value, axis, 0).astype(np.int64))
        return coded if isinstance(coded, str) else _Weight(*coded)

    def _held(self, tensor: gs.Tensor, key: Any, bits: np.ndarray) -> gs.Tensor:
        """Packed planes, shared by the layers that share the original weight."""
        key = (id(tensor), key)
        if key not in self.weights:
            self.weights[key] = add_constant(self.ctx, f"{tensor.name}/packed", pack_bits(bits))
        return self.weights[key]

    def _conv(self, node: gs.Node) -> str | None:
        """Pack a Conv; gives the reason where its activations are levels and it cannot be."""
        x, w = node.inputs[0], node.inputs[1]
        shape = static_shape(x)
        rank = len(shape)
        if rank not in (3, 4):
            return None
        route = find_route(x, channels_last(rank, 1), _LEVELS)
        if isinstance(route, str) or any(step.kind == "pool" for step in route.steps):
            return None
        coded, weight = self._coded(route.binarize), self._weight(w, 0)
        if isinstance(coded, str) or isinstance(weight, str):
            return coded if isinstance(coded, str) else str(weight)
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            return "it adds a bias of its own to integers"
        coding, codes = coded
        if reason := _too_wide(coding, weight.coding, int(np.prod(static_shape(w)[1:]))):
            return reason
        kernel = static_shape(w)[2:]
        span: Window = window(node, shape[2:], kernel)
        bits = np.moveaxis(weight.bits if rank == 4 else weight.bits[:, :, :, None], 2, -1)
        planes = self._activations(route, coding, codes, node)
        if rank == 3:
            n, images, width, count = static_shape(planes)
            planes = reshape(self.graph, self.ctx, planes, (n, images, 1, width, count), node)
        group = int(node.attrs.get("group", 1))
        acc = add_node(
            self.graph, self.ctx, "BitSerialConv", [planes, self._held(w, "conv", bits)], stands_for=node, domain=DOMAIN,
            channels=shape[1], group=group, strides=list(span.strides), dilations=list(span.dilations),
            pads=list(span.pads), **_coefficients(coding, weight.coding),
        )  # fmt: skip
        self._float_tail(node, acc, (0, 3, 1, 2))
        text = f"BitSerialConv {span.kernel[0]}x{span.kernel[1]} {shape[1]}→{bits.shape[1]}"
        text += f" in {group} groups" if group > 1 else ""
        self.ctx.note(node, Status.PACKED, f"{text}, {_describe(coding)}, {weight.describe()}")
        return None

    def _rows(self, node: gs.Node) -> str | None:
        """Pack a Gemm or MatMul; gives the reason where its activations are levels and it cannot be."""
        x, w = node.inputs[0], node.inputs[1]
        if constant(w) is None or len(static_shape(w)) != 2 or node.attrs.get("transA", 0):
            return self._row_reason(node)
        rows = find_rows(x, _LEVELS)
        if isinstance(rows, str) or any(step.kind == "pool" for step in rows.route.steps):
            return None
        transposed = node.op == "MatMul" or not node.attrs.get("transB", 0)
        coded, weight = self._coded(rows.route.binarize), self._weight(w, 1 if transposed else 0)
        if isinstance(coded, str) or isinstance(weight, str):
            return coded if isinstance(coded, str) else str(weight)
        alpha, _, third = gemm_extras(node) if node.op == "Gemm" else (1.0, 1.0, None)
        if alpha != 1 or third is not None:
            return "it scales its product or adds to it"
        coding, codes = coded
        outputs, k = weight.bits.shape[1:]
        if reason := _too_wide(coding, weight.coding, k):
            return reason
        held = np.where(rows.columns >= 0, weight.bits[:, :, rows.columns], False)
        planes = self._activations(rows.route, coding, codes, node)
        acc = add_node(
            self.graph, self.ctx, "BitSerialGemm", [planes, self._held(w, (transposed, rows.columns.tobytes()), held)],
            stands_for=node, domain=DOMAIN, k=k, **_coefficients(coding, weight.coding),
        )  # fmt: skip
        self._float_tail(node, acc, None)
        text = f"BitSerialGemm {k}→{outputs}, {_describe(coding)}, {weight.describe()}"
        moved = rows.columns[rows.columns >= 0]
        permuted = "" if (np.diff(moved) > 0).all() else ", weights permuted to channels last"
        self.ctx.note(node, Status.PACKED, text + permuted)
        return None

    @staticmethod
    def _row_reason(node: gs.Node) -> str | None:
        """Why a product of levels with anything but a constant matrix on the right is left."""
        made = [producer(x) for x in node.inputs[:2]]
        if any(item is not None and item.op == "Quantize" and item.domain == DOMAIN for item in made):
            return "activations are quantized, but its weights are not a constant matrix on the right"
        return None

    def _float_tail(self, node: gs.Node, value: gs.Tensor, perm: tuple[int, ...] | None) -> None:
        """From the accumulator to the node's output tensor, which keeps its name."""
        ctx, output = self.ctx, node.outputs[0]
        target, shape = static_shape(output), static_shape(value)
        if perm is not None:
            shape = tuple(shape[i] for i in perm)
            value = add_node(
                self.graph, ctx, "Transpose", [value], stands_for=node, shape=shape, dtype=np.int32, perm=list(perm)
            )
        same = shape == target
        value = add_node(
            self.graph, ctx, "Cast", [value], stands_for=node, output=output if same else None, shape=shape,
            dtype=np.float32, to=_FLOAT,
        )  # fmt: skip
        if not same:
            reshape(self.graph, ctx, value, target, node, output)
        node.inputs.clear()


def _too_wide(x: Coding, w: Coding, terms: int) -> str | None:
    """Why sums of so many products do not fit an int32 accumulator; None when they do."""

    def largest(coding: Coding) -> int:
        low = -sum(map(abs, coding.coeffs)) if coding.bipolar else sum(c for c in coding.coeffs if c < 0)
        high = sum(map(abs, coding.coeffs)) if coding.bipolar else sum(c for c in coding.coeffs if c > 0)
        return max(abs(low + coding.offset), abs(high + coding.offset))

    if terms * largest(x) * largest(w) < 1 << 31:
        return None
    return f"sums of {terms} products of up to {largest(x)}·{largest(w)} do not fit 32 bits"


def _coefficients(x: Coding, w: Coding) -> dict[str, Any]:
    return {
        "x_coeffs": list(x.coeffs), "x_offset": x.offset, "w_coeffs": list(w.coeffs), "bipolar": int(w.bipolar),
    }  # fmt: skip


def _describe(coding: Coding) -> str:
    planes = len(coding.coeffs)
    text = f"activations of {planes} bit{'s' if planes > 1 else ''}"
    return f"{text} and an offset of {coding.offset}" if coding.offset else text
