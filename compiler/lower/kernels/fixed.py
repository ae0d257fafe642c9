"""``FixedQuantize`` and ``FixedRescale``: rounding and overflow of fixed-point types, a vector at a time.

Rounding works on magnitudes where the value is a float (the part of a tiny negative number would not fit a float32), and
on the quotient toward minus infinity where it is an integer. Nothing is computed for a mode that is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from ...opset._fixed import Overflow, Rounding, bounds
from ..kernel import Kernel, KernelCall
from .common import (
    Expr,
    broadcast,
    cast,
    constant_input,
    elements,
    function,
    intrinsic,
    number,
    outer_loop,
    pieces,
    tile_start,
    tiles,
    typed,
)

VECTOR = 16
RUN = 1024
"""Elements of a task."""


def along(size: int, widest: int, emit: Callable[[Expr, int], None]) -> None:
    """``emit(start, lanes)`` for every element of a flat tensor, each once."""
    if size >= RUN:
        with outer_loop(size // RUN, size) as task, T.serial(0, RUN // widest) as i:
            emit(task * RUN + i * widest, widest)
    rest = size % RUN
    if rest >= widest:
        with T.serial(0, rest // widest) as i:
            emit(size - rest + i * widest, widest)
    for start, lanes in pieces(rest % widest, widest):
        emit(size - rest % widest + start, lanes)


def _floor(value: Expr, lanes: int) -> Expr:
    suffix = "f32" if lanes == 1 else f"v{lanes}f32"
    return intrinsic(typed("float32", lanes), f"llvm.floor.{suffix}", value)


def quantize(call: KernelCall) -> Kernel:
    """``FixedQuantize``."""
    attrs = call.attrs
    rounding, overflow = Rounding(attrs["rounding"]), Overflow(attrs["overflow"])
    low, high = bounds(attrs["width"], bool(attrs["signed"]), overflow)
    size, dtype = elements(call.inputs[0]), str(call.output.dtype)
    widest = 1 if call.target.arch == "arm" else VECTOR  # NEON of 32-bit Arm takes denormals for zero
    with function(call) as fn:
        data, out = fn.input(0), fn.output()

        def emit(start: Expr, lanes: int) -> None:
            def const(value: float) -> Expr:
                return number(value, "float32", lanes)

            zero, half = const(0), const(0.5)
            scaled = T.Bind(data.load(start, lanes) * const(2.0 ** attrs["fraction"]))
            negative = scaled < zero
            magnitude = T.Bind(tirx.Select(negative, zero - scaled, scaled))
            whole = T.Bind(_floor(magnitude, lanes))
            part = T.Bind(magnitude - whole)
            if rounding is Rounding.TRN:
                up = tirx.And(negative, part > zero)
            elif rounding is Rounding.RND:
                up = tirx.Or(part > half, tirx.And(part >= half, scaled >= zero))
            elif rounding is Rounding.RND_ZERO:
                up = part > half
            elif rounding is Rounding.RND_INF:
                up = part >= half
            elif rounding is Rounding.RND_MIN_INF:
                up = tirx.Or(part > half, tirx.And(part >= half, negative))
            elif rounding is Rounding.RND_CONV:
                halved = T.Bind(whole * half)
                odd = halved > _floor(halved, lanes)
                up = tirx.Or(part > half, tirx.And(part >= half, odd))
            else:
                up = None
            rounded = whole if up is None else T.Bind(whole + tirx.Select(up, const(1), zero))
            raw = T.Bind(tirx.Select(negative, zero - rounded, rounded))
            if overflow is Overflow.WRAP:
                span = float(1 << attrs["width"])
                turns = T.Bind(_floor(raw * const(1 / span), lanes))
                residue = T.Bind(raw - turns * const(span))
                limited = tirx.Select(residue > const(high), residue - const(span), residue)
            elif overflow is Overflow.SAT_ZERO:
                inside = tirx.And(raw >= const(low), raw <= const(high))
                limited = tirx.Select(inside, raw, zero)
            else:
                limited = tirx.min(tirx.max(raw, const(low)), const(high))
            out.store(start, cast(cast(T.Bind(limited), "int32", lanes), dtype, lanes), lanes)

        along(size, widest, emit)
    return fn.kernel()


def shifted(v: Expr, shift: int, rounding: Rounding, dtype: str, lanes: int) -> Expr:
    """``v / 2^shift`` rounded, on integers; nothing overflows on the way."""
    if shift == 0:
        return v

    def const(value: int) -> Expr:
        return number(value, dtype, lanes)

    quotient = T.Bind(v >> const(shift))
    if rounding is Rounding.TRN:
        return quotient
    zero = const(0)
    remainder = T.Bind(v & const((1 << shift) - 1))
    half = const(1 << (shift - 1))
    if rounding is Rounding.TRN_ZERO:
        up = tirx.And(v < zero, remainder > zero)
    elif rounding is Rounding.RND:
        up = remainder >= half
    elif rounding is Rounding.RND_MIN_INF:
        up = remainder > half
    else:
        ties = {
            Rounding.RND_ZERO: lambda: v < zero,
            Rounding.RND_INF: lambda: v >= zero,
            Rounding.RND_CONV: lambda: (quotient & const(1)) > zero,
        }[rounding]()
        up = tirx.Or(remainder > half, tirx.And(remainder >= half, ties))
    return T.Bind(quotient + tirx.Select(up, const(1), zero))


def limited(raw: Expr, width: int, signed: bool, overflow: Overflow, lanes: int) -> Expr:
    """An int32 raw value brought into the range of a type."""
    low, high = bounds(width, signed, overflow)

    def const(value: int) -> Expr:
        return number(value, "int32", lanes)

    if overflow is Overflow.WRAP:
        masked = T.Bind(raw & const((1 << width) - 1))
        return tirx.Select(masked > const(high), masked - const(1 << width), masked) if signed else masked
    if overflow is Overflow.SAT_ZERO:
        return tirx.Select(tirx.And(raw >= const(low), raw <= const(high)), raw, const(0))
    return tirx.min(tirx.max(raw, const(low)), const(high))


def rescale(call: KernelCall) -> Kernel:
    """``FixedRescale``: one pass over the accumulators."""
    attrs, x = call.attrs, call.inputs[0]
    mul, add = constant_input(call, 1, "the multiplier"), constant_input(call, 2, "the addend")
    rounding, overflow, shift = Rounding(attrs["rounding"]), Overflow(attrs["overflow"]), int(attrs["shift"])
    channels, dtype = x.shape[-1], str(call.output.dtype)
    uniform = mul.size == add.size == 1
    with function(call) as fn:
        data = fn.input(0)
        muls = fn.constant("mul", mul) if (mul != 1).any() else None
        adds = fn.constant("add", add) if add.any() else None
        out = fn.output()

        def emit(start: Expr, lanes: int, channel: Expr = 0) -> None:
            v = data.load(start, lanes)
            for table, one in ((muls, mul.size == 1), (adds, add.size == 1)):
                if table is not None:
                    value = broadcast(table.load(0), lanes) if one else table.load(channel, lanes)
                    v = v * value if table is muls else v + value
            v = T.Bind(v)
            raw = T.Bind(shifted(v, shift, rounding, "int32", lanes))
            y = T.Bind(limited(raw, attrs["width"], bool(attrs["signed"]), overflow, lanes))
            out.store(start, cast(y, dtype, lanes), lanes)

        if uniform:
            along(elements(x), VECTOR, emit)
        else:
            rows = elements(x) // channels
            count, lanes = tiles(channels, VECTOR)
            with outer_loop(rows, elements(x)) as row, T.serial(0, count) as tile:
                channel = T.Bind(tile_start(tile, channels, lanes))
                emit(row * channels + channel, lanes, channel)
    return fn.kernel()
