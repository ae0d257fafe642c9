"""ECP5: registers behind a block RAM become the RAM's own output registers, which yosys does not use.

Without it, a block RAM (speed grade 6) takes 5.8 ns to answer, and no design with one is faster than about 140 MHz. The
registers that go are those whose inputs are all of a port's used outputs, and nothing else's: same clock, one enable, no
reset. ``REGMODE``, ``OCE``: Lattice FPGA-TN-02204, "Output register". Reset and power-up value of both are 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

_PORTS = (
    ("DP16KD", "CLKA", "OCEA", "REGMODE_A", re.compile(r"DOA\d+")),
    ("DP16KD", "CLKB", "OCEB", "REGMODE_B", re.compile(r"DOB\d+")),
    ("PDPW16KD", "CLKR", "OCER", "REGMODE", re.compile(r"DO\d+")),
)


def absorb(netlist: dict[str, Any], top: str = "top") -> int:
    """Change yosys' flat ``netlist`` (as JSON) in place; returns how many flip-flops went into memories."""
    module = netlist["modules"][top]
    cells = module["cells"]
    readers: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                for bit in bits:
                    readers[bit].append((name, port))
    outside = {bit for port in module["ports"].values() for bit in port["bits"]}
    gone = 0
    for cell in [cell for cell in cells.values() if cell["type"] in ("DP16KD", "PDPW16KD")]:
        for kind, clock, enable, mode, outputs in _PORTS:
            if cell["type"] == kind and cell["parameters"].get(mode) == "NOREG" and not _shared(cell):
                gone += _absorb(cells, readers, outside, cell, clock, enable, mode, outputs)
    return gone


def _absorb(
    cells: dict[str, Any], readers: dict[Any, list[tuple[str, str]]], outside: set[Any], memory: dict[str, Any],
    clock: str, enable: str, mode: str, outputs: re.Pattern[str],
) -> int:  # fmt: skip
    """One port of one memory: all of its registers, or none."""
    wires = memory["connections"]
    found: dict[str, str] = {}
    enables = set()
    for port in [port for port in wires if outputs.fullmatch(port)]:
        bit = wires[port][0]
        if bit in outside:
            return 0
        if not readers[bit]:
            continue
        (name, pin), *others = readers[bit]
        if others or pin != "DI" or not _plain(cells[name], memory, clock):
            return 0
        found[port] = name
        register = cells[name]
        enables.add(register["connections"]["CE"][0] if _enabled(register) == "CE" else "1")
    if not found or len(enables) != 1:
        return 0
    for port, name in found.items():
        wires[port] = cells.pop(name)["connections"]["Q"]
    wires[enable] = [enables.pop()]
    memory["parameters"][mode] = "OUTREG"
    return len(found)


def _plain(cell: dict[str, Any], memory: dict[str, Any], clock: str) -> bool:
    """Whether a cell is a flip-flop on the memory's clock that nothing sets or resets."""
    if cell["type"] != "TRELLIS_FF":
        return False
    parameters, wires = cell["parameters"], cell["connections"]
    return (
        parameters["CLKMUX"] == "CLK"
        and memory["parameters"].get(f"{clock}MUX") == clock
        and wires["CLK"] == memory["connections"][clock]
        and wires["LSR"] == ["0"]
        and parameters["LSRMUX"] == "LSR"
        and parameters["REGSET"] == "RESET"
        and _enabled(cell) in ("CE", "1")
        and parameters["GSR"] == "DISABLED"
    )


def _shared(cell: dict[str, Any]) -> bool:
    """Whether a memory is 36 bits wide: one read then uses both ports' outputs, and which register modes it goes by is not
    documented. It is left as it is.
    """
    return any(int(cell["parameters"].get(f"DATA_WIDTH_{port}", "0"), 2) > 18 for port in "AB")


def _enabled(cell: dict[str, Any]) -> str:
    """``CE`` or ``1``: yosys puts a space behind a text that could be read as a number."""
    return cell["parameters"]["CEMUX"].strip()
