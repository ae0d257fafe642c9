"""What a synthesized design takes, counted from yosys' cells: for the whole chip, and module by module."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_KINDS: tuple[tuple[str, str], ...] = (
    (r"LUT4|SB_LUT4|LUT[1-6]", "LUT"),
    (r"CCU2C|SB_CARRY|ALU|CARRY4", "carry"),
    (r"TRELLIS_FF|SB_DFF\w*|DFF\w*|FD[RSCP]E?", "FF"),
    (r"DP16KD|PDPW16KD|SB_RAM40_4K|SPX?9?|SDPX?9?B?|DPX?9?B?|pROMX?9?|RAMB\w+", "BRAM"),
    (r"TRELLIS_DPR16X4|RAM16SDP\d|RAM\d+[MX]\w*", "LUT RAM"),
    (r"MULT18X18D|SB_MAC16|MULT\w+|DSP48E1", "DSP"),
)
_CELLS = tuple((re.compile(pattern), kind) for pattern, kind in _KINDS)
KINDS = tuple(kind for _, kind in _KINDS)


def kind_of(cell: str) -> str | None:
    """The resource that a cell of one of the families takes, or nothing (buffers, constants, wide multiplexers)."""
    return next((kind for pattern, kind in _CELLS if pattern.fullmatch(cell)), None)


def used(stat: dict[str, Any], family: str) -> dict[str, int]:
    """At least this much of ``Board.capacity`` is needed, by yosys' ``stat -json``: LUT4, FF, BRAM, DSP.

    A carry of the ECP5 takes two LUTs, a block of LUT RAM four and two more that write it; one of Gowin's is a LUT. An
    iCE40's carry is free beside a LUT.
    """
    counts: Counter[str] = Counter()
    for cell, number in stat["design"]["num_cells_by_type"].items():
        kind = kind_of(cell)
        if kind is not None:
            counts[kind] += number
    carry, ram = {"ecp5": (2, 6), "gowin": (1, 4), "ice40": (0, 0)}[family]
    luts = counts["LUT"] + carry * counts["carry"] + ram * counts["LUT RAM"]
    return {"LUT4": luts, "FF": counts["FF"], "BRAM": counts["BRAM"], "DSP": counts["DSP"]}


def modules(netlist: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Path of each module → resources of all that lies in it: from the names of the flattened netlist's cells.

    A cell that optimization made is named after the wire that it drives, so it counts where that wire is. What was
    shared between two modules counts in one of them.
    """
    top = netlist["modules"]["top"]
    found: dict[str, Counter[str]] = {"": Counter()}
    for name, cell in top["cells"].items():
        kind = kind_of(cell["type"])
        if kind is None:
            continue
        path = _path(name)
        for end in range(len(path) + 1):
            found.setdefault(".".join(path[:end]), Counter())[kind] += 1
    return {path: {kind: counts[kind] for kind in KINDS if counts[kind]} for path, counts in sorted(found.items())}


def _path(name: str) -> list[str]:
    """``framed.receiver.crc8.crc_reg_LUT4_Z`` → ``framed``, ``receiver``, ``crc8``; the last part is the cell's own."""
    return [part for part in name.split(".")[:-1] if part and not part.startswith("$")]
