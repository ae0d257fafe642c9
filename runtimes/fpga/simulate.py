"""Running an emitted design in Verilator: frames in, results and cycle counts out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DeviceError
from .emit import TOP, Design
from .verilated.build import build_program


@dataclass(frozen=True)
class Cycles:
    """``first``: cycles from the first word taken to the first result's last word; ``total``: to the last result's.

    ``frames``: results; ``interval``: cycles between results, once the pipeline is full.
    """

    first: int
    total: int
    frames: int

    @property
    def interval(self) -> float:
        """Cycles a frame in the long run; that of the first frame where there is only one."""
        return self.first if self.frames < 2 else (self.total - self.first) / (self.frames - 1)


class Simulator:
    """An emitted design as a program. ``run`` streams frames through it."""

    def __init__(self, design: Design, progress: Callable[[str], None] | None = None) -> None:
        self.design = design
        self.program: Path = build_program(
            design.verilog, TOP, _harness(design.input_width, design.output_width), progress=progress
        )

    def run(self, frames: np.ndarray, stall: tuple[int, int] = (0, 0), seed: int = 1) -> tuple[np.ndarray, Cycles]:
        """Results uint8 0/1 ``[frames, frame_out_bits]`` of frames uint8 0/1 ``[frames, frame_in_bits]``.

        ``stall``: percent of cycles in which the source has nothing, and the sink takes nothing. Raises ``DeviceError``
        when the design stops before all results are there.
        """
        design, count = self.design, len(frames)
        if count == 0:
            return np.zeros((0, design.frame_out_bits), np.uint8), Cycles(0, 0, 0)
        request = _words(frames, design.input_width)
        words_in, words_out = (
            -(-design.frame_in_bits // design.input_width),
            -(-design.frame_out_bits // design.output_width),
        )
        command = [str(self.program), *map(str, (count * words_in, count * words_out, words_out, *stall, seed))]
        done = subprocess.run(command, input=request, capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
            raise DeviceError(f"device 'sim': {said[-1]}")
        facts = json.loads(done.stderr.decode().strip().splitlines()[-1])
        size = -(-design.output_width // 8)
        raw = np.frombuffer(done.stdout, np.uint8).reshape(count, words_out, size)
        bits = np.unpackbits(raw, axis=2, bitorder="little")[:, :, : design.output_width]
        return bits.reshape(count, -1)[:, : design.frame_out_bits], Cycles(facts["first"], facts["total"], count)


def _words(frames: np.ndarray, width: int) -> bytes:
    """Frames of bits as words of whole bytes, each frame padded with zeros to whole words."""
    count, size = frames.shape
    padded = np.pad(frames, ((0, 0), (0, -size % width))).reshape(count, -1, width)
    return np.packbits(padded, axis=2, bitorder="little").tobytes()


def _access(width: int, port: str, write: bool) -> str:
    """C++ that copies bytes to or from a port: Verilator has whole numbers up to 64 bits, arrays of 32-bit words beyond.

    (It writes two underscores in a row as ``___05F``.)
    """
    place = f"&top->{port}" if width <= 64 else f"top->{port}.data()"
    size = -(-width // 8)
    return f"std::memcpy({place}, word, {size});" if write else f"std::memcpy(word, {place}, {size});"


def _harness(width_in: int, width_out: int) -> str:
    return f"""\
#include "Vtop.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static uint64_t state;
static bool chance(int percent) {{
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return percent > 0 && static_cast<int>(state % 100) < percent;
}}

// words in, words out, words of a result, percent of empty and of refused cycles, seed
int main(int argc, char** argv) {{
    if (argc != 7) {{ std::fprintf(stderr, "usage\\n"); return 2; }}
    const uint64_t words_in = std::strtoull(argv[1], nullptr, 10), words_out = std::strtoull(argv[2], nullptr, 10);
    const uint64_t frame = std::strtoull(argv[3], nullptr, 10);
    const int empty = std::atoi(argv[4]), refuse = std::atoi(argv[5]);
    state = 0x9E3779B97F4A7C15ull * (std::strtoull(argv[6], nullptr, 10) + 1);
    VerilatedContext context;
    Vtop* top = new Vtop(&context);
    unsigned char word[{-(-max(width_in, width_out) // 8)}];
    top->clk = 0; top->rst = 1; top->input___05Fvalid = 0; top->output___05Fready = 0;
    for (int i = 0; i < 4; i++) {{ top->clk = 0; top->eval(); top->clk = 1; top->eval(); }}
    top->rst = 0;
    uint64_t sent = 0, got = 0, begun = 0, first = 0, total = 0, idle = 0;
    bool held = false;
    for (uint64_t cycle = 0; got < words_out; cycle++) {{
        top->clk = 0;
        if (!held && sent < words_in && !chance(empty)) {{
            if (std::fread(word, 1, {-(-width_in // 8)}, stdin) != {-(-width_in // 8)}) {{
                std::fprintf(stderr, "the input ended early\\n"); return 1;
            }}
            {_access(width_in, "input___05Fpayload", True)}
            held = true;
        }}
        top->input___05Fvalid = held;
        top->output___05Fready = !chance(refuse);
        top->eval();
        const bool taken = held && top->input___05Fready, given = top->output___05Fvalid && top->output___05Fready;
        if (given) {{
            {_access(width_out, "output___05Fpayload", False)}
            std::fwrite(word, 1, {-(-width_out // 8)}, stdout);
        }}
        top->clk = 1;
        top->eval();
        if (taken) {{ held = false; if (sent++ == 0) begun = cycle; }}
        if (given) {{
            got++;
            total = cycle + 1 - begun;
            if (got == frame) first = total;
        }}
        idle = taken || given ? 0 : idle + 1;
        if (idle > 10000000) {{
            std::fprintf(stderr, "the design stopped after %llu of %llu words\\n", (unsigned long long)got,
                         (unsigned long long)words_out);
            return 1;
        }}
    }}
    std::fflush(stdout);
    std::fprintf(stderr, "{{\\"first\\": %llu, \\"total\\": %llu}}\\n", (unsigned long long)first, (unsigned long long)total);
    return 0;
}}
"""
