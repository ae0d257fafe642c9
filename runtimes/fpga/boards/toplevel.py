"""The design that goes on a board: clock, reset, UART, link, accelerator."""

from __future__ import annotations

from typing import Any

from amaranth import ClockSignal, Const, Elaboratable, Instance, Module, Signal
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer

from ..link.framed import Accelerator, Framed, verilog_of
from ..link.protocol import DESIGN_BYTES
from ..link.uart import Uart, divisor
from . import Board


class Top(Elaboratable):
    """Ports are those of ``Board``. ``clock_hz``: the design's clock as made by the PLL; ``link_hz``: that of UART and
    link, the same where the PLL makes no other; ``cycles``: clocks a bit.

    ``hz`` and ``baud`` replace the board's own; ``gap_cycles`` and ``payload_bytes`` are those of ``Framed``. Raises
    ``TargetError`` when the PLL cannot make ``hz``, ``InputError`` when the clock cannot make ``baud``.
    """

    _MustUse__silence = True  # one that was refused is not elaborated: Amaranth would warn beside our message

    def __init__(
        self,
        board: Board,
        accelerator: Accelerator,
        *,
        design: bytes = bytes(DESIGN_BYTES),
        hz: float | None = None,
        baud: int | None = None,
        gap_cycles: int | None = None,
        **options: Any,
    ) -> None:
        self.board = board
        self.pll = board.pll(hz or board.clock_hz)
        self.clock_hz = board.oscillator_hz if self.pll is None else self.pll.hz
        other = None if self.pll is None else self.pll.link_hz
        self.link_hz = other or self.clock_hz
        self.baud = baud or board.baud
        self.cycles = divisor(self.link_hz, self.baud)
        self.framed = Framed(
            accelerator, design=design, clock_hz=self.clock_hz, link_hz=other, gap_cycles=gap_cycles, **options
        )
        self.ports = {port: Signal(name=port) for port in board.pins}

    def elaborate(self, platform: Any) -> Module:
        """The UART and the link in a clock domain, in reset until the PLL has locked; the accelerator's is the link's care."""
        m = Module()
        ports = self.ports
        m.domains += self.framed.domain
        locked: Value = Const(1, 1)
        if self.pll is None:
            m.d.comb += ClockSignal().eq(ports["clk"])
        else:
            locked = Signal(name="locked")
            m.submodules.pll = self._pll(self.pll, locked)
        pressed = ports["reset"] ^ Const(int(self.board.reset_low), 1) if "reset" in ports else Const(0, 1)
        held = Signal(name="held")
        m.d.comb += held.eq(~locked | pressed)
        m.submodules.reset = ResetSynchronizer(held)
        m.submodules.uart = uart = Uart(self.cycles)
        m.submodules.framed = framed = self.framed
        wiring.connect(m, uart.rx, framed.rx)
        wiring.connect(m, framed.tx, uart.tx)
        m.d.comb += [uart.rx_pin.eq(ports["rx"]), ports["tx"].eq(uart.tx_pin)]
        if "led" in ports:
            m.d.comb += ports["led"].eq(framed.busy ^ int(self.board.led_low))
        m.d.comb += [ports[port].eq(1) for port in self.board.high]
        return m

    def _pll(self, pll: Any, locked: Value) -> Instance:
        arguments: dict[str, Any] = {f"p_{name}": value for name, value in pll.parameters.items()}
        arguments |= {f"i_{name}": Const(*value) for name, value in pll.inputs.items()}
        clock: Value = ClockSignal() if pll.link_out is None else self.framed.core.clk
        arguments |= {f"i_{pll.clock_in}": self.ports["clk"], f"o_{pll.clock_out}": clock}
        arguments[f"o_{pll.locked}"] = locked
        if pll.feedback is not None:
            arguments[f"i_{pll.feedback}"] = clock
        if pll.link_out is not None:
            arguments[f"o_{pll.link_out}"] = ClockSignal()
        return Instance(pll.cell, **arguments)

    def verilog(self) -> str:
        """The whole design as Verilog, module ``top``; the PLL is the vendor's cell."""
        return verilog_of(self, "top", list(self.ports.values()), self.framed.accelerator)
