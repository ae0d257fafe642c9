"""Boards: PLLs within their limits, constraints for every port, a top level that Verilog can hold."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("amaranth")

from tests.fpga.accelerators import Sum
from xnorc.errors import InputError, TargetError
from xnorc.runtimes.fpga import boards

LIMITS = {"ulx3s-85f": (3.125e6, 400e6, 400e6, 800e6), "icebreaker": (10e6, 133e6, 533e6, 1066e6)}
LIMITS["tangnano9k"] = (3e6, 400e6, 400e6, 1200e6)


def frequencies(board: boards.Board, pll: boards.Pll) -> tuple[float, float, float]:
    """Phase detector, VCO and output, by the vendors' formulas."""
    p, given = pll.parameters, board.oscillator_hz
    if pll.cell == "EHXPLLL":
        detector = given / p["CLKI_DIV"]
        return detector, detector * p["CLKFB_DIV"] * p["CLKOP_DIV"], detector * p["CLKFB_DIV"]
    if pll.cell == "SB_PLL40_PAD":
        detector = given / (p["DIVR"] + 1)
        vco = detector * (p["DIVF"] + 1)
        return detector, vco, vco / 2 ** p["DIVQ"]
    detector = given / (p["IDIV_SEL"] + 1)
    out = detector * (p["FBDIV_SEL"] + 1)
    return detector, out * p["ODIV_SEL"], out


@pytest.mark.parametrize("name", boards.NAMES)
def test_plls_stay_within_their_limits(name: str) -> None:
    board, (low, high, vco_low, vco_high) = boards.get(name), LIMITS[name]
    for mhz in (20, 33, 48, 66, 100, 133, 150, 166, 200):
        pll = board.pll(mhz * 1e6)
        assert pll is not None
        detector, vco, out = frequencies(board, pll)
        assert low <= detector <= high and vco_low <= vco <= vco_high
        assert out == pytest.approx(pll.hz) and 0.9 * mhz <= pll.hz / 1e6 <= mhz * 1.00001
    assert board.pll(board.oscillator_hz) is None
    with pytest.raises(TargetError, match=rf"board '{name}': its PLL cannot make 1000 MHz of"):
        board.pll(1e9)


@pytest.mark.parametrize("mhz", [50, 81, 100, 112.5, 133, 150, 160, 175, 200])
def test_the_link_has_a_slower_clock_beside_a_fast_one(mhz: float) -> None:
    board = boards.get("ulx3s-85f")
    pll = board.pll(mhz * 1e6)
    assert pll is not None
    if pll.hz <= 80e6:
        assert pll.link_hz is pll.link_out is None
        return
    _, vco, _ = frequencies(board, pll)
    assert pll.link_hz == pytest.approx(vco / pll.parameters["CLKOS_DIV"]) and 40e6 <= pll.link_hz <= 80e6
    assert pll.parameters["CLKOS_CPHASE"] == pll.parameters["CLKOS_DIV"] - 1
    top = boards.top(board, Sum(4), hz=mhz * 1e6)
    assert (top.clock_hz, top.link_hz, top.cycles) == (pll.hz, pll.link_hz, round(pll.link_hz / board.baud))
    assert abs(top.link_hz / top.cycles / board.baud - 1) < 0.0125


@pytest.mark.parametrize("name", boards.NAMES)
def test_every_port_of_the_top_level_has_a_pin(name: str) -> None:
    top = boards.top(name, Sum(4), design=bytes(16))
    text = top.verilog()
    header = re.search(r"^module top\(([^)]*)\)", text, re.MULTILINE)
    assert header is not None
    ports = {port.strip() for port in header.group(1).split(",")}
    assert ports == set(top.board.pins) and {"clk", "rx", "tx"} <= ports
    _, constraints = top.board.constraints()
    for port, site in top.board.pins.items():
        assert re.search(rf'\b{port}\b"?.*\b{site}\b', constraints), f"{port} is at {site}"
    pll = top.board.pll(top.clock_hz)
    assert pll is not None and pll.cell in text
    if name == "icebreaker":
        again = boards.top(name, Sum(4), design=bytes(16)).verilog()
        assert again == text, "the same design gives the same bytes"


def test_clocks_and_names_that_cannot_be() -> None:
    with pytest.raises(TargetError, match=r"unknown board 'ulx3s': did you mean ulx3s-85f\?"):
        boards.get("ulx3s")
    with pytest.raises(InputError, match="a clock of 12 MHz cannot give 5000000 baud"):
        boards.top("icebreaker", Sum(4), hz=12e6, baud=5_000_000)
    with pytest.raises(TargetError, match="its PLL cannot make 700 MHz"):
        boards.top("icebreaker", Sum(4), hz=700e6)
