"""What a chip's cells hold: the numbers by which ``folding`` prices a stage on each family of chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one stage takes. ``cycles``: between images; ``delay``: from its first word to its first result, more than that."""

    cycles: int
    luts: int
    blocks: int
    delay: int
    macs_per_cycle: int = 0
    multipliers: int = 0


@dataclass(frozen=True)
class Prices:
    """``accumulate``: LUT4s for each bit of a sum that goes on or begins anew; ``shapes``: bits and words of a block memory,
    in every form that it can have; ``small_words``: words of a memory of LUTs, 0 where there is none and its bits are
    flip-flops; ``small_luts``: LUT4s for four bits of it; ``queue``: for the control of a buffer; ``multipliers``: bits of an
    operand of the chip's own multipliers, 0 where products are made of LUTs; ``cut``: tables are cut so that no multiplexer
    lies behind their blocks (``units/matvec.py``).
    """

    accumulate: int
    shapes: tuple[tuple[int, int], ...]
    small_words: int
    small_luts: int
    queue: int
    multipliers: int = 0
    cut: bool = False

    def blocks(self, width: int, depth: int) -> int:
        """Block memories of ``depth`` words of ``width`` bits."""
        return min(-(-width // wide) * -(-depth // deep) for wide, deep in self.shapes)

    def table(self, width: int, depth: int) -> int:
        """Block memories of a constant table of ``depth`` words of ``width`` bits."""
        whole = [-(-width // wide) for wide, deep in self.shapes if deep >= depth] if self.cut else []
        return min(whole, default=self.blocks(width, depth))

    def memory(self, width: int, depth: int) -> int:
        """LUT4s of a small memory of ``depth`` words of ``width`` bits, read and written in the same cycle.

        Of flip-flops: what chooses one of so many (two tables for every three inputs), and a table that says which word
        is written.
        """
        if not self.small_words:
            return -(-2 * width * (depth - 1) // 3) + depth
        return self.small_luts * -(-width // 4) * -(-depth // self.small_words)

    def multiplications(self, left: int, right: int) -> tuple[int, int]:
        """Multipliers, and LUT4s, of a product of two signed numbers of so many bits."""
        size = self.multipliers
        if not size:
            return 0, left * right + min(left, right)
        return -(-left // size) * -(-right // size), 0


_DP16K = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
FAMILIES = {
    "ecp5": Prices(1, _DP16K, 16, 6, 0, 18, cut=True),
    "gowin": Prices(2, _DP16K, 16, 4, 25, 18),
    "ice40": Prices(2, ((16, 256), (8, 512), (4, 1024), (2, 2048)), 0, 0, 25, 16),
    "xc7": Prices(1, _DP16K, 32, 4, 25, 18),
}
"""By ``Board.family``. ECP5: a block of LUT RAM takes two LUTs more, which write it (Lattice FPGA-TN-02204, the iCE40's memory
FPGA-TN-02002, Gowin's UG285)."""


def logic_tables(width: int, depth: int) -> int:
    """LUT4s of a table of ``depth`` words of ``width`` constant bits: one for each 16 words, and what chooses between them."""
    if depth <= 2:
        return 0
    groups = -(-depth // 16)
    return width * (groups + (groups > 1) * (groups - 1)) if depth > 4 else width // 2
