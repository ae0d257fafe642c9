"""Reads the epilogue of an anchor (BinaryConv, BinaryGemm) from the nodes that the passes put in its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from ..opset import DOMAIN, VIEWS, keeps_places, operand_lies
from .kernel import Epilogue, EpilogueStep, PackedCopy

_TENSOR_OPS = {"Mul": "mul", "Add": "add", "Sub": "sub", "Div": "div"}


@dataclass
class Fused:
    """An anchor with what its kernel does afterwards. ``extra`` names the residual tensors, ``output`` what it stores;
    ``copies`` are the nodes behind ``output`` that pack it, whose results the kernel stores too."""

    epilogue: Epilogue
    output: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    copies: list[onnx.NodeProto] = field(default_factory=list)


def _per_channel(value: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """``value`` as float32 ``[channels]`` if it varies along the channel axis only, else None."""
    shape = (1,) * (rank - value.ndim) + value.shape
    if value.ndim > rank or any(size != 1 for i, size in enumerate(shape) if i != axis):
        return None
    if shape[axis] not in (1, channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(value.astype(np.float32).reshape(-1), (channels,)))


def read_epilogue(
    anchor: onnx.NodeProto,
    group: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
) -> Fused:
    """The longest prefix of ``group`` (in order) that a kernel can compute. The nodes it does not cover stay separate."""
    done = Fused(Epilogue(), anchor.output[0], [anchor])
    rank = len(shapes[anchor.output[0]])
    channels = shapes[anchor.output[0]][-1]
    axis, channels_first, steps, is_float = rank - 1, False, [], False
    for node in group:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if done.output not in node.input:
            break
        if node.op_type == "Pack" and node.domain == DOMAIN:
            threshold, flip = constants.get(node.input[1]), constants.get(node.input[2])
            if (
                is_float
                or channels_first
                or list(attrs["perm"]) != list(range(rank))
                or threshold is None
                or flip is None
            ):
                break
            # On integers, acc > t is acc >= t + 1.
            done.epilogue = Epilogue("bits", threshold=threshold + np.int32(attrs["strict"]), flip=flip)
            done.output = node.output[0]
            done.nodes.append(node)
            break
        if node.op_type == "Transpose" and not is_float and rank == 4 and list(attrs.get("perm", [])) == [0, 3, 1, 2]:
            axis, channels_first = 1, True
        elif node.op_type == "Cast" and attrs["to"] == onnx.TensorProto.FLOAT and not is_float:
            is_float = True
        elif node.op_type in VIEWS:
            if not is_float or not keeps_places(shapes[done.output], shapes[node.output[0]], channels_first):
                break
            rank = len(shapes[node.output[0]])
            axis = 1 if channels_first else rank - 1
        else:
            step = (
                _float_step(node, attrs, done, constants, shapes, channels_first, axis, channels) if is_float else None
            )
            if step is None:
                break
            steps.append(step)
        done.output = node.output[0]
        done.nodes.append(node)
    if done.epilogue.kind == "acc":
        if is_float:
            done.epilogue = Epilogue("float", steps=tuple(steps), channels_first=channels_first)
        else:  # a transpose alone is not worth a kernel variant
            done.nodes, done.output = [anchor], anchor.output[0]
    return done


def packed_copy(node: onnx.NodeProto, perm: Sequence[int], constants: Mapping[str, np.ndarray]) -> PackedCopy | None:
    """A ``Pack`` or ``PackLevels`` as a copy that its input's writer makes, where it moves axes by ``perm``; else None."""
    if node.domain != DOMAIN or node.op_type not in ("Pack", "PackLevels"):
        return None
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    threshold, flip = constants.get(node.input[1]), constants.get(node.input[2])
    if list(attrs["perm"]) != list(perm) or threshold is None or flip is None:
        return None
    if node.op_type == "PackLevels":
        return PackedCopy(threshold, flip, tuple(attrs["codes"]), int(attrs["planes"]))
    if attrs["strict"] and threshold.dtype == np.int32:
        if (threshold == np.iinfo(np.int32).max).any():
            return None
        threshold = threshold + np.int32(1)
    elif attrs["strict"]:  # x > t is x >= the float after t; nothing is above +inf
        after = np.nextafter(threshold, np.float32(np.inf))
        threshold = np.where(np.isposinf(threshold), np.float32(np.nan), after)
    return PackedCopy(threshold[None], flip)


