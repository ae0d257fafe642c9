"""What each QONNX operator computes, as nodes of standard ONNX. ``qonnx.py`` says when they are put into a model.

Sources: ``docs/qonnx-custom-ops`` of fastmachinelearning/qonnx for the meaning and the rounding modes, the executor of the
qonnx package 1.0 for the order of the float32 operations and for what the documents leave open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import ModelError

MAX_BITS = 64
"""Widest integer that a quantizer may have. Brevitas uses 32 for biases."""
_EXPORTER_SCOPE = "export_handler"
"""Part of a module path that belongs to Brevitas' exporter, not to the network."""


@dataclass
class Held:
    """One QONNX node, kept while a standard one with the same output stands in its place."""

    node: onnx.NodeProto
    version: int | None
    """Version of the domain that the model imports; None if it imports none (old exporters)."""
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    """Values of the inputs other than the first, by index."""


def named(node: onnx.NodeProto) -> str:
    """A node, for an error message."""
    return f"node '{node.name or node.output[0]}' ({node.op_type})"


class Parts:
    """The nodes that one QONNX node becomes, as they are written one after the other."""

    def __init__(
        self, item: Held, place: onnx.NodeProto, titles: set[str], names: set[str], shape: list[int] | None
    ) -> None:
        self.item, self.shape = item, shape
        self.x = place.input[0]
        """The tensor that the next node reads."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._place, self._titles, self._names = place, titles, names
        self._attributes = {attr.name: attr for attr in item.node.attribute}

    # What the node says.

    def error(self, text: str) -> ModelError:
        """An error about this node."""
        return ModelError(f"{named(self.item.node)}: {text}")

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attr = self._attributes.get(name)
        return default if attr is None else attr.i

    def number(self, name: str, default: float) -> np.float32:
        """A float attribute."""
        attr = self._attributes.get(name)
        return np.float32(default if attr is None else attr.f)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attr = self._attributes.get(name)
        return default if attr is None else attr.s.decode(errors="replace")

    def floats(self, index: int, role: str) -> np.ndarray:
        """A constant input that must be finite float32."""
        value = self.item.constants[index]
        if value.dtype != np.float32 or not value.size or not np.isfinite(value).all():
            raise self.error(f"its {role} must be finite float32 numbers, is {value.dtype}: export the model again")
        return value

    def scale(self, index: int, role: str = "scale") -> np.ndarray:
        """A constant input that is divided by."""
        value = self.floats(index, role)
        if (value == 0).any():
            raise self.error(
                f"its {role} is zero: a channel was never calibrated; train or calibrate it, and export again"
            )
        return value

    def bits(self, index: int, role: str = "bit width") -> int:
        """A bit width: one whole number."""
        value = self.item.constants[index]
        numbers = np.unique(np.asarray(value, np.float64)) if value.dtype.kind in "fiu" else np.zeros(0)
        if len(numbers) != 1 or not 1 <= numbers[0] <= MAX_BITS or numbers[0] != np.floor(numbers[0]):
            shown = ", ".join(f"{number:g}" for number in numbers[:4])
            raise self.error(
                f"its {role} must be one whole number from 1 to {MAX_BITS}, is {shown or value.dtype}: export one quantizer "
                "with one bit width"
            )
        return int(numbers[0])

    # What it becomes.

    def constant(self, label: str, value: np.ndarray) -> str:
        """Name of a new initializer."""
        name = _fresh(f"{self.item.node.output[0]}/{label}", self._names)
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *operands: str, **attributes: object) -> str:
        """Append a node that reads ``x`` and ``operands``; ``x`` is its output from then on."""
        return self.node(op, [self.x, *operands], **attributes)

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Append a node; ``x`` is its output from then on."""
        self.x = _fresh(f"{self.item.node.output[0]}/{op}", self._names)
        title = _fresh(f"{self._title()}/{op}", self._titles)
        self.nodes.append(helper.make_node(op, inputs, [self.x], title, **attributes))
        return self.x

    def arithmetic(self, op: str, label: str, value: np.ndarray, neutral: float) -> None:
        """``x op value``, unless the value is the ``neutral`` element throughout."""
        if self.shape is not None and not _broadcasts(value.shape, self.shape):
            raise self.error(
                f"its {label} has shape {list(value.shape)}, which does not fit its input of shape {self.shape}: export one "
                "value, or one a channel"
            )
        if not (value == neutral).all() or (self.shape is None and value.size > 1):
            self.add(op, self.constant(label, value))

    def finish(self) -> list[onnx.NodeProto]:
        """The nodes, the last of which computes the tensor that the QONNX node computed, and has its name."""
        if not self.nodes:
            self.add("Identity")
        last = self.nodes[-1]
        last.output[0] = self.item.node.output[0]
        last.name = self._title()
        source = _source(self.item.node)
        for node in self.nodes:
            node.metadata_props.extend(self._place.metadata_props)
            if source and not any(item.key == "xnorc.source" for item in node.metadata_props):
                node.metadata_props.add(key="xnorc.source", value=source)
        return self.nodes

    def _title(self) -> str:
        return self._place.name or self.item.node.output[0]


