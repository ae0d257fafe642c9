"""ECP5: what yosys leaves in a netlist that nextpnr then pays for.

* A carry chain gets a cell in front of it that makes its carry 0, and one behind that brings its last carry out (two LUT4s
  each). ``loosen`` leaves the one open where it makes no difference, the other where nobody reads it.
* Modules that occur many times are synthesized once, so what two neighbours have in common is there twice: ``merge``.
* A bit that a table of constants gives and that waits some cycles could as well be looked up that much later: ``postpone``.
* One register resets a whole chip, over wires that take longer than anything else does in a cycle: ``spread``.

Netlists are yosys' flat ones, as JSON; they are changed in place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

REPEATED = "element_"
"""What the names of modules that occur many times begin with, and those of their instances."""
_OPEN = ["x"]
"""A port that is there and has no net."""
_CROWD = 1024
"""Of this many readers and more, no reset's register drives all."""
_FANOUT = 32
"""How many each of those drives that take its place, at most."""


def cells_by_type(netlist: dict[str, Any], top: str = "top") -> dict[str, Any]:
    """The counts of cells as ``stat -json`` writes them."""
    counts = Counter(cell["type"] for cell in netlist["modules"][top]["cells"].values())
    return {"design": {"num_cells_by_type": dict(counts)}}


def _wiring(module: dict[str, Any]) -> tuple[dict[Any, list[tuple[str, str]]], dict[Any, str], int]:
    """Who reads each bit, as cells and their ports (empty for a port of the chip); the cell that gives it; a bit not in use."""
    readers: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    driver: dict[Any, str] = {}
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            for bit in bits:
                if cell["port_directions"].get(port) != "output":
                    readers[bit].append((name, port))
                elif isinstance(bit, int):
                    driver[bit] = name
    for outside in module["ports"].values():
        for bit in outside["bits"]:
            readers[bit].append(("", ""))
    return readers, driver, max((bit for bit in (*readers, *driver) if isinstance(bit, int)), default=0) + 1


def loosen(netlist: dict[str, Any], top: str = "top") -> int:
    """Open the carries at the ends of chains (``CCU2C``) that nobody needs; returns how many.

    COUT: that nobody reads. CIN: a 0 in front of a position that propagates nothing, so that its COUT is its own G
    (Lattice FPGA-TN-02210; ``units/technology.py``) and its sum is not used.
    """
    module = netlist["modules"][top]
    read = Counter(bit for port in module["ports"].values() for bit in port["bits"])
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) != "output":
                read.update(bits)
    opened = 0
    for cell in module["cells"].values():
        if cell["type"] != "CCU2C":
            continue
        wires = cell["connections"]
        if wires.get("COUT") not in (None, [], _OPEN) and not read[wires["COUT"][0]]:
            wires["COUT"], opened = [*_OPEN], opened + 1
        unread = not any(read[bit] for bit in wires.get("S0", ()))
        if wires.get("CIN") == ["0"] and unread and not _propagates(cell):
            wires["CIN"], opened = [*_OPEN], opened + 1
    return opened


def _propagates(cell: dict[str, Any]) -> bool:
    """Whether the first position of a carry cell lets its carry through for any values of its inputs that may be."""
    table = int(cell["parameters"]["INIT0"], 2)
    if cell["parameters"].get("INJECT1_0", "").strip() != "NO":
        return True
    known = [cell["connections"][f"{name}0"][0] for name in "ABCD"]
    rows = [
        row
        for row in range(16)
        if all(bit not in ("0", "1") or int(bit) == row >> i & 1 for i, bit in enumerate(known))
    ]
    return any(table >> row & 1 for row in rows)


