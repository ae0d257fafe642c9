"""What a pass is, and what passes share: the context of one run and small helpers over the graph.

A pass edits an onnx-graphsurgeon graph in place. It never changes what a model computes without saying so: for every
original node that it takes away, and for every node that it looked at and left, it writes a record with the reason.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..errors import ModelError
from ..opset import DOMAIN, REGISTRY, TensorType


class Status(str, Enum):
    """What happened to a node of the original model."""

    PACKED = "packed"
    """Computed on packed bits."""
    FUSED = "fused"
    """Part of another node's threshold or epilogue."""
    FOLDED = "folded"
    """Constant: computed at compile time."""
    REMOVED = "removed"
    """Had no effect on the outputs."""
    FLOAT = "float"
    """Left as it is, on float (or integer) tensors."""


KEPT_REASONS = frozenset({"fixed_point", "half_shortcuts", "int8_layers", "switched_weights"})
"""Passes whose reason for leaving a node in float stays when a later pass has a reason of its own."""
_JOINT = "; nor by another pass: "


@dataclass(frozen=True)
class Record:
    """Why one original node ended as it did. ``by`` is the pass that says so."""

    node: str
    op: str
    status: Status
    reason: str
    by: str


Moves = list[tuple[str, list[int]]]
"""How a tensor of the original comes to lie where the packed model takes its signs or levels, when that is earlier (in
front of a flattening, say): ``reshape`` to a shape, ``transpose`` by a permutation, ``crop`` by begins and ends, one by one."""


@dataclass(frozen=True)
class MovedSign:
    """A tensor of signs behind reshapes, transposes or a padding, in front of which a pass took them."""

    tensor: str
    source: str
    """What the signs are taken of, behind the moves."""
    moves: Moves
    """From behind to the front."""


@dataclass(frozen=True)
class Origin:
    """The tensor of the original model that a packed tensor holds the signs of.

    The packed tensor equals ``pack_bits(transpose(original, perm) > 0)`` over ``channels`` channels, except where the
    original is zero; ``moves`` come before the transpose.
    """

    tensor: str
    perm: list[int]
    channels: int
    unsigned: bool = False
    """Whether a zero of the original is the lower of two levels, a bit of 0, and not a third value."""
    moves: Moves = field(default_factory=list)


@dataclass(frozen=True)
class Levels:
    """The quantizer that computes a tensor of the original model: ``value[number of t with (x >= threshold[t]) xor flip]``."""

    tensor: str
    """Its output."""
    source: str
    """The tensor x of the original model that it quantizes; empty when that is not in the model."""
    thresholds: list[float]
    values: list[float]
    flip: int = 0
    error: float = 0.0
    """How far a value may be from the integer times the scale that is in its place."""
    moves: Moves = field(default_factory=list)


@dataclass(frozen=True)
class Int8Input:
    """How a layer's activations become 8-bit codes: ``round(x / scale)``, at most 127 in magnitude."""

    scale: float
    """A float32, positive and finite."""


@dataclass(frozen=True)
class Options:
    """Choices of the user that change what is computed."""

    sign_zero: int | None = None
    """Value of sign(0); None keeps the model's own."""
    int8: Mapping[str, Int8Input] | None = None
    """Float layers (by node) to compute on 8-bit integers; None: no such choice."""
    shortcuts: Mapping[str, int] | None = None
    """Sums (by node) whose operand of that number is stored as float16; None: no such choice."""


@dataclass
class Context:
    """State of one optimization run; every mapping is keyed by node or tensor name."""

    options: Options = field(default_factory=Options)
    opset: int = 18
    original: dict[str, str] = field(default_factory=dict)
    """Original node name → operator, in graph order."""
    records: dict[str, Record] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    """Node name → name of the torch module that it came from, where the exporter said so."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Packed tensor → what it stands for."""
    quantizers: dict[str, Levels] = field(default_factory=dict)
    """Output of a ``Quantize`` (or of one with other values in its place) → the quantizer that it is in the original."""
    groups: dict[str, str] = field(default_factory=dict)
    """Node → the anchor node (BinaryConv or BinaryGemm) whose kernel computes it too."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Node made by a pass → the original node whose work it does."""
    levels: dict[str, str] = field(default_factory=dict)
    """Output of a Binarize made by a pass → the original tensor of two levels, the higher positive, that it is the sign of."""
    moved: dict[str, MovedSign] = field(default_factory=dict)
    """Output of a Binarize that a pass made in front of moves → the signs behind them."""
    current: str = ""
    """Name of the running pass."""
    taken: set[str] = field(default_factory=set)
    """Names in use, of nodes and of tensors."""
    made: set[str] = field(default_factory=set)
    """Tensors that passes made; every other tensor has the name and the value of one of the original model."""
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """Node name → metadata that an exporter put there, kept as it is."""
    model_metadata: dict[str, str] = field(default_factory=dict)
    """Metadata of the model."""

    def note(self, node: gs.Node | str, status: Status, reason: str) -> None:
        """Record what happened to an original node (or to the original node that ``node`` does the work of)."""
        name = node if isinstance(node, str) else node.name
        name = self.renamed.get(name, name)
        if name not in self.original:
            return
        before, by = self.records.get(name), self.current
        if before is not None and before.by in KEPT_REASONS and before.status is status is Status.FLOAT:
            reason, by = f"{before.reason.split(_JOINT)[0]}{_JOINT}{reason}", before.by
        self.records[name] = Record(name, self.original[name], status, reason, by)

    def fresh(self, base: str) -> str:
        """A name starting with ``base`` that nothing else has."""
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def move_sign(self, signs: gs.Tensor, output: gs.Tensor, source: gs.Tensor, moves: Moves) -> None:
        """Record that ``signs`` are those in ``output``, of ``source``, before what ``moves`` undo, the last one first."""
        behind = self.moved.get(output.name, MovedSign(output.name, source.name, []))
        self.moved[signs.name] = replace(behind, moves=[*behind.moves, *moves])

    def origins_json(self) -> str:
        """``origins`` as stored in the packed model's metadata."""
        return json.dumps({name: asdict(origin) for name, origin in self.origins.items()}, sort_keys=True)

    def quantizers_json(self) -> str:
        """The quantizers by the original tensor that they give, as stored in the packed model's metadata."""
        ordered = sorted(
            self.quantizers.values(), key=lambda item: item.error
        )  # of several, the one with the larger error
        return json.dumps({item.tensor: asdict(item) for item in ordered}, sort_keys=True)


