"""``pack``: layers of ±1 activations and ±1 weights become operations on packed bits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN, pack_bits
from ..base import (
    Context,
    Moves,
    Origin,
    Pass,
    Status,
    add_constant,
    add_node,
    constant,
    consumers,
    producer,
    static_shape,
)
from ..chain import RESHAPES, absorbed, original_name, trace_chain
from ..graph import dead_nodes, remove_node, toposort
from ..signs.affine_signs import sinkable
from ..signs.binary_layer import BinaryConvLayer, BinaryRowsLayer, read_layer
from ..signs.bit_route import Route, Step

TWO_PASSES = "zero can reach this sign: exact on two planes of bits, twice where they differ; --sign-zero=+1 saves that"
_FLOAT = 1
"""ONNX element type of float32, as Cast wants it."""


class PackLayers(Pass):
    """Conv, Gemm and MatMul whose activations come from a ``Binarize`` and whose weights are exactly ±1.

    They become ``Pack → BinaryConv/BinaryGemm → (Transpose to NCHW) → Cast → (bias Add)``; the last tensor keeps the
    original output's name. The products are ±1 and their sums below 2^24, so float32 sums of the original are exact
    integers in any order and the accumulator equals them. A Conv adds its bias to the finished sum, as ONNX Runtime's
    does; ``split_bias`` has taken that of a Gemm, which rounds differently, apart before.

    * One ``Pack`` serves every reader of a Binarize. Its threshold is 0, ``>=`` where the sign of zero is +1 and ``>``
      where it is −1.
    * MaxPool, Transpose, Reshape, Flatten, Squeeze and Unsqueeze between the sign and the layer act on bits: the
      maximum of signs is the OR of bits; a flattened feature map keeps its channels-last order, and the weights are
      permuted.
    * ``Pad`` by ±1 before a Conv becomes ``pad_value``.
    * Where sign(0) = 0 there are three values. ``sign(x) = ((x >= 0) + (x > 0)) / 2`` in signs, so two convolutions on
      the same weights are added as integers and halved (exact: the sum is even). Nodes are visited in graph order, so
      the layer before is packed already: if its accumulator reaches this sign through a chain that is nonzero at every
      reachable value, one pass is enough.
    * The sign of a flattened feature map is taken before it is flattened: there the channels are still an axis.
    * A 1-D Conv is a 2-D one of height 1.

    A node that does not match is recorded as float with the reason: see ``binary_layer`` and ``bit_route``.
    """

    name: ClassVar[str] = "pack"
    requires: ClassVar[tuple[str, ...]] = ("split_bias",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        return Packer(graph, ctx).run()


class Packer:
    """State of one run: what is already packed, so that it is shared."""

    def __init__(self, graph: gs.Graph, ctx: Context) -> None:
        self.graph, self.ctx = graph, ctx
        self.bits: dict[Any, gs.Tensor] = {}
        self.weights: dict[Any, gs.Tensor] = {}
        self.passes: dict[int, tuple[int, ...]] = {}
        self.readers: dict[int, tuple[gs.Node, set[str]]] = {}

    def run(self) -> bool:
        """Pack every layer; returns whether there was one."""
        for node in list(self.graph.nodes):
            if node.op == "Binarize" and node.domain == DOMAIN:
                self._sign_before_flatten(node)
        toposort(self.graph)
        for node in list(self.graph.nodes):
            if node.domain or node.op not in ("Conv", "Gemm", "MatMul"):
                continue
            layer = read_layer(node)
            if isinstance(layer, str):
                scaled = sinkable(node)
                self.ctx.note(node, Status.FLOAT, scaled if isinstance(scaled, str) else layer)
            elif isinstance(layer, BinaryConvLayer):
                self._conv(node, layer)
            else:
                self._rows(node, layer)
        for node in dead_nodes(self.graph):
            remove_node(self.graph, node)
        for binarize, readers in self.readers.values():
            self.note_sign(binarize, readers)
        return bool(self.bits)

    # Activations

    def _sign_before_flatten(self, binarize: gs.Node) -> None:
        """``Binarize(Flatten(x))`` before a Gemm or MatMul → ``Flatten(Binarize(x))``, the same, element by element."""
        flatten, output = producer(binarize.inputs[0]), binarize.outputs[0]
        if flatten is None or flatten.domain or flatten.op not in RESHAPES:
            return
        source = flatten.inputs[0]
        if len(static_shape(source)) <= len(static_shape(output)) or not any(
            reader.op in ("Gemm", "MatMul") for reader in consumers(output)
        ):
            return
        zero = binarize.attrs["zero"]
        signs = add_node(self.graph, self.ctx, "Binarize", [source], stands_for=binarize, domain=DOMAIN, zero=zero)
        moves: Moves = [("reshape", list(static_shape(source)))]
        self.ctx.move_sign(signs, output, flatten.outputs[0], moves)
        reshape(self.graph, self.ctx, signs, static_shape(output), flatten, output)
        binarize.inputs.clear()
        remove_node(self.graph, binarize)

    def strict(self, binarize: gs.Node) -> tuple[int, ...]:
        """For each pass over a layer whose input is this sign: whether zero is below the threshold."""
        zero = binarize.attrs["zero"]
        if zero:
            return (0,) if zero > 0 else (1,)
        if id(binarize) not in self.passes:
            chain = trace_chain(binarize.inputs[0])
            alone = not isinstance(chain, str) and chain.never_zero(self.ctx.opset)
            self.passes[id(binarize)] = (0,) if alone else (0, 1)
        return self.passes[id(binarize)]

    def activations(self, route: Route, reader: gs.Node) -> list[gs.Tensor]:
        """The packed operand of a layer, once for each pass."""
        name = original_name(self.ctx, reader)
        self.readers.setdefault(id(route.binarize), (route.binarize, set()))[1].add(name)
        for step in route.steps:
            text = "maximum of signs, taken on bits" if step.kind == "pool" else "moves packed bits, not floats"
            absorbed(self.ctx, step.node, Status.PACKED if step.kind == "pool" else Status.FUSED, text)
        return [self._walk(route, strict) for strict in self.strict(route.binarize)]

    def _walk(self, route: Route, strict: int) -> gs.Tensor:
        key: Any = (id(route.binarize.inputs[0]), strict, route.perm)
        if key not in self.bits:
            self.bits[key] = self._pack(route, strict)
        tensor = self.bits[key]
        for step in route.steps:
            key = (key, step.kind, step.sizes, step.window)
            if key not in self.bits:
                self.bits[key] = self._step(tensor, step)
            tensor = self.bits[key]
        return tensor

    def _pack(self, route: Route, strict: int) -> gs.Tensor:
        source = route.binarize.inputs[0]
        channels = static_shape(source)[route.perm[-1]]
        base = original_name(self.ctx, route.binarize)
        packed = add_node(
            self.graph, self.ctx, "Pack",
            [source, add_constant(self.ctx, f"{base}/threshold", np.zeros(channels, np.float32)),
             add_constant(self.ctx, f"{base}/flip", np.zeros(channels, np.uint8))],
            stands_for=route.binarize, domain=DOMAIN, perm=list(route.perm), strict=strict,
        )  # fmt: skip
        sign = route.binarize.outputs[0].name
        behind = self.ctx.moved.get(sign)
        sign, moves = (sign, []) if behind is None else (behind.tensor, behind.moves)
        if sign not in self.ctx.made:
            self.ctx.origins[packed.name] = Origin(sign, list(route.perm), channels, moves=moves)
        elif sign in self.ctx.levels:
            self.ctx.origins[packed.name] = Origin(self.ctx.levels[sign], list(route.perm), channels, True, moves)
        return packed

    def _step(self, tensor: gs.Tensor, step: Step) -> gs.Tensor:
        if step.kind == "reshape":
            return reshape(self.graph, self.ctx, tensor, step.sizes, step.node)
        if step.kind == "transpose":
            shape = static_shape(tensor)
            return add_node(
                self.graph, self.ctx, "Transpose", [tensor], stands_for=step.node, perm=list(step.sizes),
                shape=[shape[i] for i in step.sizes], dtype=np.uint8,
            )  # fmt: skip
        assert step.window is not None
        return max_pool(self.graph, self.ctx, tensor, step.node, step.window.pool_attrs(), step.sizes, None)

    # Layers

    def _weight(self, node: gs.Node, key: Any, bits: np.ndarray) -> gs.Tensor:
        """A packed weight, shared by the layers that share the original."""
        key = (id(node.inputs[1]), key)
        if key not in self.weights:
            self.weights[key] = add_constant(self.ctx, f"{node.inputs[1].name}/packed", bits)
        return self.weights[key]

    def _conv(self, node: gs.Node, layer: BinaryConvLayer) -> None:
        graph, ctx = self.graph, self.ctx
        bits = pack_bits(np.moveaxis(layer.weights, 1, -1) > 0)
        weight = self._weight(node, "conv", bits)
        accumulators = []
        for packed in self.activations(layer.route, node):
            n, *spatial, count = static_shape(packed)
            if len(spatial) == 1:
                packed = reshape(graph, ctx, packed, (n, 1, spatial[0], count), node)
            accumulators.append(add_node(
                graph, ctx, "BinaryConv", [packed, weight], stands_for=node, domain=DOMAIN,
                channels=layer.channels, group=layer.group, strides=list(layer.window.strides),
                dilations=list(layer.window.dilations), pads=list(layer.window.pads), pad_value=layer.pad_value,
            ))  # fmt: skip
        bias = None if layer.bias is None else layer.bias.reshape(1, -1, 1, 1)
        self._float_tail(node, accumulators, bias, (0, 3, 1, 2))
        if layer.pad is not None:
            absorbed(ctx, layer.pad, Status.FUSED, f"pad_value of '{original_name(ctx, node)}'")
        self._note_layer(node, layer.describe(), layer.route)

    def _rows(self, node: gs.Node, layer: BinaryRowsLayer) -> None:
        rows = layer.rows
        held = np.where(rows.columns >= 0, layer.weights[:, rows.columns] > 0, False)
        weight = self._weight(node, (layer.transposed, rows.columns.tobytes()), pack_bits(held))
        accumulators = [
            add_node(self.graph, self.ctx, "BinaryGemm", [packed, weight], stands_for=node, domain=DOMAIN,
                     k=layer.weights.shape[1])
            for packed in self.activations(rows.route, node)
        ]  # fmt: skip
        self._float_tail(node, accumulators, None, None)
        self._note_layer(node, layer.describe(), rows.route)

    def _float_tail(
        self, node: gs.Node, accumulators: list[gs.Tensor], bias: np.ndarray | None, perm: tuple[int, ...] | None
    ) -> None:
        """From one or two accumulators to the node's output tensor, which keeps its name."""
        ctx, output = self.ctx, node.outputs[0]
        value, shape = accumulators[0], static_shape(accumulators[0])
        steps: list[tuple[str, np.ndarray | None, dict[str, Any]]] = []
        if len(accumulators) == 2:
            value = add_node(self.graph, ctx, "Add", accumulators, stands_for=node, shape=shape, dtype=np.int32)
        if perm is not None:
            shape = tuple(shape[i] for i in perm)
            steps.append(("Transpose", None, {"perm": list(perm), "dtype": np.int32}))
        steps.append(("Cast", None, {"to": _FLOAT}))
        if len(accumulators) == 2:
            steps.append(("Mul", np.array(0.5, np.float32), {}))
        if bias is not None:
            steps.append(("Add", bias, {}))
        target = static_shape(output)
        if target != shape:
            steps.append(("Reshape", np.array(target, np.int64), {"shape": target}))
        for i, (op, operand, extra) in enumerate(steps):
            inputs = [value]
            if operand is not None:
                word = {"Add": "bias", "Mul": "scale", "Reshape": "shape"}[op]
                inputs.append(add_constant(ctx, f"{original_name(ctx, node)}/{word}", operand))
            settings = {"dtype": np.float32, "shape": shape, **extra}
            last = output if i == len(steps) - 1 else None
            value = add_node(self.graph, ctx, op, inputs, stands_for=node, output=last, **settings)
        node.inputs.clear()

    # Records

    def _note_layer(self, node: gs.Node, text: str, route: Route) -> None:
        twice = len(self.strict(route.binarize)) == 2
        self.ctx.note(node, Status.PACKED, f"{text}; {TWO_PASSES}" if twice else text)

    def note_sign(self, binarize: gs.Node, readers: set[str]) -> None:
        """Record a Binarize whose bits the named layers read."""
        count = len(readers)
        text = f"packed into bits for {count} layer{'s' if count > 1 else ''}"
        if len(self.strict(binarize)) == 2:
            text += f"; {TWO_PASSES}"
        if binarize.outputs:  # it was not dropped: something else reads the float signs
            names = [f"'{original_name(self.ctx, n)}'" for n in consumers(binarize.outputs[0])]
            text += f"; also kept in float for {', '.join(names) or 'the model output'}"
        self.ctx.note(binarize, Status.PACKED, text)