def merge(netlist: dict[str, Any], top: str = "top") -> int:
    """Make one of equal flip-flops and LUT4s of neighbouring elements; returns how many went.

    Neighbours are instances of ``REPEATED`` modules in the same module: each group of elements keeps its own registers, so
    that no net gets long. LUT4s that a wide multiplexer reads stay, since it takes them into its slice.
    """
    module = netlist["modules"][top]
    cells = module["cells"]
    bound = {
        bit
        for cell in cells.values()
        if cell["type"] in ("PFUMX", "L6MUX21")
        for bits in cell["connections"].values()
        for bit in bits
    }
    candidates: dict[str, tuple[str, str]] = {}
    for name, cell in cells.items():
        place, found, _ = name.partition(f".{REPEATED}")
        out = {"TRELLIS_FF": "Q", "LUT4": "Z"}.get(cell["type"])
        if found and out and "keep" not in cell.get("attributes", {}) and cell["connections"][out][0] not in bound:
            candidates[name] = place, out
    gone = 0
    while True:
        first: dict[Any, Any] = {}
        instead: dict[Any, Any] = {}
        for name, (place, out) in [*candidates.items()]:
            cell = cells[name]
            wires, values = cell["connections"], tuple(sorted(cell["parameters"].items()))
            inputs = tuple(sorted((port, bits[0]) for port, bits in wires.items() if port != out))
            key = place, cell["type"], values, inputs
            if key in first:
                instead[wires[out][0]] = first[key]
                del cells[name], candidates[name]
                gone += 1
            else:
                first[key] = wires[out][0]
        if not instead:
            return gone
        for wires in (cell["connections"] for cell in cells.values()):
            for port, bits in wires.items():
                if any(bit in instead for bit in bits):
                    wires[port] = [instead.get(bit, bit) for bit in bits]
        for outside in module["ports"].values():
            outside["bits"] = [instead.get(bit, bit) for bit in outside["bits"]]


def postpone(netlist: dict[str, Any], top: str = "top") -> int:
    """Let the inputs of LUT4s wait in place of their results, where LUT4s of the same inputs have more of these; returns
    how many flip-flops that takes less.

    Results wait in flip-flops behind one another that nothing enables or resets: what they hold at first means nothing.
    """
    module = netlist["modules"][top]
    cells = module["cells"]
    readers, driver, new = _wiring(module)
    # Inputs and clock of LUT4s → each with the flip-flops behind it.
    tables: dict[tuple[Any, tuple[Any, ...]], list[tuple[str, list[str]]]] = defaultdict(list)
    for name, cell in cells.items():
        if cell["type"] != "LUT4":
            continue
        line: list[str] = []
        bit = cell["connections"]["Z"][0]
        while [port for _, port in readers[bit]] == ["DI"] and _waits(cells[readers[bit][0][0]], cells, line):
            line.append(readers[bit][0][0])
            bit = cells[line[-1]]["connections"]["Q"][0]
        reads = {bits[0] for port, bits in cell["connections"].items() if port != "Z" and isinstance(bits[0], int)}
        if line and all(bit in driver for bit in reads):
            tables[cells[line[0]]["connections"]["CLK"][0], tuple(sorted(reads))].append((name, line))
    late: dict[tuple[Any, Any, int], Any] = {}
    before = len(cells)
    for (clock, shared), found in tables.items():
        if sum(len(line) - 1 for _, line in found) <= len(shared) * (max(len(line) for _, line in found) - 1):
            continue
        for name, line in found:
            for cycles in range(1, len(line)):
                for bit in shared:
                    if (clock, bit, cycles) not in late:
                        cells[f"{driver[bit]}_later{cycles}"] = {
                            **cells[line[0]],
                            "connections": {
                                **cells[line[0]]["connections"], "DI": [late.get((clock, bit, cycles - 1), bit)], "Q": [new],
                            },
                        }  # fmt: skip
                        late[clock, bit, cycles], new = new, new + 1
            wires = cells[name]["connections"]
            for port in [port for port in wires if port != "Z"]:
                wires[port] = [late.get((clock, wires[port][0], len(line) - 1), wires[port][0])]
            cells[line[0]]["connections"]["Q"] = cells[line[-1]]["connections"]["Q"]
            for gone in line[1:]:
                del cells[gone]
    return before - len(cells)


