"""ULX3S with a Lattice ECP5 LFE5U-85F, CABGA381, speed grade 6; 25 MHz oscillator; FT231X as the UART.

Tools: yosys (``synth_ecp5``), nextpnr-ecp5, ecppack. Load the bitstream with ``openFPGALoader -b ulx3s top.bit`` or
``fujprog top.bit``. Pins: the board's constraint file (ulx3s_v20.lpf of emard/ulx3s) and amaranth-boards. Limits of the
PLL: Lattice FPGA-DS-02012, "sysCLOCK PLL timing"; its dividers: FPGA-TN-02200.
"""

from __future__ import annotations

from . import SLACK, Board, Pll, fits, unreachable

BOARD = Board(
    name="ulx3s-85f",
    description="ULX3S, Lattice ECP5 LFE5U-85F",
    family="ecp5",
    device=("--85k", "--package", "CABGA381", "--speed", "6"),
    oscillator_hz=25e6,
    clock_hz=100e6,
    baud=3_000_000,  # the FT231X's most; 100 MHz / 33 is 1 % off, 125 and 150 MHz less
    pins={"clk": "G2", "rx": "M1", "tx": "L4", "reset": "R1", "led": "B2", "wifi_gpio0": "L2"},
    capacity={"LUT4": 83640, "FF": 83640, "BRAM": 208, "BRAM bits": 208 * 18432, "DSP": 156},
    bram=(1, 2, 4, 9, 18, 36, 18432),
    high=("wifi_gpio0",),  # low would let the ESP32 take the FPGA's configuration pins
)

_LOW, _HIGH = 10e6, 400e6
_VCO = (400e6, 800e6)
_LINK = (40e6, 80e6)
"""Where the link's clock lies in designs that are faster: it never limits them, and makes the baud rates of USB adapters."""
_PHASE_DETECTOR = (3.125e6, 400e6)  # Project Trellis' ecppll goes by the same limits


def pll(oscillator: float, hz: float) -> Pll:
    """``EHXPLLL`` with its feedback from the output: out = in · CLKFB_DIV / CLKI_DIV, VCO = out · CLKOP_DIV.

    Above ``_LINK`` its second output is the link's clock: VCO / CLKOS_DIV, as near to a multiple of the baud rate as can be.
    """
    best: tuple[float, float, int, int, int] | None = None
    for divide in range(1, 9):
        if not _PHASE_DETECTOR[0] <= oscillator / divide <= _PHASE_DETECTOR[1]:
            continue
        for multiply in range(1, 81):
            out = oscillator / divide * multiply
            for post in range(1, 129):
                if _VCO[0] <= out * post <= _VCO[1] and _LOW <= out <= _HIGH and fits(out, hz):
                    # Of equal ones: the fastest phase detector, then a VCO in the middle.
                    rank = (abs(out - hz), divide + abs(out * post - 600e6) / 1e9, divide, multiply, post)
                    best = rank if best is None or rank < best else best
    if best is None or best[0] > hz * SLACK:
        raise unreachable(BOARD.name, oscillator, hz, _LOW, _HIGH)
    _, _, divide, multiply, post = best
    out = oscillator / divide * multiply
    second: dict[str, int | str] = {}
    link_hz = None
    if out > _LINK[1]:
        others = [(out * post / n, n) for n in range(1, 129) if _LINK[0] <= out * post / n <= _LINK[1]]
        link_hz, other = min(others, key=lambda item: (round(_baud_error(item[0]), 3), -item[0]))
        second = {
            "CLKOS_ENABLE": "ENABLED", "CLKOS_DIV": other, "CLKOS_CPHASE": other - 1, "CLKOS_FPHASE": 0,
        }  # fmt: skip
    return Pll(
        cell="EHXPLLL",
        hz=out,
        parameters={
            "PLLRST_ENA": "DISABLED",
            "INTFB_WAKE": "DISABLED",
            "STDBY_ENABLE": "DISABLED",
            "DPHASE_SOURCE": "DISABLED",
            "OUTDIVIDER_MUXA": "DIVA",
            "CLKOP_ENABLE": "ENABLED",
            "CLKOP_DIV": post,
            "CLKOP_CPHASE": post - 1,
            "CLKOP_FPHASE": 0,
            "FEEDBK_PATH": "CLKOP",
            "CLKI_DIV": divide,
            "CLKFB_DIV": multiply,
            **second,
        },
        inputs={
            "RST": (0, 1), "STDBY": (0, 1), "PHASESEL0": (0, 1), "PHASESEL1": (0, 1), "PHASEDIR": (1, 1), "PHASESTEP": (1, 1),
            "PHASELOADREG": (1, 1), "PLLWAKESYNC": (0, 1), "ENCLKOP": (0, 1),
        },
        clock_in="CLKI",
        clock_out="CLKOP",
        locked="LOCK",
        feedback="CLKFB",
        link_out="CLKOS" if link_hz else None,
        link_hz=link_hz,
    )  # fmt: skip


def _baud_error(hz: float) -> float:
    """By how much of the board's baud rate a clock's nearest is off."""
    return abs(hz / round(hz / BOARD.baud) / BOARD.baud - 1)


def constraints(board: Board) -> tuple[str, str]:
    """Lattice preferences: site and voltage of every port, and the oscillator's frequency."""
    pulls = {
        "reset": " PULLMODE=DOWN",
        "rx": " PULLMODE=UP",
        "led": " DRIVE=4",
        "tx": " DRIVE=4",
        "wifi_gpio0": " DRIVE=4",
    }
    lines = [f'FREQUENCY PORT "clk" {board.oscillator_hz / 1e6:g} MHZ;']
    for port, site in board.pins.items():
        lines += [f'LOCATE COMP "{port}" SITE "{site}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33{pulls.get(port, "")};']
    return "lpf", "\n".join(lines) + "\n"
