"""The inner loop of the binary product for 32-bit Arm, scheduled here and not by LLVM, which runs out of registers.

Of 16 registers of 16 bytes two hold the totals of two pixels, two the pixels' rows, four the weights of this pair of
channels and of the next, four what is compared, three half-finished sums. Cortex-A7 starts instructions in order and takes
two cycles for 16 bytes: what an instruction needs was started at least four instructions before it. The sums that a step
leaves are finished at the start of the next one, while its operands are fetched.
"""

from __future__ import annotations

import functools

from .inline import Inline, Operand, inline

TOTALS = ("q8", "q9")
ROWS = ("q0", "q1")
WEIGHTS = (("q2", "q3", "d4-d7"), ("q4", "q5", "d8-d11"))
"""Registers of a pair of channels' weights, in turn; and how a load calls them."""
COMPARED = ("q10", "q11", "q12", "q13")
SUMS = (("d28", "d29", "d30"), ("d31", "d12", "d13"))
"""Each pixel's sums: of two channels, of the next two, of four."""


def _halves(register: str) -> tuple[str, str]:
    number = int(register[1:])
    return f"d{2 * number}", f"d{2 * number + 1}"


def _finish() -> list[str]:
    """What is left to do of a step: the last pair's sum, and those of four and eight channels."""
    lines = [f"vpadd.i8 {second}, {first}, {second}" for first, second, _ in SUMS]
    lines += [f"vpadd.i8 {third}, {third}, {second}" for _, second, third in SUMS]
    return lines + [f"vaddw.u8 {total}, {total}, {third}" for total, (_, _, third) in zip(TOTALS, SUMS, strict=True)]


def _weights(pair: int) -> str:
    return f"vld1.8 {{{WEIGHTS[pair % 2][2]}}}, [@weights]!"


def step(join: str) -> list[str]:
    """One step: 16 bytes of two pixels and eight channels."""
    fetch = [_weights(0), *(f"vld1.8 {{{'-'.join(_halves(row))}}}, [@row{p}]!" for p, row in enumerate(ROWS))]
    lines = [fetch[0], *fetch[1:], *_finish()]
    for pair in range(4):
        one, other, _ = WEIGHTS[pair % 2]
        compared = [(row, weight) for weight in (one, other) for row in ROWS]
        lines += [f"{join} {t}, {row}, {weight}" for t, (row, weight) in zip(COMPARED, compared, strict=True)]
        if pair < 3:
            lines.append(_weights(pair + 1))
        if pair == 2:  # two pairs make four channels
            lines += [f"vpadd.i8 {third}, {first}, {second}" for first, second, third in SUMS]
        lines += [f"vcnt.8 {t}, {t}" for t in COMPARED]
        lines += ["vadd.i8 {0}, {0}, {1}".format(*_halves(t)) for t in COMPARED]
        low = [_halves(t)[0] for t in COMPARED]
        for pixel, sums in enumerate(SUMS):
            lines.append(f"vpadd.i8 {sums[pair % 2]}, {low[pixel]}, {low[2 + pixel]}")
    return lines


@functools.cache
def function(common: bool) -> Inline:
    """The loop over whole steps: ``weights`` are the block's, rows those of two pixels, ``number`` that of the steps."""
    lines = [f"vmov.i8 {total}, #0" for total in TOTALS]
    # Nothing is left of a step before the first.
    lines += [f"vmov.i8 {register}, #0" for sums in SUMS for register in sums]
    lines += ["1:", "subs @steps, @steps, #1", *step("vand" if common else "veor"), "bne 1b", *_finish()]
    operands = [
        Operand("weights", "%weights"), Operand("row0", "%row0"), Operand("row1", "%row1"), Operand("steps", "%number", "i32"),
    ]  # fmt: skip
    spoiled = [*ROWS, *(w for pair in WEIGHTS for w in pair[:2]), *COMPARED, *(d for sums in SUMS for d in sums)]
    return inline(
        f"xnorc_armv7_{'and' if common else 'xor'}",
        "armv7l-unknown-linux-gnueabihf",
        lines,
        TOTALS,
        2,
        operands,
        spoiled,
    )
