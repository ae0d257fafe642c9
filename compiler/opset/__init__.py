"""The operator set ``ai.xnorc``, version 1: every operator is declared once, in the file of its family.

``REGISTRY`` maps an operator's name to its declaration; ``docs/operators.md`` describes them for readers.
"""

from . import conv, gemm, pack, pool  # noqa: F401  (importing a family registers its operators)
from .base import DOMAIN, IR_VERSION, REGISTRY, STANDARD_OPSET, VERSION, Attrs, Operator, TensorType, functions
from .bits import pack_bits, packed_bytes, to_signs, unpack_bits

__all__ = [
    "DOMAIN",
    "IR_VERSION",
    "REGISTRY",
    "STANDARD_OPSET",
    "VERSION",
    "Attrs",
    "Operator",
    "TensorType",
    "functions",
    "pack_bits",
    "packed_bytes",
    "to_signs",
    "unpack_bits",
]