def reshape(
    graph: gs.Graph, ctx: Context, tensor: gs.Tensor, shape: tuple[int, ...], stands_for: gs.Node,
    output: gs.Tensor | None = None,
) -> gs.Tensor:  # fmt: skip
    """``tensor`` with another shape. Nothing is made when it has it already, unless ``output`` is to be filled."""
    source = tensor.inputs[0] if tensor.inputs else None
    if source is not None and source.op == "Reshape" and constant(source.inputs[1]) is not None:
        tensor = source.inputs[0]
    if output is None and static_shape(tensor) == tuple(shape):
        return tensor
    target = add_constant(ctx, f"{original_name(ctx, stands_for)}/shape", np.array(shape, np.int64))
    return add_node(
        graph, ctx, "Reshape", [tensor, target], stands_for=stands_for, output=output, shape=shape, dtype=tensor.dtype
    )


def max_pool(
    graph: gs.Graph, ctx: Context, tensor: gs.Tensor, node: gs.Node, attrs: dict[str, Any],
    sizes: tuple[int, ...], minimum: np.ndarray | None, output: gs.Tensor | None = None,
) -> gs.Tensor:  # fmt: skip
    """``BinaryMaxPool`` of bits ``[N, W, bytes]`` or ``[N, H, W, bytes]``; ``sizes`` is the shape of the output.

    ``minimum``: bool [C], the channels that need the minimum.
    """
    shape = static_shape(tensor)
    flip = pack_bits(minimum) if minimum is not None else np.zeros(shape[-1], np.uint8)
    lifted = tensor if len(shape) == 4 else reshape(graph, ctx, tensor, (shape[0], 1, *shape[1:]), node)
    constants = [lifted, add_constant(ctx, f"{original_name(ctx, node)}/flip", flip)]
    if len(sizes) == 4:
        return add_node(graph, ctx, "BinaryMaxPool", constants, stands_for=node, domain=DOMAIN, output=output, **attrs)
    pooled = add_node(graph, ctx, "BinaryMaxPool", constants, stands_for=node, domain=DOMAIN, **attrs)
    return reshape(graph, ctx, pooled, sizes, node, output)
