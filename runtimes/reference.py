"""The two references of a validation, in ONNX Runtime: the original model and the packed one, with every tensor inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from .. import golden
from ..opset import DOMAIN, REGISTRY, pack_bits, unpack_bits
from .bounds import VIEWS, Analysis, Error, few_bit_errors, weight_errors
from .compare import Flips, sign_flips
from .levels import Levels, Move, decode, level_flips, lie, moves_of, planes_of

if TYPE_CHECKING:
    from ..package import Package

_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
# What a sign idiom is made of: the way from its result back to the sign itself leads through these only.
_IDIOM = {
    "Where",
    "Cast",
    "Not",
    "Mul",
    "Div",
    "Add",
    "Sub",
    "Neg",
    "Identity",
    "Clip",
    "Dropout",
    "Equal",
    "Or",
    "And",
}
_FAR = 8
_MOVES_LEVELS = ("LevelMaxPool", "Reshape")
"""Operators behind which a ``PackLevels``' codes are still its codes."""
_MOVES = VIEWS | {"Transpose", "Pad"}
"""Operators in front of which passes take signs and levels."""
_WITHOUT_CHOICE = "/before xnorc's choice of sign(0)"
"""Behind the name of a tensor of the original: what it is without the user's choice."""


class Reference:
    """A model in ONNX Runtime; sessions are made once for each set of outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.outputs = [output.name for output in model.graph.output]
        self.nodes = {node.name: node for node in model.graph.node}
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [info.name for info in model.graph.input if info.name not in self.constants]
        self._sessions: dict[tuple[str, ...], Any] = {}

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.producer or tensor in self.inputs

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The named tensors (default: the model's outputs) for one sample."""
        wanted = tuple(dict.fromkeys(self.outputs if names is None else names))
        computed = tuple(name for name in wanted if name in self.producer)
        if computed not in self._sessions:
            self._sessions[computed] = golden.session(self.model, list(computed))
        values = golden.run(self._sessions[computed], feeds) if computed else {}
        return {name: values[name] if name in values else np.asarray(feeds[name]) for name in wanted}

    def before_sign(self, tensor: str, unsigned: bool = False) -> list[str]:
        """What the sign in ``tensor`` was taken of: one tensor, two that were compared, or none when that is not known.

        ``unsigned``: the tensor has the levels 0 and more; of ``sign(ReLU(x))`` it is then x that decides.
        """
        frontier, seen = [tensor], set()
        for _ in range(_FAR):
            following: list[str] = []
            for name in frontier:
                node = self.producer.get(name)
                if node is None or name in seen:
                    continue
                seen.add(name)
                if node.op_type == "Sign":
                    above = self.producer.get(node.input[0])
                    clipped = unsigned and above is not None and above.op_type in ("Relu", "Clip")
                    return [above.input[0] if clipped and above is not None else node.input[0]]
                if node.op_type in _COMPARISONS:
                    return list(node.input)
                if node.op_type in _IDIOM:
                    following += node.input
            frontier = following
        return []


@dataclass(frozen=True)
class Origin:
    """A packed tensor and the signs that it holds."""

    packed: str
    tensor: str
    perm: list[int]
    channels: int
    before: tuple[str, ...]
    """Tensors of the original that the margin is computed from; empty: the tensor itself."""
    unsigned: bool = False
    """Whether a zero of the original is a bit of 0: the lower of two levels."""
    levels: Levels | None = None
    """The quantizer whose levels it holds in bit planes; None: it holds signs."""
    codes: tuple[int, ...] = ()
    moves: tuple[Move, ...] = ()
    """How the original comes to lie where the packed model takes its signs or levels."""

    def laid(self, elements: np.ndarray) -> np.ndarray:
        """Something of each element of the original, as ``perm`` finds it."""
        return lie(elements, self.moves)