_CHANNEL_STEPS = frozenset({"mul", "add", "sub", "rsub", "relu", "prelu", "clip", "cut"})


def float_chain(
    layer: onnx.NodeProto,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    constants: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
) -> Fused:
    """A float32 `Conv` and what follows it channel by channel: batch normalization, bias, activation, on constants alone.

    ``readers``: nodes that read a tensor; an output of the model counts as one more.
    """
    done = Fused(Epilogue("float", channels_first=True), layer.output[0], [layer])
    shape = shapes[layer.output[0]]
    steps: list[EpilogueStep] = []
    while len(readers.get(done.output, ())) == 1:
        node = readers[done.output][0]
        if node.domain or any(name and name != done.output and name not in constants for name in node.input):
            break
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        step = _float_step(node, attrs, done, constants, shapes, True, 1, shape[1])
        if step is None or step.op not in _CHANNEL_STEPS or step.lies is not None or done.extra:
            break
        steps.append(step)
        done.output = node.output[0]
        done.nodes.append(node)
    done.extra = []
    done.epilogue = Epilogue("float", steps=tuple(steps), channels_first=True)
    return done


def _float_step(
    node: onnx.NodeProto,
    attrs: dict,
    done: Fused,
    constants: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
    channels_first: bool,
    axis: int,
    channels: int,
) -> EpilogueStep | None:
    rank = len(shapes[done.output])
    if node.op_type == "Relu":
        return EpilogueStep("relu")
    if node.op_type == "LeakyRelu":
        return EpilogueStep("prelu", np.full(channels, attrs.get("alpha", 0.01), np.float32))
    if node.op_type == "ThresholdedRelu":
        return EpilogueStep("cut", np.full(channels, attrs.get("alpha", 1.0), np.float32))
    if node.op_type == "PRelu":
        slope = constants.get(node.input[1])
        slope = None if slope is None else _per_channel(slope, rank, axis, channels)
        return None if slope is None else EpilogueStep("prelu", slope)
    if node.op_type == "Clip":
        low, high = np.float32(-np.inf), np.float32(np.inf)
        names = [*node.input[1:], "", ""]
        if any(name and name not in constants for name in names):
            return None
        low = constants[names[0]].reshape(()) if names[0] else low
        high = constants[names[1]].reshape(()) if names[1] else high
        return EpilogueStep("clip", np.full(channels, low, np.float32), np.full(channels, high, np.float32))
    if node.op_type not in _TENSOR_OPS or (node.input[0] == done.output) == (node.input[1] == done.output):
        return None
    first = node.input[0] == done.output
    other = node.input[1] if first else node.input[0]
    op = _TENSOR_OPS[node.op_type]
    if not first and op == "div":
        return None
    op = "rsub" if op == "sub" and not first else op
    if other in constants:
        value = _per_channel(constants[other], rank, axis, channels)
        if value is not None:
            return EpilogueStep(op, value)  # type: ignore[arg-type]
    lies = operand_lies(shapes.get(other, (0,)), shapes[done.output], channels_first)
    if lies is None or shapes.get(node.output[0]) != shapes[done.output]:
        return None
    if other in constants:
        return EpilogueStep(op, constants[other].astype(np.float32), lies=lies)  # type: ignore[arg-type]
    done.extra.append(other)
    whole = shapes[other] == shapes[done.output]
    return EpilogueStep(op, len(done.extra) - 1, lies=None if whole else lies)  # type: ignore[arg-type]
