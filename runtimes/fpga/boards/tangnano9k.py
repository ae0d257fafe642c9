"""Sipeed Tang Nano 9K with a Gowin GW1NR-LV9QN88PC6/I5; 27 MHz oscillator; BL702 as the UART.

Tools: yosys (``synth_gowin``), nextpnr-himbaechel-gowin, gowin_pack of Apicula. Load the bitstream with
``openFPGALoader -b tangnano9k top.fs``. Pins: Sipeed's wiki, Apicula's examples, amaranth-boards. PLL: Gowin UG286
(rPLL), its limits DS117.
"""

from __future__ import annotations

from . import SLACK, Board, Pll, fits, unreachable

BOARD = Board(
    name="tangnano9k",
    description="Tang Nano 9K, Gowin GW1NR-9",
    family="gowin",
    device=("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
    oscillator_hz=27e6,
    clock_hz=54e6,
    baud=1_000_000,
    pins={"clk": "52", "rx": "18", "tx": "17", "reset": "3", "led": "10"},
    capacity={"LUT4": 8640, "FF": 6480, "BRAM": 26, "BRAM bits": 26 * 18432, "DSP": 10},
    bram=(1, 2, 4, 8, 9, 16, 18, 32, 36, 18432),
    reset_low=True,
    led_low=True,
)

_PHASE_DETECTOR = (3e6, 400e6)
_VCO = (400e6, 1200e6)
_LOW, _HIGH = 3.125e6, 600e6
_OUTPUT_DIVIDERS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)


def pll(oscillator: float, hz: float) -> Pll:
    """``rPLL``: out = in · (FBDIV_SEL + 1) / (IDIV_SEL + 1), VCO = out · ODIV_SEL."""
    best: tuple[float, int, int, int] | None = None
    for divide in range(64):
        if not _PHASE_DETECTOR[0] <= oscillator / (divide + 1) <= _PHASE_DETECTOR[1]:
            continue
        for multiply in range(64):
            out = oscillator / (divide + 1) * (multiply + 1)
            for post in _OUTPUT_DIVIDERS:
                rank = (abs(out - hz), divide, multiply, post)
                if (
                    _VCO[0] <= out * post <= _VCO[1]
                    and _LOW <= out <= _HIGH
                    and fits(out, hz)
                    and (best is None or rank < best)
                ):
                    best = rank
    if best is None or best[0] > hz * SLACK:
        raise unreachable(BOARD.name, oscillator, hz, _LOW, _HIGH)
    _, divide, multiply, post = best
    six, four = ("FBDSEL", "IDSEL", "ODSEL"), ("PSDA", "DUTYDA", "FDLY")
    dynamic = {"CLKFB": (0, 1), "RESET": (0, 1), "RESET_P": (0, 1)}
    dynamic |= dict.fromkeys(six, (0, 6)) | dict.fromkeys(four, (0, 4))
    return Pll(
        cell="rPLL",
        hz=oscillator / (divide + 1) * (multiply + 1),
        parameters={
            "FCLKIN": f"{oscillator / 1e6:g}",
            "DEVICE": "GW1NR-9C",
            "IDIV_SEL": divide,
            "FBDIV_SEL": multiply,
            "ODIV_SEL": post,
            "DYN_IDIV_SEL": "false",
            "DYN_FBDIV_SEL": "false",
            "DYN_ODIV_SEL": "false",
            "CLKFB_SEL": "internal",
            "CLKOUT_BYPASS": "false",
        },
        inputs=dynamic,
        clock_in="CLKIN",
        clock_out="CLKOUT",
        locked="LOCK",
    )


def constraints(board: Board) -> tuple[str, str]:
    """Physical constraints: site and voltage of every port. The bank of the button and the LEDs has 1.8 V."""
    low = {"reset": "IO_TYPE=LVCMOS18 PULL_MODE=UP", "led": "IO_TYPE=LVCMOS18", "rx": "IO_TYPE=LVCMOS33 PULL_MODE=UP"}
    lines = []
    for port, site in board.pins.items():
        lines += [f'IO_LOC "{port}" {site};', f'IO_PORT "{port}" {low.get(port, "IO_TYPE=LVCMOS33")};']
    return "cst", "\n".join(lines) + "\n"
