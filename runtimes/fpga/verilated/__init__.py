"""A design built by Verilator, as a program that speaks the link's bytes; see ``build`` and ``Process``."""

from .build import build
from .process import Process

__all__ = ["Process", "build"]