class Pass(ABC):
    """One rewrite. The docstring of a subclass states what it matches, why it is right, and when it does not fire."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    """Names of passes that must have run before."""
    exact: ClassVar[bool] = True
    """Whether every tensor that stays keeps its value bit for bit. False: within float rounding (``manager`` checks)."""

    @abstractmethod
    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Edit ``graph``; return whether anything changed."""

    def ensures(self, graph: gs.Graph, ctx: Context) -> str | None:
        """What is wrong with the graph after the pass, or None. Checked by the manager."""
        return None


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes ``tensor``, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def constant(tensor: gs.Tensor) -> np.ndarray | None:
    """The value of a constant tensor, else None."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """Nodes that read ``tensor``, each once."""
    return list({id(node): node for node in tensor.outputs}.values())


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is an output of the model."""
    return any(tensor is out for out in graph.outputs)


def only_consumer(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads ``tensor``, or None if there are more, or none, or it is a model output."""
    nodes = consumers(tensor)
    return nodes[0] if len(nodes) == 1 and not is_output(graph, tensor) else None


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of ``old`` read ``new``. ``old`` must not be a model output (give the new node its tensor)."""
    for node in consumers(old):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]


def static_shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """Shape of a tensor. Raises ``ModelError`` when it is not static."""
    shape = tensor.shape
    if shape is None or any(not isinstance(size, (int, np.integer)) for size in shape):
        raise ModelError(
            f"tensor '{tensor.name}' has shape {shape}, not a static one: pass --shape for every dynamic input"
        )
    return tuple(int(size) for size in shape)


def add_constant(ctx: Context, base: str, value: np.ndarray) -> gs.Constant:
    """A new constant tensor."""
    return gs.Constant(ctx.fresh(base), np.asarray(value, order="C"))


def add_node(
    graph: gs.Graph,
    ctx: Context,
    op: str,
    inputs: Sequence[gs.Tensor],
    *,
    stands_for: gs.Node | str,
    output: gs.Tensor | None = None,
    domain: str = "",
    suffix: str = "",
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    **attrs: Any,
) -> gs.Tensor:
    """Append a node and return its output tensor.

    ``stands_for`` is the original node whose work it does (for names and reports). ``output`` reuses a tensor, which
    keeps its name; else one is made. For an ``ai.xnorc`` operator (``domain=DOMAIN``) shape and dtype are inferred and
    the attributes checked; for a standard one give ``shape`` and ``dtype``.
    """
    base = stands_for if isinstance(stands_for, str) else stands_for.name
    base = ctx.renamed.get(base, base)
    name = ctx.fresh(f"{base}/{suffix or op}")
    ctx.renamed[name] = base
    if base in ctx.source:
        ctx.source[name] = ctx.source[base]
    if domain == DOMAIN:
        REGISTRY[op].check_attributes(attrs, name)
        types = [TensorType(static_shape(t), np.dtype(t.dtype)) for t in inputs]
        try:
            inferred = REGISTRY[op].infer(types, attrs)
        except ValueError as error:
            raise ModelError(f"node '{name}' ({op}): {error}") from error
        shape, dtype = inferred.shape, inferred.dtype
    if output is None:
        output = gs.Variable(ctx.fresh(f"{name}_out"), dtype=dtype, shape=list(shape) if shape is not None else None)
        ctx.made.add(output.name)
    else:
        output.inputs.clear()
        output.dtype, output.shape = dtype or output.dtype, list(shape) if shape is not None else output.shape
    graph.nodes.append(gs.Node(op, name, attrs=attrs, inputs=list(inputs), outputs=[output], domain=domain or None))
    return output
