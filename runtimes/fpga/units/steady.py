"""What units share whose datapath never stalls: a word begins only when the buffer behind it has room for its result."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .fifo import Fifo


class Steady(wiring.Component):
    """A word of ``width_in`` bits in, some cycles later one of ``width_out`` bits out; one a cycle if nobody waits."""

    _MustUse__silence = True  # estimates ask one for its sizes, and never elaborate it

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__({"input": In(stream.Signature(width_in)), "output": Out(stream.Signature(width_out))})

    def compute(self, m: Module, word: Value, taken: Value) -> tuple[Value, int]:
        """The result of ``word``, which is there while ``taken``, and how many cycles later it is there."""
        raise NotImplementedError

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        taken, ready = Signal(), Signal()
        m.d.comb += [self.input.ready.eq(ready), taken.eq(self.input.valid & ready)]
        result, latency = self.compute(m, self.input.payload, taken)
        done = Signal(max(1, latency), name="done")
        m.d.sync += done.eq(Cat(taken, done[:-1]))
        collect(m, self.output, result, done[-1], taken, ready, latency)
        return m


def collect(
    m: Module, output: wiring.PureInterface, result: Value, there: Value, begun: Value, ready: Signal, latency: int
) -> None:
    """A buffer for the results of a datapath of ``latency`` cycles, ``there`` with one of them, and ``output`` behind it.

    ``begun`` while one begins to be made; that is allowed while ``ready``, which is set: then the buffer has room for it.
    """
    # The buffer takes two cycles, and room is a cycle old when it is looked at.
    m.submodules.results = fifo = Fifo(len(output.payload), latency + 5)
    m.d.comb += [fifo.input.payload.eq(result), fifo.input.valid.eq(there)]
    wiring.connect(m, wiring.flipped(output), fifo.output)
    room = Signal(range(fifo.depth + 1), init=fifo.depth)
    freed = output.valid & output.ready
    m.d.sync += [room.eq(Mux(begun, Mux(freed, room, room - 1), Mux(freed, room + 1, room))), ready.eq(room > 1)]


def later(m: Module, value: Value, name: str, cycles: int = 1) -> Value:
    """``value`` some cycles later."""
    for _ in range(cycles):
        register = Signal.like(value, name=name, reset_less=True)
        m.d.sync += register.eq(value)
        value = register
    return value


def balanced(m: Module, terms: list[Value], name: str) -> tuple[Value, int]:
    """The sum of terms, pairs first, a register behind every addition; and the cycles that takes."""
    cycles = 0
    while len(terms) > 1:
        level = [later(m, a + b, name) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = level + [later(m, term, name) for term in terms[len(terms) & ~1 :]]
        cycles += 1
    return terms[0], cycles
