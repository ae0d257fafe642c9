"""Writing TIR by program: a thin layer over TVM's script builder that the kernels share.

Kernels address every tensor as flat memory: a vector load or store is then one contiguous run, whatever the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset import TensorType
from ..kernel import Kernel, KernelCall

if TYPE_CHECKING:
    from ...targets import Target

Expr = Any
"""A TIR expression, or a Python int where an index is meant."""

PARALLEL_WORK = 1 << 20
"""Bit operations from which a kernel is worth the hand-over to the thread pool."""
PER_ELEMENT = 8
"""Bit operations that an element of a feature map, read and written, takes as long as."""


class Flat:
    """A buffer seen as flat memory of one element type."""

    def __init__(self, buffer: Any, dtype: str) -> None:
        self.buffer = buffer
        self.dtype = dtype

    def load(self, offset: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """``lanes`` elements from ``offset`` on."""
        return self.buffer[offset if lanes == 1 else T.ramp(offset, stride, lanes)]

    def address(self, offset: Expr) -> Expr:
        """Pointer to the element at ``offset``."""
        return T.address_of(self.buffer[offset])

    def store(self, offset: Expr, value: Expr, lanes: int = 1, stride: int = 1) -> None:
        """Write ``value``, which has ``lanes`` lanes."""
        T.buffer_store(self.buffer, value, [offset if lanes == 1 else T.ramp(offset, stride, lanes)])


class Function:
    """The PrimFunc under construction: hands out its parameters and remembers what each is."""

    def __init__(self, call: KernelCall) -> None:
        self.call = call
        self._args: list[np.ndarray | tuple[str, int]] = []
        self._parameters: list[tuple[Flat, int]] = []
        self.func: Any = None

    def _parameter(self, name: str, shape: Sequence[int], dtype: np.dtype) -> Flat:
        shape = tuple(int(size) for size in shape)
        flat = Flat(T.arg(name, T.buffer(shape, str(dtype))), str(dtype))
        self._parameters.append((flat, math.prod(shape)))
        return flat

    def input(self, index: int) -> Flat:
        """Input tensor ``index`` of the call."""
        self._args.append(("input", index))
        return self._parameter(f"in{index}", self.call.inputs[index].shape, self.call.inputs[index].dtype)

    def extra(self, index: int) -> Flat:
        """Residual tensor ``index`` of the call."""
        self._args.append(("extra", index))
        return self._parameter(f"extra{index}", self.call.extra[index].shape, self.call.extra[index].dtype)

    def constant(self, name: str, value: np.ndarray) -> Flat:
        """A constant that the kernel brings along."""
        value = np.ascontiguousarray(value)
        self._args.append(value)
        return self._parameter(name, value.shape, value.dtype)

    def output(self) -> Flat:
        """The output, and with it the end of the parameters: only now do they become readable."""
        return self.outputs()[0]

    def outputs(self) -> list[Flat]:
        """All outputs, where there are several: as ``KernelCall.outputs`` has them."""
        made = [
            self._parameter(f"out{i}" if i else "out", kind.shape, kind.dtype)
            for i, kind in enumerate(self.call.outputs)
        ]
        for flat, size in self._parameters:
            flat.buffer = T.decl_buffer((size,), flat.dtype, data=flat.buffer.data)
        return made

    def kernel(self, in_place: Sequence[int] = ()) -> Kernel:
        """What was built. ``in_place``: extra tensors that the output may lie on top of."""
        places = [
            i for i, arg in enumerate(self._args) if isinstance(arg, tuple) and arg in [("extra", x) for x in in_place]
        ]
        return Kernel(self.func, tuple(self._args), tuple(places))


@contextmanager
def function(call: KernelCall) -> Iterator[Function]:
    """Open a PrimFunc: statements made inside go into it, in order."""
    made = Function(call)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(call.name)
        T.func_attr({"global_symbol": call.name, "tirx.noalias": True, "op_pattern": 8})
        yield made
    made.func = builder.get()


def scratch(elements: int, dtype: str) -> Flat:
    """Memory of this task: on the stack when small, else from the runtime's workspace."""
    return Flat(T.alloc_buffer((elements,), dtype), dtype)


def constant_input(call: KernelCall, index: int, what: str) -> np.ndarray:
    """The value of an input that must be known at compile time."""
    if index not in call.constants:
        raise UnsupportedError(call.name, call.op, f"{what} must be a constant")
    return call.constants[index]


def outer_loop(extent: int, work: int) -> Any:
    """The loop over a kernel's tasks: spread over the thread pool when ``work`` (all tasks together) is worth it."""
    return T.parallel(0, extent) if extent > 1 and work >= PARALLEL_WORK else T.serial(0, extent)


def broadcast(value: Expr, lanes: int) -> Expr:
    """``value`` in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def typed(dtype: str, lanes: int) -> str:
    """Name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def number(value: float, dtype: str, lanes: int = 1) -> Expr:
    """A constant in every lane."""
    return broadcast(tirx.const(value, dtype), lanes)


