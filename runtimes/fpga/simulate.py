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
from .verilated.build import build_program, source


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
    """An emitted design as a program. ``run`` streams frames through it.

    ``program``: one that has such a design inside and lets words past the link (``verilated/stream.cpp``); else it is built.
    """

    def __init__(
        self, design: Design, progress: Callable[[str], None] | None = None, program: Path | None = None
    ) -> None:
        self.design = design
        main = source("stream") + "int main(int argc, char** argv) { return stream(argc, argv); }\n"
        self.program: Path = program or build_program(design.verilog, TOP, main, word_sizes(design), progress)

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


def word_sizes(design: Design) -> list[str]:
    """What ``stream.cpp`` must know of a design."""
    return [f"-DXNORC_IN_BITS={design.input_width}", f"-DXNORC_OUT_BITS={design.output_width}"]


def _words(frames: np.ndarray, width: int) -> bytes:
    """Frames of bits as words of whole bytes, each frame padded with zeros to whole words."""
    count, size = frames.shape
    padded = np.pad(frames, ((0, 0), (0, -size % width))).reshape(count, -1, width)
    return np.packbits(padded, axis=2, bitorder="little").tobytes()
