"""An accelerator that exists as Verilog already, such as that of a package: the link can be put around it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from amaranth import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class EmittedAccelerator(wiring.Component):
    """``module`` of the text ``verilog``: ports ``clk``, ``rst``, ``input__payload`` and so on, as ``emit`` names them."""

    _MustUse__silence = True  # one whose board refuses it is not elaborated: Amaranth would warn beside our message

    def __init__(
        self, verilog: str, module: str, input_width: int, output_width: int, frame_in_bits: int, frame_out_bits: int
    ) -> None:
        self.module, self.frame_in_bits, self.frame_out_bits = module, frame_in_bits, frame_out_bits
        self.technology = SimpleNamespace(shared={module: verilog})
        super().__init__({"input": In(stream.Signature(input_width)), "output": Out(stream.Signature(output_width))})

    def elaborate(self, platform: Any) -> Module:
        """The instance alone."""
        m = Module()
        m.submodules.pipeline = Instance(
            self.module,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            i_input__payload=self.input.payload,
            i_input__valid=self.input.valid,
            o_input__ready=self.input.ready,
            o_output__payload=self.output.payload,
            o_output__valid=self.output.valid,
            i_output__ready=self.output.ready,
        )
        return m
