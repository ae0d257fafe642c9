"""One copy of kernels that are equal: layers of one shape differ in their constants, which are arguments."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import tvm
import tvm_ffi

from .program import Program

_NAME = "global_symbol"


def share_kernels(program: Program) -> None:
    """Let every call use the first kernel (in the order of the steps) that is structurally equal to its own; drop the rest."""
    functions = {variable.name_hint: func for variable, func in program.kernels.functions.items()}
    found: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    kept: dict[str, str] = {}
    for step in program.steps:
        for call in step.calls:
            if call.symbol is None:
                continue
            if call.symbol not in kept:
                bare = functions[call.symbol].with_attr(_NAME, "")
                same = found[tvm_ffi.structural_hash(bare)]
                first = next((name for name, other in same if tvm_ffi.structural_equal(other, bare)), None)
                if first is None:
                    same.append((call.symbol, bare))
                kept[call.symbol] = first or call.symbol
            call.symbol = kept[call.symbol]
    program.kernels = tvm.IRModule({name: functions[name] for name in dict.fromkeys(kept.values())})