def _waits(cell: dict[str, Any], cells: dict[str, Any], line: list[str]) -> bool:
    """Whether a cell is a flip-flop that nothing enables or resets, on the clock of those in front of it."""
    parameters, wires = cell["parameters"], cell["connections"]
    return (
        cell["type"] == "TRELLIS_FF"
        and parameters.get("CEMUX", "1").strip() == "1"
        and wires.get("LSR", ["0"]) == ["0"]
        and parameters["REGSET"] == "RESET"
        and parameters.get("CLKMUX", "CLK") == "CLK"
        and all(cells[other]["connections"]["CLK"] == wires["CLK"] for other in line[:1])
    )


def spread(netlist: dict[str, Any], top: str = "top") -> int:
    """Let a reset that ``_CROWD`` cells or more read reach them through a tree of registers, each near those that it drives;
    returns how many registers that adds.

    A reset: what comes out of a register that is set asynchronously, as those of a reset's synchronizer are. All its readers,
    whatever their clock, see it begin and end by one same number of cycles later, the tree's depth, and so behave among
    themselves as they did. Only who sends to them or takes from them could tell, and that is the link, which holds its own
    reset for longer than the tree is deep, and then has nothing to send before a packet has come in by its UART
    (``link/framed.py``). The tree's registers are set when the chip is configured, as the one in front of them is.

    Like the others, this changes the netlist that is placed, not the Verilog that is simulated.
    """
    module = netlist["modules"][top]
    cells = module["cells"]
    readers, driver, new = _wiring(module)
    before = len(cells)
    for reset, source in driver.items():
        if len(readers[reset]) < _CROWD or ("", "") in readers[reset] or not _synchronizes(cells[source]):
            continue
        names, level = sorted({name for name, _ in readers[reset]}), 0
        while len(names) > _FANOUT:
            copies = []
            for number, group in enumerate(_near(names)):
                for name in group:
                    wires = cells[name]["connections"]
                    wires.update({port: [new if bit == reset else bit for bit in bits] for port, bits in wires.items()})
                copies.append(".".join([*_module(group), f"reset{level}_{number}"]))
                cells[copies[-1]] = _register(cells[source], reset, new)
                new += 1
            names, level = copies, level + 1
    return len(cells) - before


def _synchronizes(cell: dict[str, Any]) -> bool:
    """Whether a cell is a register that is set asynchronously, and nothing enables it."""
    parameters = cell["parameters"]
    return (
        cell["type"] == "TRELLIS_FF"
        and parameters["REGSET"] == "SET"
        and parameters.get("SRMODE") == "ASYNC"
        and parameters.get("CEMUX", "1").strip() == "1"
    )


def _register(like: dict[str, Any], given: Any, out: Any) -> dict[str, Any]:
    """A register of the clock and the first value of another, which nothing enables or resets."""
    return {
        **like,
        "parameters": {name: value for name, value in like["parameters"].items() if name != "SRMODE"},
        "connections": {**like["connections"], "DI": [given], "LSR": ["0"], "Q": [out]},
    }


def _near(names: list[str], depth: int = 0) -> list[list[str]]:
    """Cells in groups of at most ``_FANOUT``: those of one module, or of several beside one another where they are few."""
    if len(names) <= _FANOUT:
        return [names]
    inside: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path = name.split(".")[:-1]
        inside[path[depth] if depth < len(path) else ""].append(name)
    own = inside.pop("", [])
    groups = [own[first : first + _FANOUT] for first in range(0, len(own), _FANOUT)]
    for part in inside.values():
        for group in _near(part, depth + 1):
            if groups and len(groups[-1]) < _FANOUT // 4 and len(groups[-1]) + len(group) <= _FANOUT:
                groups[-1] = groups[-1] + group
            else:
                groups.append(group)
    return groups


def _module(names: list[str]) -> list[str]:
    """The path of the module that all these cells are in."""
    paths = [name.split(".")[:-1] for name in names]
    same = [len({*parts}) == 1 for parts in zip(*paths, strict=False)]
    return paths[0][: [*same, False].index(False)]
