"""Verilog: one file, modules named after the model's layers, nothing else needed."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.back import verilog

from .accelerator import Accelerator

TOP = "accelerator"


@dataclass(frozen=True)
class Design:
    """Verilog text with its top module, and what one needs to know to drive it: widths of its streams, bits of a frame."""

    verilog: str
    input_width: int
    output_width: int
    frame_in_bits: int
    frame_out_bits: int


def emit(accelerator: Accelerator) -> Design:
    """The Verilog of an accelerator: top module ``accelerator``, ports ``clk``, ``rst``, ``input__*``, ``output__*``."""
    top = verilog.convert(accelerator, name=TOP, strip_internal_attrs=True)
    text = "\n".join([top, *accelerator.technology.shared.values()])
    return Design(
        text, accelerator.input_width, accelerator.output_width, accelerator.frame_in_bits, accelerator.frame_out_bits
    )
