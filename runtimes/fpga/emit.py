"""Verilog: one file, modules named after the model's layers, nothing else needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amaranth.back import verilog

from .accelerator import Accelerator

if TYPE_CHECKING:
    from ...package import Package

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


def design_in(package: Package) -> Design:
    """The design that a package holds."""
    facts = package.manifest["fpga"]
    from ...package import RTL

    text = package.member(RTL).decode()
    return Design(text, facts["input_width"], facts["output_width"], facts["frame_in_bits"], facts["frame_out_bits"])
