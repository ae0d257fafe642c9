"""The Pi model: exact instruction counts of a package under QEMU, priced by llvm-mca's model of the core."""

from .model import CyclesResult, StepCycles, model_cycles, show

__all__ = ["CyclesResult", "StepCycles", "model_cycles", "show"]
