"""iCEBreaker with a Lattice iCE40UP5K in SG48; 12 MHz oscillator; FT2232H as the UART.

Tools: yosys (``synth_ice40``), nextpnr-ice40, icepack. Load the bitstream with ``openFPGALoader -b ice40_generic
top.bin`` or ``iceprog top.bin``. Pins: the board's icebreaker.pcf and amaranth-boards. PLL: Lattice FPGA-TN-02052,
its limits FPGA-DS-02008.
"""

from __future__ import annotations

from . import SLACK, Board, Pll, fits, unreachable

BOARD = Board(
    name="icebreaker",
    description="iCEBreaker, Lattice iCE40UP5K",
    family="ice40",
    device=("--up5k", "--package", "sg48"),
    oscillator_hz=12e6,
    clock_hz=24e6,
    baud=3_000_000,
    pins={"clk": "35", "rx": "6", "tx": "9", "reset": "10", "led": "37"},
    capacity={"LUT4": 5280, "FF": 5280, "BRAM": 30, "BRAM bits": 30 * 4096, "DSP": 8},
    bram=(2, 4, 8, 16, 4096),
    reset_low=True,
    led_low=True,
)

_PHASE_DETECTOR = (10e6, 133e6)
_VCO = (533e6, 1066e6)
_LOW, _HIGH = 16e6, 275e6


def pll(oscillator: float, hz: float) -> Pll:
    """``SB_PLL40_PAD``, simple feedback: VCO = in · (DIVF + 1) / (DIVR + 1), out = VCO / 2^DIVQ."""
    best: tuple[float, int, int, int] | None = None
    for divide in range(16):
        if not _PHASE_DETECTOR[0] <= oscillator / (divide + 1) <= _PHASE_DETECTOR[1]:
            continue
        for multiply in range(128):
            vco = oscillator / (divide + 1) * (multiply + 1)
            if not _VCO[0] <= vco <= _VCO[1]:
                continue
            for shift in range(1, 7):
                out = vco / 2**shift
                rank = (abs(out - hz), divide, multiply, shift)
                best = rank if _LOW <= out <= _HIGH and fits(out, hz) and (best is None or rank < best) else best
    if best is None or best[0] > hz * SLACK:
        raise unreachable(BOARD.name, oscillator, hz, _LOW, _HIGH)
    _, divide, multiply, shift = best
    detector = oscillator / (divide + 1)
    # The loop filter's range goes by the frequency of the phase detector.
    filters = ((17e6, 1), (26e6, 2), (44e6, 3), (66e6, 4), (101e6, 5))
    return Pll(
        cell="SB_PLL40_PAD",
        hz=detector * (multiply + 1) / 2**shift,
        parameters={
            "FEEDBACK_PATH": "SIMPLE",
            "DIVR": divide,
            "DIVF": multiply,
            "DIVQ": shift,
            "FILTER_RANGE": next((number for limit, number in filters if detector < limit), 6),
        },
        inputs={"RESETB": (1, 1), "BYPASS": (0, 1)},
        clock_in="PACKAGEPIN",
        clock_out="PLLOUTGLOBAL",
        locked="LOCK",
    )


def constraints(board: Board) -> tuple[str, str]:
    """Physical constraints: the site of every port."""
    pulls = {"rx": "-pullup yes ", "reset": "-pullup yes "}
    return "pcf", "".join(f"set_io {pulls.get(port, '')}{port} {site}\n" for port, site in board.pins.items())
