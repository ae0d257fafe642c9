"""Passes: from an ONNX model to a packed ONNX model. ``optimize`` runs them all; ``docs/architecture.md`` lists them."""

from .base import Int8Input, Options, Origin, Record, Status
from .manager import Optimized, optimize

__all__ = ["Int8Input", "Optimized", "Options", "Origin", "Record", "Status", "optimize"]
