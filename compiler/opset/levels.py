"""Between real values and the levels of a quantizer: ``Quantize`` and ``PackLevels``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Attrs, Operator, TensorType, register
from .bits import pack_bits, packed_bytes
from .pack import PACK_LAST_AXIS, check_perm

MAX_PLANES = 8
"""Most bit planes of a level tensor: codes are below 256, and a quantizer has at most 255 thresholds."""


def _index_body(source: str, axis: str) -> str:
    """Statements that give the level index (int64 ``index``) of every element of ``source``, by binary search.

    ``axis``: name of an int64 tensor ``[1]`` that holds the channel axis. Reads ``threshold`` and ``flip``.
    """
    lines = f"""
    none = Constant <value_ints = [-1]> ()
    first_dim = Constant <value_ints = [0]> ()
    second_dim = Constant <value_ints = [1]> ()
    third_dim = Constant <value_ints = [2]> ()
    source_shape = Shape ({source})
    one_each = ConstantOfShape <value = int64[1] {{1}}> (source_shape)
    along = Squeeze ({axis})
    counted_channel = CumSum <exclusive = 1> (one_each, along)
    threshold_shape = Shape (threshold)
    steps = Slice (threshold_shape, first_dim, second_dim)
    width = Slice (threshold_shape, second_dim, third_dim)
    channel = Mod (counted_channel, width)
    flat_threshold = Reshape (threshold, none)
    flip_bool = Cast <to = 9> (flip)
    flipped = Gather (flip_bool, channel)
    last_step = Sub (steps, second_dim)
    index_8 = ConstantOfShape <value = int64[1] {{0}}> (source_shape)
    """
    for k in reversed(range(MAX_PLANES)):
        lines += f"""
    worth_{k} = Constant <value_ints = [{1 << k}]> ()
    ahead_{k} = Constant <value_ints = [{(1 << k) - 1}]> ()
    step_{k} = Add (index_{k + 1}, ahead_{k})
    exists_{k} = Less (step_{k}, steps)
    safe_{k} = Min (step_{k}, last_step)
    row_{k} = Mul (safe_{k}, width)
    place_{k} = Add (row_{k}, channel)
    limit_{k} = Gather (flat_threshold, place_{k})
    at_least_{k} = GreaterOrEqual ({source}, limit_{k})
    outcome_{k} = Xor (at_least_{k}, flipped)
    taken_{k} = And (outcome_{k}, exists_{k})
    taken_int_{k} = Cast <to = 7> (taken_{k})
    gain_{k} = Mul (taken_int_{k}, worth_{k})
    index_{k} = Add (index_{k + 1}, gain_{k})
    """
    return lines + "\n    index = Identity (index_0)\n"


def _check_steps(threshold: TensorType, flip: TensorType, channels: int) -> None:
    """Raise ``ValueError`` unless thresholds ``[T, C or 1]`` and flips ``[C or 1]`` fit ``channels``."""
    if len(threshold.shape) != 2 or not 0 < threshold.shape[0] < 1 << MAX_PLANES:
        raise ValueError(f"threshold {threshold.shape} must be [steps, channels] with 1 to 255 steps")
    width = threshold.shape[1]
    if width not in (1, channels) or flip.shape != (width,) or flip.dtype != np.uint8:
        raise ValueError(f"threshold {threshold.shape} and flip {flip} do not fit {channels} channels")


def level_index(x: np.ndarray, threshold: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """The level of each element: how many steps t have ``(x >= threshold[t]) xor flip``.

    ``x``: ``[..., C]``; ``threshold``: ``[T, C or 1]``; ``flip``: ``[C or 1]``. Gives int64, shaped like ``x``.
    """
    index = np.zeros(x.shape, np.int64)
    for limit in threshold:
        index += (x >= limit) ^ flip.astype(bool)
    return index


@register
class Quantize(Operator):
    """A quantizer as a step function: the value of the level that ``x`` lies on.

    ``level = number of steps t with (x >= threshold[t]) xor flip``, ``y = value[level]``. ``x``: float32;
    ``threshold``: float32 ``[T, C]``, or ``[T, 1]`` for all channels; ``flip``: uint8 ``[C]`` or ``[1]``, 0 or 1;
    ``value``: float32 ``[T + 1]``; ``axis``: the channel axis. The thresholds of a channel rise with t where its flip is
    0 and fall where it is 1. T is 1 to 255. ``x`` must not be NaN.

    What the quantizers of a model (Round, Clip, scale and their like) are rewritten to before packing.
    """

    name = "Quantize"
    inputs = ("x", "threshold", "flip", "value")
    attributes = {"axis": int}
    body = (
        """
    axis_int = Constant <value_int: int = @axis> ()
    axis_shape = Constant <value_ints = [1]> ()
    axis_dim = Reshape (axis_int, axis_shape)
    """
        + _index_body("x", "axis_dim")
        + """
    y = Gather (value, index)
    """
    )
    kernel = "levels:quantize"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """Same shape as ``x``, float32."""
        x, threshold, flip, value = inputs
        if not -len(x.shape) <= attrs["axis"] < len(x.shape):
            raise ValueError(f"x {x.shape} has no axis {attrs['axis']}")
        _check_steps(threshold, flip, x.shape[attrs["axis"]])
        if x.dtype != np.float32 or threshold.dtype != np.float32 or value.dtype != np.float32:
            raise ValueError(f"x ({x.dtype}), threshold ({threshold.dtype}) and value ({value.dtype}) must be float32")
        if value.shape != (threshold.shape[0] + 1,):
            raise ValueError(f"{threshold.shape[0]} steps make {threshold.shape[0] + 1} levels, value is {value.shape}")
        return x

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, threshold, flip, value = inputs
        index = level_index(np.moveaxis(x, attrs["axis"], -1), threshold, flip)
        return np.ascontiguousarray(np.moveaxis(value[index], -1, attrs["axis"]))


@register
class PackLevels(Operator):
    """Compare with the thresholds of a quantizer and store the bits of the level's code, a plane for each bit.

    ``level = number of steps t with (x >= threshold[t]) xor flip``, as in ``Quantize``; bit i of ``codes[level]`` goes to
    plane i. ``x``: float32 or int32, any rank, first transposed by ``perm``, after which the last axis is the channel
    axis of size C. ``threshold``: ``[T, C]`` or ``[T, 1]``, dtype of ``x``; ``flip``: uint8 ``[C]`` or ``[1]``;
    ``codes``: T + 1 numbers from 0 to 2^planes − 1. Output: uint8 ``[planes, ..., ceil(C/8)]``, tail bits zero.
    """

    name = "PackLevels"
    inputs = ("x", "threshold", "flip")
    attributes = {"perm": list, "codes": list, "planes": int}
    body = (
        """
    moved = Transpose <perm: ints = @perm> (x)
    axis_dim = Constant <value_ints = [-1]> ()
    """
        + _index_body("moved", "axis_dim")
        + """
    codes_all = Constant <value_ints: ints = @codes> ()
    code = Gather (codes_all, index)
    lead = Slice (source_shape, first_dim, none)
    channels = Gather (source_shape, none)
    rows_shape = Concat <axis = 0> (second_dim, none, channels)
    code_rows = Reshape (code, rows_shape)
    planes_int = Constant <value_int: int = @planes> ()
    planes_dim = Reshape (planes_int, second_dim)
    all_worths = Constant <value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    own_worths = Slice (all_worths, first_dim, planes_dim)
    worths_shape = Constant <value_ints = [-1, 1, 1]> ()
    worths = Reshape (own_worths, worths_shape)
    shifted = Div (code_rows, worths)
    two = Constant <value_ints = [2]> ()
    bits_long = Mod (shifted, two)
    bits = Cast <to = 6> (bits_long)
    """
        + PACK_LAST_AXIS.replace("y = Cast", "rows = Cast")
        + """
    y_shape = Concat <axis = 0> (planes_dim, lead, bytes)
    y = Reshape (rows, y_shape)
    """
    )
    kernel = "levels:pack_levels"
    packed_output = True

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """``uint8 [planes, transposed shape without the last axis, ceil(C/8)]``."""
        x, threshold, flip = inputs
        check_perm(attrs["perm"], len(x.shape))
        shape = tuple(x.shape[axis] for axis in attrs["perm"])
        _check_steps(threshold, flip, shape[-1])
        if threshold.dtype != x.dtype or x.dtype not in (np.float32, np.int32):
            raise ValueError(f"x is {x.dtype} and threshold {threshold.dtype}: both must be float32 or both int32")
        codes, planes = list(attrs["codes"]), attrs["planes"]
        if not 0 < planes <= MAX_PLANES or len(codes) != threshold.shape[0] + 1:
            raise ValueError(f"{threshold.shape[0]} steps do not fit {len(codes)} codes in {planes} planes")
        if min(codes) < 0 or max(codes) >= 1 << planes:
            raise ValueError(f"codes from {min(codes)} to {max(codes)} do not fit {planes} bits")
        return TensorType((planes, *shape[:-1], packed_bytes(shape[-1])), np.dtype(np.uint8))

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        x, threshold, flip = inputs
        index = level_index(np.transpose(x, attrs["perm"]), threshold, flip)
        code = np.asarray(attrs["codes"], np.int64)[index]
        return np.stack([pack_bits((code >> plane) & 1) for plane in range(attrs["planes"])])