class References:
    """Original and packed model of a package, the origins between them, and the error analysis of each.

    Where the user chose a value of sign(0) (`xnorc.sign_zero`), the packed model is another function than the model as
    given: ``given`` is the latter, and ``original`` is it with the choice made, so that everything else must be equal as
    ever. Without a choice the two are one. Where the user chose int8 for layers in float, or float16 for shortcuts, ``floats``
    is the float model, and ``given`` is it with these layers in int8 and shortcuts rounded; else ``floats`` is None.
    """

    def __init__(self, package: Package, model: onnx.ModelProto | None = None) -> None:
        self.given = self.original = Reference(package.model() if model is None else model)
        self.floats: Reference | None = None
        self.int8_layers: list[str] = []
        """Nodes of the float model that are in int8."""
        packed = package.packed()
        metadata = {entry.key: entry.value for entry in packed.metadata_props}
        self.shortcuts: list[str] = []
        """Sums of the float model whose shortcut is stored as float16."""
        if "xnorc.int8" in metadata or "xnorc.shortcuts" in metadata:
            self.floats = self.given
            self.given = self.original = Reference(package.chosen_model(self.given.model))
            kept, layers = self.given.nodes, ("Conv", "Gemm", "MatMul")
            self.int8_layers = [n for n, node in self.floats.nodes.items() if node.op_type in layers and n not in kept]
            self.shortcuts = sorted(json.loads(metadata.get("xnorc.shortcuts", "{}")))
        self.packed = Reference(packed)
        self.analysis = Analysis(packed)
        self.tensors = [name for node in packed.graph.node for name in node.output if name]
        self.origins: list[Origin] = []
        self.unknown: list[str] = []
        """Packed tensors whose original is not in the model: an older opset was converted, say."""
        found = json.loads(metadata.get("xnorc.origins", "{}"))
        entries = json.loads(metadata.get("xnorc.levels", "{}"))
        self.levels = {name: Levels.of(entry) for name, entry in entries.items()}
        """Tensors of the original that a quantizer gives."""
        self.choice = metadata.get("xnorc.sign_zero", "model")
        """``model``, ``+1`` or ``-1``."""
        self.chosen: list[str] = []
        """Tensors of the original whose zeros the choice replaces."""
        if self.choice != "model":
            self._choose(found)
        self.original_analysis = Analysis(self.original.model, original=True)
        self._weight_errors: dict[str, Error] | None = None
        self._coded: dict[str, onnx.NodeProto] | None = None
        """Node of the original → the node of the packed model that holds its weights as codes."""
        for name in [tensor for tensor in self.tensors if tensor in found]:
            entry = found[name]
            if entry["tensor"] not in self.original:
                self.unknown.append(name)
                continue
            self.origins.append(self._origin(name, entry))
        self.channels = {name: entry["channels"] for name, entry in found.items()}
        self.kept_levels = {name: self.levels[name] for name in self.levels if self._is_made_by(name, "Quantize")}
        """Levels that are floats in both models."""
        self.shared = [name for name in self.tensors if name in self.original.producer and name not in found]
        """Tensors that both models have under one name."""
        self.signs = {
            name: tuple(self.original.before_sign(name, unsigned=self._is_zero_or_one(name)))
            for name in self.shared
            if self._is_made_by(name, "Binarize", "Sign") or self._is_zero_or_one(name)
        }
        """Signs that are floats in both models, and what each was taken of in the original."""

    def _origin(self, name: str, entry: Mapping[str, Any]) -> Origin:
        node, tensor = self.packed.producer[name], entry["tensor"]
        fields = name, tensor, entry["perm"], entry["channels"]
        while node.op_type in _MOVES_LEVELS and node.input[0] in self.packed.producer:
            node = self.packed.producer[node.input[0]]
        levels = self.levels.get(tensor) if node.op_type == "PackLevels" else None
        moves = moves_of(entry)
        if levels is None:
            unsigned = bool(entry.get("unsigned", False))
            return Origin(*fields, tuple(self.original.before_sign(tensor, unsigned)), unsigned, moves=moves)
        codes = next(tuple(a.ints) for a in node.attribute if a.name == "codes")
        before = (levels.source,) if levels.source in self.original else ()
        return Origin(*fields, before, False, levels, codes, moves)

    def _is_made_by(self, tensor: str, *operators: str) -> bool:
        """Whether the packed model makes a tensor by one of these operators, and moves of what they give."""
        node = self.packed.producer.get(tensor)
        while node is not None and node.op_type in _MOVES:
            node = self.packed.producer.get(node.input[0])
        return node is not None and node.op_type in operators

    def _is_zero_or_one(self, tensor: str) -> bool:
        """Whether a tensor is a `Sign` behind a ReLU in the original, and half a `Binarize` plus a half here."""
        made, node = self.original.producer.get(tensor), self.packed.producer.get(tensor)
        above = self.original.producer.get(made.input[0]) if made is not None and made.op_type == "Sign" else None
        if above is None or above.op_type not in ("Relu", "Clip"):
            return False
        for step in ("Add", "Mul"):
            if node is None or node.op_type != step:
                return False
            if not np.array_equal(self.analysis.constants.get(node.input[1], np.zeros(1)).reshape(-1), [0.5]):
                return False
            node = self.packed.producer.get(node.input[0])
        return node is not None and node.op_type == "Binarize"

    def _choose(self, origins: Mapping[str, Any]) -> None:
        """Make the user's choice of sign(0) in a copy of the original.

        It is made where the passes make it: in each `Sign` of constants, and in each tensor whose signs are packed or that
        is a `Binarize` with the chosen zero; not in one packed twice (a sign that keeps its three values).
        """
        analysis = Analysis(self.given.model, original=True)
        packed: dict[tuple[object, ...], set[object]] = {}
        for name, entry in origins.items():
            levels = self.levels.get(entry["tensor"])
            if entry.get("unsigned") or (levels is not None and not np.array_equal(levels.values, (-1, 1))):
                continue  # no signs
            if (node := self.packed.producer.get(name)) is not None:
                inputs = [self.analysis.constants.get(source) for source in node.input]
                what = tuple(source if v is None else v.tobytes() for source, v in zip(node.input, inputs, strict=True))
                packed.setdefault((entry["tensor"], tuple(entry["perm"]), moves_of(entry)), set()).add(what)
        twice = {tensor for (tensor, *_), ways in packed.items() if len(ways) > 1}
        names = {str(tensor) for tensor, *_ in packed} - twice
        for node in self.packed.model.graph.node:
            zero = next((a.i for a in node.attribute if a.name == "zero"), 0)
            if node.op_type == "Binarize" and zero == int(self.choice):
                names.add(node.output[0])
        model = onnx.ModelProto()
        model.CopyFrom(self.given.model)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            nodes.append(node)
            for position, name in enumerate(node.output):
                constant_sign = node.op_type == "Sign" and name in analysis.of_constants
                if not name or not (name in names or constant_sign):
                    continue
                self.chosen.append(name)
                before, mask, one = f"{name}{_WITHOUT_CHOICE}", f"{name}/not zero", f"{name}/sign(0)"
                node.output[position] = before
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(self.choice), one))
                nodes.append(onnx.helper.make_node("Cast", [before], [mask], f"{name}/cast", to=onnx.TensorProto.BOOL))
                nodes.append(onnx.helper.make_node("Where", [mask, before, one], [name], f"{name}/choice"))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        self.original = Reference(model)

    def zeros(self, values: Mapping[str, np.ndarray], weights: bool = False) -> int:
        """How many signs of activations (or of weights) are 0 in the original and have the chosen value here."""
        constants = self.original_analysis.of_constants
        names = [name for name in self.chosen if (name in constants) is weights]
        return sum(int((values[f"{name}{_WITHOUT_CHOICE}"] == 0).sum()) for name in names)

    def choice_note(self, zeros: int, of_weights: int) -> str:
        """The choice and its effect, in words."""
        note = f"sign(0) = {self.choice} by choice: {zeros} zero{'' if zeros == 1 else 's'}"
        return f"{note}, and {of_weights} of weights" if of_weights else note

    def original_tensors(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor of the original, but for those that are none (sequences, optionals), and its inputs."""
        skipped = ("Sequence", "Optional", "SplitToSequence", "If", "Loop", "Scan")
        names = [
            name
            for node in self.original.model.graph.node
            if not node.op_type.startswith(skipped)
            for name in node.output
            if name
        ]
        before = {name for origin in self.origins for name in origin.before}.union(*self.signs.values())
        needed = [*self.original.outputs, *self.shared, *(origin.tensor for origin in self.origins)]
        needed += before - self.original.constants
        constants = self.original_analysis.constants
        compared = {name: constants[name] for name in before & self.original.constants}
        return {**feeds, **compared, **self.original.run(feeds, [*names, *needed])}

    def original_errors(self, values: Mapping[str, np.ndarray]) -> dict[str, Error]:
        """Bounds of the tensors of the original, given ``original_tensors``; see ``bounds``."""
        if self._weight_errors is None:
            self._weight_errors = self._find_weight_errors(values)
        fixed = {name: self._level_error(levels, values) for name, levels in self.levels.items() if name in values}
        return self.original_analysis.run(values, given=self._weight_errors, fixed=fixed)[0]

    def _level_error(self, levels: Levels, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """How far the original's levels are from those that the packed model has in their place: no flip among them."""
        source = values.get(levels.source)
        return levels.distance(values[levels.tensor], None if source is None else source.astype(np.float64))

    def _find_weight_errors(self, values: Mapping[str, np.ndarray]) -> dict[str, Error]:
        """How far the constant weights of the original are from those that the packed model has in their place."""
        analysis, kept = self.original_analysis, self.analysis.constants
        found: dict[str, Error] = {}
        few_bits = {
            entry.value
            for node in self.packed.model.graph.node
            if node.op_type.startswith("BitSerial")
            for entry in node.metadata_props
            if entry.key == "xnorc.for"
        }
        for node in analysis.nodes:
            if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
                continue
            for side in (1,) if node.op_type == "Conv" else (0, 1):
                name = node.input[side]
                if not analysis.is_constant(name):
                    continue
                weight = analysis.constants[name] if name in analysis.constants else values[name]
                if weight.dtype != np.float32 or weight.ndim < 2 or np.array_equal(kept.get(name, ()), weight):
                    continue
                axis = 0
                if node.op_type != "Conv":
                    flag = "transB" if side else "transA"
                    transposed = any(a.name == flag and a.i for a in node.attribute)
                    axis = int(transposed) if side == 0 else int(not transposed)
                if node.name in few_bits:
                    error: np.ndarray | None = few_bit_errors(weight, axis)
                else:
                    decoded = self._decoded(node, weight, axis)
                    close = weight_errors(weight, axis)
                    error = close if decoded is None else np.abs(weight.astype(np.float64) - decoded)
                if error is not None:
                    found[name] = np.maximum(found.get(name, 0.0), error)
        return found

    def _decoded(self, node: onnx.NodeProto, weight: np.ndarray, axis: int) -> np.ndarray | None:
        """What the codes stand for that the packed model has in place of a weight of ``node``; None: it has no codes."""
        if self._coded is None:
            self._coded = {}
            for made in self.packed.model.graph.node:
                source = next((entry.value for entry in made.metadata_props if entry.key == "xnorc.for"), None)
                if source and made.domain == DOMAIN and hasattr(REGISTRY[made.op_type], "weights"):
                    self._coded[source] = made
        made = self._coded.get(node.name)
        if made is None:
            return None
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in made.attribute}
        constants = [self.analysis.constants.get(name, np.zeros(0, np.float32)) for name in made.input]
        operator: Any = REGISTRY[made.op_type]
        rows = operator.weights(constants, attrs)
        moved = (weight.shape[axis], *np.delete(weight.shape, axis))
        return np.moveaxis(rows.reshape(moved), 0, axis) if rows.size == weight.size else None

    def packed_tensors(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor of the packed model, its inputs included."""
        return {**feeds, **self.packed.run(feeds, self.tensors)}

    def flips(self, origin: Origin, packed: np.ndarray, values: Mapping[str, np.ndarray]) -> tuple[Flips, np.ndarray]:
        """Signs of ``packed`` that differ from the original's; see ``sign_flips``."""
        if origin.levels is not None:
            expected = self._as_planes(origin, packed, origin.levels.of_values(values[origin.tensor]))
            source = self._before_levels(origin.levels, values)
            margin = None if source is None else self._as_planes(origin, packed, origin.levels.margin(source))
            return level_flips(packed, origin.codes, expected, margin)
        tensor = values[origin.tensor].astype(np.float64)
        margin = self.margin(origin.before, tensor.shape, values)
        margin = np.abs(tensor) if margin is None else margin
        if origin.unsigned:
            tensor = np.where(tensor > 0, 1.0, -1.0)
        laid = origin.laid(tensor), origin.laid(margin)
        flips, where = sign_flips(packed, *laid, origin.perm, origin.channels)
        if origin.tensor in self.chosen:
            flips = replace(flips, ties=int((values[f"{origin.tensor}{_WITHOUT_CHOICE}"] == 0).sum()))
        return flips, where

    def lost_zeros(
        self, origin: Origin, packed: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Zeros of the original that the packed model does not have: a mask of bits, packed like the tensor.

        A sign with three values is two packed tensors, `x ≥ 0` and `x > 0`; a zero is where they differ.
        """
        if origin.unsigned or origin.levels is not None:
            return np.zeros_like(packed[origin.packed])
        shape = (*packed[origin.packed].shape[:-1], origin.channels)
        zero = np.transpose(origin.laid(values[origin.tensor]), origin.perm).reshape(shape) == 0
        if not zero.any():
            return np.zeros_like(packed[origin.packed])
        alike = [
            unpack_bits(packed[other.packed], origin.channels)
            for other in self.origins
            if (other.tensor, other.perm, other.moves) == (origin.tensor, origin.perm, origin.moves)
        ]
        alike = [bits for bits in alike if bits.shape == shape]
        return pack_bits(zero & (np.all(alike, axis=0) | ~np.any(alike, axis=0)))

    def margin(
        self, before: Sequence[str], shape: tuple[int, ...], values: Mapping[str, np.ndarray]
    ) -> np.ndarray | None:
        """How far the original was from changing its sign, or None where what the sign was taken of is not known."""
        if not before:
            return None
        first = values[before[0]].astype(np.float64)
        second = values[before[1]].astype(np.float64) if len(before) > 1 else 0.0
        distance = np.abs(first - second)
        return distance if distance.shape == shape else None

    def open_signs(
        self, before: Sequence[str], values: Mapping[str, np.ndarray], errors: Mapping[str, Error],
        packed_errors: Mapping[str, Error], shape: tuple[int, ...],
    ) -> np.ndarray | None:  # fmt: skip
        """Which signs of the original rounding leaves open for the packed model; None: not known.

        The value before the sign is within ``errors`` of the exact one in the original, and within ``packed_errors`` in
        the packed model, where that has the tensor. Where it has a threshold in its place, this was found by evaluating
        the packed float chain, whose roundings are among the original's (the one of s·Σ for the many of Σ±s), so that the
        original's own bound holds for it too. A sign can flip where the value is not farther from zero than both bounds
        together; where both are 0, nothing is open.
        """
        margin = self.margin(before, shape, values)
        if margin is None:
            return None
        bound: Error = 0.0
        for name in before:
            own = errors.get(name, 0.0)
            floats = name in self.shared and name in packed_errors
            bound = bound + own + (packed_errors[name] if floats else own)
        bound = np.broadcast_to(np.asarray(bound, np.float64), shape)
        return (margin <= bound) & (bound > 0)

    @staticmethod
    def _as_planes(origin: Origin, packed: np.ndarray, elements: np.ndarray) -> np.ndarray:
        """Something of each element of the original, as the planes of ``packed`` hold them: ``[..., channels]``."""
        return np.transpose(origin.laid(elements), origin.perm).reshape(*packed.shape[1:-1], origin.channels)

    def _before_levels(self, levels: Levels, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What the quantizer was given (float64), pooled as its output was; None where the original has no such tensor."""
        if levels.source not in values:
            return None
        return self._pooled(levels, values[levels.source]).astype(np.float64)

    def _pooled(self, levels: Levels, value: np.ndarray) -> np.ndarray:
        pools: list[onnx.NodeProto] = []
        node = self.original.producer.get(levels.tensor)
        while node is not None and node.op_type == "MaxPool":
            pools.append(node)
            node = self.original.producer.get(node.input[0])
        for pool in reversed(pools):
            value = self.original_analysis.evaluate(pool, [value.astype(np.float32)])[0]
        return value

    def open_levels(
        self, levels: Levels, values: Mapping[str, np.ndarray], errors: Mapping[str, Error],
        packed_errors: Mapping[str, Error],
    ) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
        """The lowest and highest level that rounding leaves open for each element; None: not known. See ``open_signs``."""
        x = self._before_levels(levels, values)
        if x is None:
            return None
        own = np.asarray(errors.get(levels.source, 0.0))
        floats = levels.source in self.shared and levels.source in packed_errors
        bound = np.asarray(own + (packed_errors[levels.source] if floats else own), np.float64)
        wide = np.broadcast_to(bound, values[levels.source].shape)
        # Never downwards: the pooling is done in float32.
        return levels.between(x, self._pooled(levels, wide * (1 + 2.0**-20)).astype(np.float64))

    def open_bits(
        self, origin: Origin, values: Mapping[str, np.ndarray], errors: Mapping[str, Error],
        packed_errors: Mapping[str, Error], packed: np.ndarray,
    ) -> np.ndarray | None:  # fmt: skip
        """Which bits of ``packed``, an origin's tensor, rounding leaves open as they are; packed like it. None: not known."""
        if origin.levels is not None:
            ends = self.open_levels(origin.levels, values, errors, packed_errors)
            if ends is None:
                return None
            low, high = (self._as_planes(origin, packed, end) for end in ends)
            found = decode(packed, origin.codes, origin.channels)
            return planes_of((low <= found) & (found <= high) & (low < high), len(packed))
        packed_shape = packed.shape
        is_open = self.open_signs(origin.before, values, errors, packed_errors, values[origin.tensor].shape)
        if is_open is None:
            return None
        return pack_bits(np.transpose(origin.laid(is_open), origin.perm).reshape(*packed_shape[:-1], origin.channels))

    def nodes_of(self, step: Mapping[str, Any], tensor: str) -> list[onnx.NodeProto]:
        """The nodes of a step that ``tensor`` depends on, in graph order, views between them included."""
        names = set(step["nodes"])
        found: set[str] = set()
        waiting = [tensor]
        while waiting:
            node = self.packed.producer.get(waiting.pop())
            if node is None or node.output[0] in found or not (node.name in names or node.op_type in VIEWS):
                continue
            found.add(node.output[0])
            waiting += node.input
        return [node for node in self.packed.model.graph.node if node.output[0] in found]