def _fresh(base: str, taken: set[str]) -> str:
    """A name that starts with ``base`` and is not ``taken``, which it is from then on."""
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


def _broadcasts(shape: tuple[int, ...], whole: list[int]) -> bool:
    """Whether a tensor of ``shape`` broadcasts to ``whole`` and not beyond it."""
    if len(shape) > len(whole):
        return int(np.prod(shape)) == 1
    return all(size in (1, other) for size, other in zip(shape[::-1], whole[::-1], strict=False))


def _source(node: onnx.NodeProto) -> str:
    """``/features.0/act_quant/export_handler/Quant`` → ``features.0.act_quant``; empty if the name is no path."""
    parts = [part for part in node.name.split("/")[1:-1] if part != _EXPORTER_SCOPE]
    path: list[str] = []
    for part in parts if node.name.startswith("/") else []:
        path = [*path[:-1], part] if path and part.startswith(f"{path[-1]}.") else [*path, part]
    return ".".join(path)


def _limits(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Smallest and largest integer: two's complement, or unsigned; ``narrow`` leaves out −2ⁿ⁻¹, or 2ⁿ − 1."""
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def _clip(parts: Parts, low: int, high: int) -> None:
    parts.add("Clip", parts.constant("min", np.float32(low)), parts.constant("max", np.float32(high)))


def _round(parts: Parts, mode: str, never_negative: bool = False) -> None:
    """Round ``x`` to whole numbers by a mode of QONNX.

    The modes that are symmetric about zero (UP, DOWN, HALF_UP, HALF_DOWN) work on the magnitude; ``never_negative`` saves
    them the sign.
    """
    mode = mode.upper()
    if mode in ("ROUND", "HALF_EVEN"):
        parts.add("Round")
    elif mode in ("CEIL", "FLOOR"):
        parts.add(mode.capitalize())
    elif mode in ("UP", "DOWN", "ROUND_TO_ZERO", "HALF_UP", "HALF_DOWN"):
        sign = None
        if not never_negative:
            given = parts.x
            sign = parts.add("Sign")
            parts.node("Abs", [given])
        if mode.startswith("HALF"):
            parts.add("Add" if mode == "HALF_UP" else "Sub", parts.constant("half", np.float32(0.5)))
        parts.add("Floor" if mode in ("DOWN", "ROUND_TO_ZERO", "HALF_UP") else "Ceil")
        if sign is not None:
            parts.node("Mul", [sign, parts.x])
    else:
        raise parts.error(
            f"rounding mode '{mode[:40]}' is unknown: QONNX has ROUND (HALF_EVEN), CEIL, FLOOR, UP, DOWN (ROUND_TO_ZERO), "
            "HALF_UP and HALF_DOWN"
        )


def _bipolar(parts: Parts) -> None:
    """+1 where x ≥ 0, −1 elsewhere."""
    condition = parts.add("GreaterOrEqual", parts.constant("zero", np.float32(0)))
    plus, minus = (parts.constant(label, np.float32(v)) for label, v in (("plus", 1), ("minus", -1)))
    parts.node("Where", [condition, plus, minus])


def _translate_bipolar(parts: Parts) -> None:
    """``BipolarQuant(x, scale)``: +scale where x ≥ 0, −scale elsewhere."""
    scale = parts.floats(1, "scale")
    _bipolar(parts)
    parts.arithmetic("Mul", "scale", scale, 1)


def _translate_quant(parts: Parts) -> None:
    """``Quant(x, scale, zeropt, bitwidth)``; one signed bit means ±1, as the executor has it."""
    scale, zero, bits = parts.scale(1), parts.floats(2, "zero point"), parts.bits(3)
    signed, narrow = bool(parts.integer("signed", 1)), bool(parts.integer("narrow", 0))
    parts.arithmetic("Div", "scale", scale, 1)
    parts.arithmetic("Add", "zeropt", zero, 0)
    if bits == 1 and signed:
        _bipolar(parts)
    else:
        low, high = _limits(bits, signed, narrow)
        _clip(parts, low, high)
        _round(parts, parts.text("rounding_mode", "ROUND"), low >= 0)
    parts.arithmetic("Sub", "zeropt", zero, 0)
    parts.arithmetic("Mul", "scale", scale, 1)


def _is_old_trunc(node: onnx.NodeProto, version: int | None) -> bool:
    """Whether a ``Trunc`` is of version 1 of its domain, which has five inputs; version 2 has six."""
    old = len(node.input) == 5
    if version is not None and old != (version < 2):
        raise ModelError(
            f"{named(node)} has {len(node.input)} inputs, which does not fit version {version} of '{node.domain}' (version 1 "
            "has 5, version 2 has 6): export the model again"
        )
    return old


def _translate_trunc(parts: Parts) -> None:
    """``Trunc``: to integers of the input's scale, divided by a power of two, clamped (version 2), and rounded.

    Version 1 (x, scale, zeropt, in bits, out bits) divides by 2^(in − out) and scales back by the input's scale; version 2
    (x, scale, zeropt, in bits, out scale, out bits) divides by the power of two nearest to out scale / scale.
    """
    scale, zero = parts.scale(1), parts.floats(2, "zero point")
    parts.arithmetic("Div", "scale", scale, 1)
    parts.arithmetic("Add", "zeropt", zero, 0)
    parts.add("Round")
    mode = parts.text("rounding_mode", "FLOOR")
    if _is_old_trunc(parts.item.node, parts.item.version):
        step = np.float32(2.0) ** np.float32(parts.bits(3, "input bit width") - parts.bits(4, "output bit width"))
        parts.arithmetic("Div", "step", np.asarray(step), 1)
        _round(parts, mode)
        out_zero, out_scale = zero, scale
    else:
        out_scale, bits = parts.scale(4, "output scale"), parts.bits(5, "output bit width")
        if (out_scale / scale <= 0).any():
            raise parts.error("its scale and output scale have different signs: export the model again")
        step = np.asarray(2 ** np.round(np.log2(out_scale / scale)), np.float32)
        parts.arithmetic("Div", "step", step, 1)
        low, high = _limits(bits, bool(parts.integer("signed", 1)), bool(parts.integer("narrow", 0)))
        _clip(parts, low, high)
        _round(parts, mode, low >= 0)
        out_zero = zero / step
    parts.arithmetic("Sub", "out_zeropt", np.asarray(out_zero), 0)
    parts.arithmetic("Mul", "out_scale", out_scale, 1)


def _translate_thresholds(parts: Parts) -> None:
    """``MultiThreshold(x, thresholds)``: out_scale · (number of thresholds ≤ x) + out_bias, per channel.

    ``thresholds`` is [C, n], or [1, n] for all channels. ``data_layout`` says where C is; without it, the executor's rule
    for the rank: NC, NWC, NCHW, and axis 1 from rank 5 on.
    """
    values, rank = parts.floats(1, "thresholds"), len(parts.shape) if parts.shape is not None else 0
    if values.ndim != 2:
        raise parts.error(f"its thresholds have shape {list(values.shape)}: they must be [channels or 1, count]")
    if parts.shape is None:
        raise parts.error(f"the shape of '{parts.x}' cannot be inferred: fix the input shapes, or export again")
    layout = parts.text("data_layout", "") or {2: "NC", 3: "NWC", 4: "NCHW"}.get(rank, "")
    axis = layout.index("C") if "C" in layout else 1
    if axis >= rank:
        raise parts.error(f"data_layout '{layout}' does not fit its input of rank {rank}: export the model again")
    channels, count = values.shape
    if channels not in (1, parts.shape[axis]):
        raise parts.error(
            f"has thresholds for {channels} channels, its input has {parts.shape[axis]} on axis {axis}: data_layout "
            f"'{layout}' may be wrong (NCHW or NHWC)"
        )
    factor, bias = parts.number("out_scale", 1.0), parts.number("out_bias", 0.0)
    sizes = [1] * axis + [channels] + [1] * (rank - 1 - axis)
    if count == 1:
        limits = parts.constant("thresholds", values.reshape(sizes) if channels > 1 else values.reshape(()))
        condition = parts.add("GreaterOrEqual", limits)
        above, below = factor * np.float32(1) + bias, factor * np.float32(0) + bias
        parts.node("Where", [condition, parts.constant("above", above), parts.constant("below", below)])
        return
    last = parts.constant("last", np.array([rank], np.int64))
    parts.add("Unsqueeze", last)
    parts.add("GreaterOrEqual", parts.constant("thresholds", values.reshape([*sizes, count])))
    parts.add("Cast", to=TensorProto.FLOAT)
    parts.add("ReduceSum", last, keepdims=0)
    parts.arithmetic("Mul", "out_scale", np.asarray(factor), 1)
    parts.arithmetic("Add", "out_bias", np.asarray(bias), 0)


def _translate_xnor(parts: Parts) -> None:
    """``XnorPopcountMatMul(a, b)`` of bits 0 and 1: the number of equal bits, (k + (2a − 1)·(2b − 1)) / 2."""
    bits = parts.floats(1, "second operand")
    if bits.ndim != 2 or not np.isin(bits, (0, 1)).all():
        raise parts.error("its second operand must be a matrix of 0 and 1: export the model again")
    parts.add("Mul", parts.constant("two", np.float32(2)))
    parts.add("Sub", parts.constant("one", np.float32(1)))
    parts.add("MatMul", parts.constant("weight", 2 * bits - 1))
    parts.add("Add", parts.constant("count", np.float32(len(bits))))
    parts.add("Mul", parts.constant("half", np.float32(0.5)))


def _roles(*roles: str) -> Callable[[onnx.NodeProto, int | None], dict[int, str]]:
    """Every input but the first must be constant; what each is called."""
    return lambda node, version: dict(enumerate(roles, start=1))


def _trunc_roles(node: onnx.NodeProto, version: int | None) -> dict[int, str]:
    if _is_old_trunc(node, version):
        return dict(enumerate(("scale", "zero point", "input bit width", "output bit width"), start=1))
    return {1: "scale", 2: "zero point", 4: "output scale", 5: "output bit width"}


@dataclass(frozen=True)
class Operator:
    """How one operator is read."""

    inputs: tuple[int, int]
    """Least and largest number of inputs."""
    constants: Callable[[onnx.NodeProto, int | None], dict[int, str]]
    """Inputs that must be constant, and what they are called, for a node and the version of its domain."""
    translate: Callable[[Parts], None]
    """Writes the nodes. Raises ``ModelError`` for what the operator cannot mean."""
    stand_in: str = "Identity"
    """The operator of the same shape that holds its place."""


_QUANT = Operator((4, 4), _roles("scale", "zero point", "bit width"), _translate_quant)
OPERATORS = {
    "Quant": _QUANT,
    "IntQuant": _QUANT,
    "BipolarQuant": Operator((2, 2), _roles("scale"), _translate_bipolar),
    "Trunc": Operator((5, 6), _trunc_roles, _translate_trunc),
    "MultiThreshold": Operator((2, 2), _roles("thresholds"), _translate_thresholds),
    "XnorPopcountMatMul": Operator((2, 2), _roles("second operand"), _translate_xnor, "MatMul"),
}
