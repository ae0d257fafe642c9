"""``FixedQuantize`` and ``FixedRescale``: into fixed point, and from one fixed-point type to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._fixed import FixedType, Overflow, Rounding, bounds, limit, shift_round
from .base import Attrs, Operator, TensorType, register

DTYPES: dict[int, np.dtype] = {2: np.dtype(np.uint8), 3: np.dtype(np.int8), 6: np.dtype(np.int32)}
"""ONNX element type → dtype of raw values."""

# Shared by the bodies: the ends of the range, `low` and `high`, in int64.
_RANGE = """
    width = Constant <value_int: int = @width> ()
    signed = Constant <value_int: int = @signed> ()
    overflow = Constant <value_int: int = @overflow> ()
    no = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    three = Constant <value_int = 3> ()
    span = Pow (two, width)
    half_span = Div (span, two)
    reach = Mul (half_span, signed)
    least = Neg (reach)
    above_high = Add (least, span)
    high = Sub (above_high, one)
    is_symmetric = Equal (overflow, three)
    symmetric = Cast <to = 7> (is_symmetric)
    raised = Mul (symmetric, signed)
    low = Add (least, raised)
    is_wrap = Equal (overflow, no)
    is_zero = Equal (overflow, two)
"""

# Shared by the bodies: `up` from `negative`, `above`, `tie`, `odd`, `truncated` (the last for TRN and TRN_ZERO).
_ROUNDING = """
    rounding = Constant <value_int: int = @rounding> ()
    mode_rnd = Constant <value_int = 1> ()
    mode_zero = Constant <value_int = 3> ()
    mode_inf = Constant <value_int = 4> ()
    mode_min_inf = Constant <value_int = 5> ()
    mode_conv = Constant <value_int = 6> ()
    is_rnd = Equal (rounding, mode_rnd)
    is_rnd_zero = Equal (rounding, mode_zero)
    is_rnd_inf = Equal (rounding, mode_inf)
    is_rnd_min_inf = Equal (rounding, mode_min_inf)
    is_rnd_conv = Equal (rounding, mode_conv)
    positive = Not (negative)
    tie_rnd = And (is_rnd, rnd_side)
    tie_zero = And (is_rnd_zero, zero_side)
    tie_inf = And (is_rnd_inf, inf_side)
    tie_min_inf = And (is_rnd_min_inf, min_inf_side)
    tie_conv = And (is_rnd_conv, odd)
    tie_1 = Or (tie_rnd, tie_zero)
    tie_2 = Or (tie_inf, tie_min_inf)
    tie_3 = Or (tie_1, tie_2)
    tie_up = Or (tie_3, tie_conv)
    tie_goes = And (tie, tie_up)
    nearest_up = Or (above, tie_goes)
    mode_trn_zero = Constant <value_int = 2> ()
    is_trn_zero = Equal (rounding, mode_trn_zero)
    mode_trn = Constant <value_int = 0> ()
    is_trn = Equal (rounding, mode_trn)
    truncates = Or (is_trn, is_trn_zero)
    rounds = Not (truncates)
    up_nearest = And (rounds, nearest_up)
    up_truncated = And (truncates, truncated_up)
    up = Or (up_nearest, up_truncated)
"""


def _check(attrs: Attrs) -> None:
    """Raise ``ValueError`` unless the attributes describe a type whose raw values fit the output's dtype."""
    if attrs["rounding"] not in list(Rounding) or attrs["overflow"] not in list(Overflow):
        raise ValueError(f"rounding {attrs['rounding']} must be 0 to 6 and overflow {attrs['overflow']} 0 to 3")
    if attrs["signed"] not in (0, 1) or not 1 <= attrs["width"] <= 24 or attrs["to"] not in DTYPES:
        raise ValueError(f"signed must be 0 or 1, width 1 to 24, to one of {sorted(DTYPES)}: they are {dict(attrs)}")
    low, high = bounds(attrs["width"], bool(attrs["signed"]))
    kind = np.iinfo(DTYPES[attrs["to"]])
    if low < kind.min or high > kind.max:
        raise ValueError(f"values from {low} to {high} do not fit {kind.dtype}")


