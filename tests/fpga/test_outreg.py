"""Registers go into a block RAM when all of its used outputs have one, and stay where anything else is the case."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from xnorc.runtimes.fpga.outreg import absorb

FF = {"CEMUX": "CE", "CLKMUX": "CLK", "GSR": "DISABLED", "LSRMUX": "LSR", "REGSET": "RESET"}


def register(data: int, out: int) -> dict[str, Any]:
    return {
        "type": "TRELLIS_FF",
        "parameters": dict(FF),
        "port_directions": {"CE": "input", "CLK": "input", "DI": "input", "LSR": "input", "Q": "output"},
        "connections": {"CE": [5], "CLK": [10], "DI": [data], "LSR": ["0"], "Q": [out]},
    }


def netlist() -> dict[str, Any]:
    memory = {
        "type": "DP16KD",
        "parameters": {"REGMODE_A": "NOREG", "REGMODE_B": "NOREG", "CLKAMUX": "CLKA", "CLKBMUX": "CLKB"},
        "port_directions": {"CLKA": "input", "CLKB": "input", "OCEB": "input", "DOB0": "output", "DOB1": "output"},
        "connections": {"CLKA": [10], "CLKB": [10], "OCEB": ["1"], "DOB0": [20], "DOB1": [21], "DOB2": [22]},
    }
    cells = {"memory": memory, "a": register(20, 30), "b": register(21, 31)}
    return {"modules": {"top": {"ports": {"q": {"bits": [30, 31]}}, "cells": cells}}}


def test_all_registers_of_a_port_go() -> None:
    design = netlist()
    assert absorb(design) == 2
    cells = design["modules"]["top"]["cells"]
    assert set(cells) == {"memory"}
    memory = cells["memory"]
    assert memory["parameters"]["REGMODE_B"] == "OUTREG" and memory["parameters"]["REGMODE_A"] == "NOREG"
    assert memory["connections"]["DOB0"] == [30] and memory["connections"]["DOB1"] == [31]
    assert memory["connections"]["OCEB"] == [5]


def test_registers_that_are_always_enabled() -> None:
    design = netlist()
    for name in ("a", "b"):
        register = design["modules"]["top"]["cells"][name]
        register["parameters"]["CEMUX"] = "1 "  # as yosys writes it
        del register["connections"]["CE"]
    assert absorb(design) == 2
    assert design["modules"]["top"]["cells"]["memory"]["connections"]["OCEB"] == ["1"]


def another_reader(cells: dict[str, Any]) -> None:
    cells["c"] = {"type": "LUT4", "parameters": {}, "port_directions": {"A": "input"}, "connections": {"A": [20]}}


CHANGES = {
    "a word of both ports": lambda cells: cells["memory"]["parameters"].update(DATA_WIDTH_B=f"{36:032b}"),
    "another reader": another_reader,
    "another clock": lambda cells: cells["a"]["connections"].update(CLK=[11]),
    "another enable": lambda cells: cells["a"]["connections"].update(CE=[6]),
    "a reset": lambda cells: cells["a"]["connections"].update(LSR=[7]),
    "set at the start": lambda cells: cells["a"]["parameters"].update(REGSET="SET"),
    "falling edges": lambda cells: cells["a"]["parameters"].update(CLKMUX="INV"),
    "an enable's input": lambda cells: cells["a"]["connections"].update(CE=[20], DI=[40]),
    "logic between": lambda cells: cells["a"].update(type="LUT4"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_goes_where_anything_is_in_the_way(what: str) -> None:
    design = netlist()
    CHANGES[what](design["modules"]["top"]["cells"])
    before = copy.deepcopy(design)
    assert absorb(design) == 0 and design == before
