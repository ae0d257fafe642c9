"""What a chip's cells hold: the numbers by which ``folding`` prices a stage on each family of chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prices:
    """``accumulate``: LUT4s for each bit of a sum that goes on or begins anew; ``shapes``: bits and words of a block memory,
    in every form that it can have; ``small_words``: words of a memory of LUTs, 0 where there is none and its bits are
    flip-flops; ``small_luts``: LUT4s for four bits of it; ``queue``: for the control of a buffer.
    """

    accumulate: int
    shapes: tuple[tuple[int, int], ...]
    small_words: int
    small_luts: int
    queue: int

    def blocks(self, width: int, depth: int) -> int:
        """Block memories of ``depth`` words of ``width`` bits."""
        return min(-(-width // wide) * -(-depth // deep) for wide, deep in self.shapes)

    def memory(self, width: int, depth: int) -> int:
        """LUT4s of a small memory of ``depth`` words of ``width`` bits, read and written in the same cycle.

        Of flip-flops: what chooses one of so many (two tables for every three inputs), and a table that says which word
        is written.
        """
        if not self.small_words:
            return -(-2 * width * (depth - 1) // 3) + depth
        return self.small_luts * -(-width // 4) * -(-depth // self.small_words)


_DP16K = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
FAMILIES = {
    "ecp5": Prices(1, _DP16K, 16, 6, 0),
    "gowin": Prices(2, _DP16K, 16, 4, 25),
    "ice40": Prices(2, ((16, 256), (8, 512), (4, 1024), (2, 2048)), 0, 0, 25),
    "xc7": Prices(1, _DP16K, 32, 4, 25),
}
"""By ``Board.family``. ECP5: a block of LUT RAM takes two LUTs more, which write it (Lattice FPGA-TN-02204, the iCE40's memory
FPGA-TN-02002, Gowin's UG285)."""
