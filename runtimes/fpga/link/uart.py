"""A UART: 8 data bits, no parity, one stop bit, the lowest bit first; byte streams inside."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from ....errors import InputError

MAX_BAUD_ERROR = 0.02
"""Both ends together may be half a bit off after 9.5 bits (5 %); 2 % for this one leaves room for the other and jitter."""


def divisor(clock_hz: float, baud: int) -> int:
    """Clock cycles of one bit. Raises ``InputError`` when no whole number of cycles comes within 2 % of the rate."""
    cycles = round(clock_hz / baud)
    if cycles < 4 or abs(clock_hz / cycles / baud - 1) > MAX_BAUD_ERROR:
        near = clock_hz / max(4, cycles)
        raise InputError(
            f"a clock of {clock_hz / 1e6:g} MHz cannot give {baud} baud within 2 %: the nearest is {near:.0f} baud"
        )
    return cycles


class Receiver(wiring.Component):
    """``pin`` → ``output``. A byte without its stop bit is dropped, as is one that comes while another still waits."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"pin": In(1, init=1), "output": Out(stream.Signature(8))})

    def elaborate(self, platform: Any) -> Module:
        """Waits for a falling edge, then looks at the middle of each bit."""
        m = Module()
        pin = Signal(init=1)
        before = Signal(init=1)
        m.submodules.pin = FFSynchronizer(self.pin, pin, init=1)
        m.d.sync += before.eq(pin)
        timer = Signal(range(self.cycles))
        left = Signal(range(11))
        bits = Signal(9)
        with m.If(self.output.valid & self.output.ready):
            m.d.sync += self.output.valid.eq(0)
        with m.If(left == 0):
            with m.If(before & ~pin):
                m.d.sync += [left.eq(10), timer.eq(max(1, self.cycles // 2) - 1)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self.cycles - 1), left.eq(left - 1), bits.eq(Cat(bits[1:], pin))]
            with m.If((left == 10) & pin):  # a spike, not a start bit
                m.d.sync += left.eq(0)
            with m.If((left == 1) & pin & ~self.output.valid):
                # bits: the start bit has left the register, eight data bits are in bits[1:]
                m.d.sync += [self.output.payload.eq(bits[1:]), self.output.valid.eq(1)]
        return m


class Transmitter(wiring.Component):
    """``input`` → ``pin``."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"input": In(stream.Signature(8)), "pin": Out(1, init=1)})

    def elaborate(self, platform: Any) -> Module:
        """A shift register of start bit, data and stop bit."""
        m = Module()
        bits = Signal(10, init=0x3FF)
        timer = Signal(range(self.cycles))
        left = Signal(range(11))
        m.d.comb += [self.pin.eq(bits[0]), self.input.ready.eq(left == 0)]
        with m.If(left == 0):
            with m.If(self.input.valid):
                m.d.sync += [bits.eq(Cat(Const(0, 1), self.input.payload, Const(1, 1))), left.eq(10)]
                m.d.sync += timer.eq(self.cycles - 1)
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [bits.eq(Cat(bits[1:], Const(1, 1))), left.eq(left - 1), timer.eq(self.cycles - 1)]
        return m


class Uart(wiring.Component):
    """Both directions: pins ``rx_pin`` and ``tx_pin``, streams ``rx`` (bytes received) and ``tx`` (bytes to send)."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__(
            {
                "rx_pin": In(1, init=1),
                "tx_pin": Out(1, init=1),
                "rx": Out(stream.Signature(8)),
                "tx": In(stream.Signature(8)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        """A receiver and a transmitter."""
        m = Module()
        m.submodules.receiver = receiver = Receiver(self.cycles)
        m.submodules.transmitter = transmitter = Transmitter(self.cycles)
        m.d.comb += [receiver.pin.eq(self.rx_pin), self.tx_pin.eq(transmitter.pin)]
        wiring.connect(m, receiver.output, wiring.flipped(self.rx))
        wiring.connect(m, wiring.flipped(self.tx), transmitter.input)
        return m