def cast(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """Convert element type."""
    return T.cast(value, typed(dtype, lanes))


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """An LLVM intrinsic without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Lanes picked from the concatenation of ``vectors``."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def tree(values: Sequence[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    """Join neighbours pairwise until one value is left."""
    level = list(values)
    while len(level) > 1:
        joined = [join(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = joined + level[len(joined) * 2 :]
    return level[0]


def pieces(count: int, widest: int) -> list[tuple[int, int]]:
    """``count`` elements as (offset, lanes) runs of powers of two, widest first."""
    runs, offset, width = [], 0, widest
    while offset < count:
        while width > count - offset:
            width //= 2
        runs.append((offset, width))
        offset += width
    return runs


def tiles(count: int, widest: int) -> tuple[int, int]:
    """Cover ``count`` elements by equal vectors: (number, lanes). The last one overlaps: see ``tile_start``."""
    lanes = 1 << (min(count, widest).bit_length() - 1)
    return -(-count // lanes), lanes


def tile_start(index: Expr, count: int, lanes: int) -> Expr:
    """First element of tile ``index``. The last tile is moved back to end at ``count``: it computes a few twice."""
    return index * lanes if count % lanes == 0 else tirx.min(index * lanes, count - lanes)


UNROLLED_COPY = 128
"""Copies up to this many bytes are straight-line code."""


def copy_bytes(target: Flat, place: Expr, source: Flat | None, offset: Expr, count: int, widest: int = 16) -> None:
    """``target[place:][:count] = source[offset:][:count]``, or zeros where ``source`` is None."""

    def copy(shift: Expr, lanes: int) -> None:
        value = number(0, target.dtype, lanes) if source is None else source.load(offset + shift, lanes)
        target.store(place + shift, value, lanes)

    bulk = count // widest if count > UNROLLED_COPY else 0
    if bulk:
        with T.serial(0, bulk) as i:
            copy(i * widest, widest)
    for shift, lanes in pieces(count - bulk * widest, widest):
        copy(bulk * widest + shift, lanes)


def bit_weights(dtype: str) -> Expr:
    """The vector 1, 2, 4, … 128: what each of eight channels is worth in a byte."""
    return number(1, dtype, 8) << cast(T.ramp(0, 1, 8), dtype, 8)


def byte_of(outcomes: Expr, target: Target, dtype: str = "uint16") -> Expr:
    """Eight comparisons (of numbers as wide as ``dtype``) as one byte, lane 0 in bit 0."""
    if "avx2" in target.features and dtype == "uint32":
        signs = tirx.Select(outcomes, number(-1, "int32", 8), number(0, "int32", 8))
        return cast(intrinsic("int32", "llvm.x86.avx.movmsk.ps.256", tirx.reinterpret("float32x8", signs)), "uint8")
    if target.arch == "x86_64" and dtype == "uint16":
        signs = tirx.Select(outcomes, number(-1, "int16", 8), number(0, "int16", 8))
        bytes_ = intrinsic("int8x16", "llvm.x86.sse2.packsswb.128", signs, signs)
        return cast(intrinsic("int32", "llvm.x86.sse2.pmovmskb.128", tirx.reinterpret("uint8x16", bytes_)), "uint8")
    picked = tirx.Select(outcomes, bit_weights(dtype), number(0, dtype, 8))
    return cast(intrinsic(dtype, f"llvm.vector.reduce.add.v8i{dtype[4:]}", picked), "uint8")


def bytes_of(outcomes: Sequence[Expr], target: Target, dtype: str = "uint16") -> list[Expr]:
    """``byte_of`` of each of several eightfold comparisons.

    On Arm four at a time: every outcome selects its bit, and pairwise sums leave one byte a comparison. It replaces a slow
    sum across a register for each.
    """
    found: list[Expr] = []
    while target.is_arm and dtype == "uint16" and len(outcomes) - len(found) >= 4:
        four = outcomes[len(found) : len(found) + 4]
        bits = [tirx.Select(one, number(255, "uint8", 8), number(0, "uint8", 8)) for one in four]
        if target.arch == "aarch64":
            worth = number(1, "uint8", 16) << (cast(T.ramp(0, 1, 16), "uint8", 16) & number(7, "uint8", 16))
            halves = [T.Bind(shuffle(bits[i : i + 2], range(16)) & worth) for i in (0, 2)]
            sums = intrinsic("uint8x16", _ADDP, *halves)
            for _ in range(2):
                sums = T.Bind(sums)
                sums = intrinsic("uint8x16", _ADDP, sums, sums)
        else:
            sums = tree(
                [T.Bind(one & bit_weights("uint8")) for one in bits], lambda a, b: intrinsic("uint8x8", _VPADD, a, b)
            )
            sums = T.Bind(sums)
            sums = intrinsic("uint8x8", _VPADD, sums, sums)
        sums = T.Bind(sums)
        found += [shuffle([sums], [lane]) for lane in range(4)]
    return found + [byte_of(one, target, dtype) for one in outcomes[len(found) :]]


_ADDP, _VPADD = "llvm.aarch64.neon.addp.v16i8", "llvm.arm.neon.vpadd.v8i8"


def bytes_of_flags(flags: np.ndarray) -> np.ndarray:
    """Flags of channels → packed bytes."""
    return np.packbits(np.asarray(flags, bool), bitorder="little")


def elements(kind: TensorType) -> int:
    """Number of elements of a tensor."""
    return math.prod(kind.shape)


def kept(value: Expr, lanes: int) -> Expr:
    """``value``, to be used several times. Unlike one bound to a name it is never written out in each of its uses by TVM's
    passes: long chains of polynomials would grow beyond measure. LLVM keeps it in a register all the same."""
    cell = scratch(lanes, "float32")
    cell.store(0, value, lanes)
    return cell.load(0, lanes)


def apart(value: Expr, lanes: int) -> Expr:
    """``value``, rounded to float32 here: LLVM may not fuse what made it with what uses it (into a multiply-add)."""
    suffix = "f32" if lanes == 1 else f"v{lanes}f32"
    return intrinsic("float32" if lanes == 1 else f"float32x{lanes}", f"llvm.arithmetic.fence.{suffix}", value)
