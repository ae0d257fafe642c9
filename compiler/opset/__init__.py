"""The operator set ``ai.xnorc``, version 1: every operator is declared once, in the file of its family.

``REGISTRY`` maps an operator's name to its declaration; ``docs/operators.md`` describes them for readers.
"""

import importlib
import pkgutil

from ._operands import VIEWS, Lies, keeps_places, operand_lies
from .base import DOMAIN, IR_VERSION, REGISTRY, STANDARD_OPSET, VERSION, Attrs, Operator, TensorType, functions
from .bits import pack_bits, packed_bytes, to_signs, unpack_bits

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    if not _module.startswith("_"):
        importlib.import_module(f".{_module}", __name__)  # importing a family registers its operators

__all__ = [
    "DOMAIN",
    "IR_VERSION",
    "REGISTRY",
    "STANDARD_OPSET",
    "VERSION",
    "VIEWS",
    "Attrs",
    "Lies",
    "Operator",
    "TensorType",
    "functions",
    "keeps_places",
    "operand_lies",
    "pack_bits",
    "packed_bytes",
    "to_signs",
    "unpack_bits",
]
