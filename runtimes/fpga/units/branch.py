"""Where a stream divides, waits and comes together again: what a residual connection needs."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .steady import collect, later


class Fork(wiring.Component):
    """Gives every word to ``output_0``, ``output_1`` and so on; each takes it when it can, the next comes when all have."""

    def __init__(self, width: int, count: int) -> None:
        self.count = count
        super().__init__(
            {
                "input": In(stream.Signature(width)),
                **{f"output_{i}": Out(stream.Signature(width)) for i in range(count)},
            }
        )

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        taken = Signal(self.count)
        ready = []
        for number in range(self.count):
            port = getattr(self, f"output_{number}")
            m.d.comb += [port.payload.eq(self.input.payload), port.valid.eq(self.input.valid & ~taken[number])]
            ready.append(taken[number] | port.ready)
            with m.If(port.valid & port.ready):
                m.d.sync += taken[number].eq(1)
        m.d.comb += self.input.ready.eq(Cat(*ready).all())
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += taken.eq(0)
        return m


class Join(wiring.Component):
    """``left · x + right · y`` of two streams, element by element: ``input`` and ``other``, ``simd`` elements a word.

    ``sizes``: bits of an element of each, and whether it is in two's complement. The sums have ``bits`` bits, in two's
    complement (of all bits, or of the low ones where no sum is negative).
    """

    def __init__(
        self, sizes: tuple[tuple[int, bool], tuple[int, bool]], factors: tuple[int, int], bits: int, simd: int
    ) -> None:
        self.sizes, self.factors, self.bits, self.simd = sizes, factors, bits, simd
        super().__init__(
            {
                "input": In(stream.Signature(simd * sizes[0][0])),
                "other": In(stream.Signature(simd * sizes[1][0])),
                "output": Out(stream.Signature(simd * bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Words are taken together, each side times its factor a cycle later, the sum in the cycle after."""
        m = Module()
        taken, ready = Signal(), Signal()
        m.d.comb += [
            taken.eq(self.input.valid & self.other.valid & ready),
            self.input.ready.eq(self.other.valid & ready),
            self.other.ready.eq(self.input.valid & ready),
        ]
        made: list[Value] = []
        for k in range(self.simd):
            parts: list[Value] = []
            for port, (width, is_signed), factor in zip(
                (self.input, self.other), self.sizes, self.factors, strict=True
            ):
                element = port.payload[k * width : (k + 1) * width]
                number = element.as_signed() if is_signed else Cat(element, Const(0, 1)).as_signed()
                parts.append(later(m, number * factor, f"part_{k}"))
            total = Signal(self.bits, name=f"total_{k}", reset_less=True)
            m.d.sync += total.eq(parts[0] + parts[1])
            made.append(total)
        done = Signal(2)
        m.d.sync += done.eq(Cat(taken, done[0]))
        collect(m, self.output, Cat(*made), done[1], taken, ready, 2)
        return m


class Shelf(wiring.Component):
    """A first-in first-out buffer of ``depth`` words (rounded up to a power of two) in block memory."""

    def __init__(self, width: int, depth: int) -> None:
        self.width, self.depth = width, 1 << max(4, (depth - 1).bit_length())
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        """A word is read when the small buffer behind the memory has room for it."""
        m = Module()
        m.submodules.words = words = Memory(shape=self.width, depth=self.depth, init=[], attrs={"ram_style": "block"})
        write, read = words.write_port(), words.read_port()
        held, head, tail = Signal(range(self.depth + 1)), Signal(range(self.depth)), Signal(range(self.depth))
        push, go, there, ready = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.input.ready.eq(held != self.depth), push.eq(self.input.valid & self.input.ready),
            write.addr.eq(head), write.data.eq(self.input.payload), write.en.eq(push),
            read.addr.eq(tail), go.eq((held != 0) & ready),
        ]  # fmt: skip
        m.d.sync += [head.eq(head + push), tail.eq(tail + go), there.eq(go), held.eq(held + push - go)]
        collect(m, self.output, read.data, there, go, ready, 1)
        return m