@register
class FixedQuantize(Operator):
    """Real values to the raw values of a fixed-point type: ``y = overflow(round(x · 2^fraction))``.

    ``x``: float32, finite, any shape; output: of element type ``to`` (ONNX's number: 2 uint8, 3 int8, 6 int32), the
    integers that ``ap_fixed<width, width − fraction, rounding, overflow>`` holds (``ap_ufixed`` where ``signed`` is 0) of
    AMD's Vitis HLS (UG1399, "Arbitrary Precision Fixed-Point Data Types"). ``rounding``: 0 AP_TRN, 1 AP_RND, 2 AP_TRN_ZERO,
    3 AP_RND_ZERO, 4 AP_RND_INF, 5 AP_RND_MIN_INF, 6 AP_RND_CONV; ``overflow``: 0 AP_WRAP, 1 AP_SAT, 2 AP_SAT_ZERO,
    3 AP_SAT_SYM; ``width`` is at most 24, so that every raw value is a float32.
    """

    name = "FixedQuantize"
    inputs = ("x",)
    attributes = {"fraction": int, "width": int, "signed": int, "rounding": int, "overflow": int, "to": int}
    body = (
        """
    base = Constant <value = float {2}> ()
    fraction_int = Constant <value_int: int = @fraction> ()
    fraction_float = Cast <to = 1> (fraction_int)
    scale = Pow (base, fraction_float)
    scaled = Mul (x, scale)
    nothing = Constant <value = float {0}> ()
    half = Constant <value = float {0.5}> ()
    negative = Less (scaled, nothing)
    magnitude = Abs (scaled)
    whole = Floor (magnitude)
    part = Sub (magnitude, whole)
    above = Greater (part, half)
    tie = Equal (part, half)
    parity = Mod <fmod = 1> (whole, base)
    odd = Greater (parity, nothing)
    inexact = Greater (part, nothing)
    rnd_side = Not (negative)
    min_inf_side = Identity (negative)
    zero_side = And (negative, rnd_side)
    inf_side = Or (negative, rnd_side)
    downward = And (negative, inexact)
    trn_mode = Constant <value_int: int = @rounding> ()
    trn_number = Constant <value_int = 0> ()
    toward_minus = Equal (trn_mode, trn_number)
    truncated_up = And (downward, toward_minus)
    """
        + _ROUNDING
        + """
    up_float = Cast <to = 1> (up)
    rounded = Add (whole, up_float)
    opposite = Neg (rounded)
    raw = Where (negative, opposite, rounded)
    """
        + _RANGE
        + """
    low_float = Cast <to = 1> (low)
    high_float = Cast <to = 1> (high)
    at_least = Max (raw, low_float)
    clipped = Min (at_least, high_float)
    inside = Equal (raw, clipped)
    zeroed = Where (inside, raw, nothing)
    saturated = Where (is_zero, zeroed, clipped)
    span_float = Cast <to = 1> (span)
    turns = Div (raw, span_float)
    whole_turns = Floor (turns)
    turned = Mul (whole_turns, span_float)
    residue = Sub (raw, turned)
    past = Greater (residue, high_float)
    before = Sub (residue, span_float)
    wrapped = Where (past, before, residue)
    limited = Where (is_wrap, wrapped, saturated)
    y = Cast <to: int = @to> (limited)
    """
    )
    kernel = "fixed:quantize"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """Shape of ``x``, element type ``to``."""
        _check(attrs)
        if inputs[0].dtype != np.float32 or abs(attrs["fraction"]) > 64:
            raise ValueError(f"x must be float32 and fraction within 64, are {inputs[0].dtype} and {attrs['fraction']}")
        return TensorType(inputs[0].shape, DTYPES[attrs["to"]])

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class."""
        kind = FixedType(
            attrs["width"], attrs["width"] - attrs["fraction"], Rounding(attrs["rounding"]),
            Overflow(attrs["overflow"]), bool(attrs["signed"]),
        )  # fmt: skip
        return kind.quantize(inputs[0]).astype(DTYPES[attrs["to"]])


@register
class FixedRescale(Operator):
    """The fixed-point epilogue: ``y = overflow(round((x · mul + add) / 2^shift))`` on raw values, channels last.

    ``x``: int32 ``[..., C]``; ``mul`` and ``add``: int32 ``[C]`` or ``[1]``; output: element type ``to`` (2 uint8, 3 int8,
    6 int32). ``x · mul + add`` must fit int32 for every ``x`` that occurs (a pass has to know that). ``shift`` is 0 to 31;
    ``width``, ``signed``, ``rounding`` and ``overflow`` as for ``FixedQuantize``. A multiplier with few bits set (K-hot)
    needs nothing else: it is an integer and the position of its binary point is in ``shift``.
    """

    name = "FixedRescale"
    inputs = ("x", "mul", "add")
    attributes = {"shift": int, "width": int, "signed": int, "rounding": int, "overflow": int, "to": int}
    body = (
        """
    x_long = Cast <to = 7> (x)
    mul_long = Cast <to = 7> (mul)
    add_long = Cast <to = 7> (add)
    product = Mul (x_long, mul_long)
    v = Add (product, add_long)
    base = Constant <value_int = 2> ()
    nothing = Constant <value_int = 0> ()
    shift_int = Constant <value_int: int = @shift> ()
    divisor = Pow (base, shift_int)
    remainder = Mod (v, divisor)
    whole = Sub (v, remainder)
    quotient = Div (whole, divisor)
    twice = Mul (remainder, base)
    above = Greater (twice, divisor)
    tie = Equal (twice, divisor)
    negative = Less (v, nothing)
    parity = Mod (quotient, base)
    odd = Greater (parity, nothing)
    inexact = Greater (remainder, nothing)
    inf_side = Not (negative)
    zero_side = Identity (negative)
    rnd_side = Or (negative, inf_side)
    min_inf_side = And (negative, inf_side)
    toward_zero = And (negative, inexact)
    trn_mode = Constant <value_int: int = @rounding> ()
    trn_zero_number = Constant <value_int = 2> ()
    to_zero = Equal (trn_mode, trn_zero_number)
    truncated_up = And (toward_zero, to_zero)
    """
        + _ROUNDING
        + """
    up_long = Cast <to = 7> (up)
    raw = Add (quotient, up_long)
    """
        + _RANGE
        + """
    at_least = Max (raw, low)
    clipped = Min (at_least, high)
    inside = Equal (raw, clipped)
    zeroed = Where (inside, raw, nothing)
    saturated = Where (is_zero, zeroed, clipped)
    from_low = Sub (raw, low)
    residue = Mod (from_low, span)
    wrapped = Add (residue, low)
    limited = Where (is_wrap, wrapped, saturated)
    y = Cast <to: int = @to> (limited)
    """
    )
    kernel = "fixed:rescale"

    @classmethod
    def infer(cls, inputs: Sequence[TensorType], attrs: Attrs) -> TensorType:
        """Shape of ``x``, element type ``to``."""
        _check(attrs)
        x, mul, add = inputs
        if any(kind.dtype != np.int32 for kind in inputs) or not x.shape:
            raise ValueError(f"x, mul and add must be int32 and x have an axis, are {x}, {mul} and {add}")
        if any(kind.shape not in ((1,), x.shape[-1:]) for kind in (mul, add)):
            raise ValueError(f"mul {mul.shape} and add {add.shape} must be [1] or [{x.shape[-1]}]")
        if not 0 <= attrs["shift"] <= 31:
            raise ValueError(f"shift {attrs['shift']} must be 0 to 31")
        return TensorType(x.shape, DTYPES[attrs["to"]])

    @classmethod
    def reference(cls, inputs: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        """See the class. Raises ``ValueError`` where ``x · mul + add`` leaves int32."""
        x, mul, add = (value.astype(np.int64) for value in inputs)
        v = x * mul + add
        if v.size and (v.max() >= 1 << 31 or v.min() < -(1 << 31)):
            raise ValueError("x · mul + add does not fit int32")
        raw = shift_round(v, attrs["shift"], Rounding(attrs["rounding"]))
        return limit(raw, attrs["width"], bool(attrs["signed"]), Overflow(attrs["overflow"])).astype(
            DTYPES[attrs["to"]]
        )
