"""The inner loop of the binary product for Cortex-A53, scheduled here and not by LLVM.

The core starts instructions in order, at most two a cycle, one of them on vectors; the result of a vector instruction is
there six cycles later (LLVM's model of the core). A *unit* is one step of one pixel: 8 ``eor``, 8 ``cnt``, a tree of 7
``addp``, one ``uadalp``: 24 vector instructions, so 24 cycles at best. Units follow each other every 24 cycles with the
same pattern (modulo scheduling: B. R. Rau, "Iterative modulo scheduling", MICRO 1994), each reaching into the next two: no
instruction waits for another. What loads cost beside that:

* weights come four registers at a time (``ld1``), which in the model takes no cycle of the vectors; a single register
  takes one, a pair (``ldp``) two, an addition for an address up to two. So there are as few of these as possible, and
  those of a step stand together.
* the next step's weights are fetched while the last pixel of this step is computed, a pixel's row while the one before is.

The loop and what follows it (the last step, which fetches nothing, a half step, and the units still on their way) are one
piece of assembly in a function in LLVM's language, which is inlined where TIR calls it.
"""

from __future__ import annotations

import functools

from .inline import Inline, Operand, inline

CHANNELS, STEP = 8, 16
PERIOD, LATENCY = 24, 6

PATTERN = {
    "eor0": 0, "eor1": 2, "eor2": 6, "cnt0": 7, "cnt1": 8, "eor3": 9, "eor4": 10, "eor5": 11, "cnt2": 12, "eor6": 14,
    "sum0": 15, "eor7": 16, "cnt3": 17, "cnt4": 18, "cnt5": 19, "cnt6": 20, "cnt7": 22, "sum1": 23, "sum2": 25, "sum3": 28,
    "sum4": 29, "sum5": 37, "sum6": 45, "add": 51,
}  # fmt: skip
"""When each instruction of a unit starts. No two are the same modulo ``PERIOD``, none waits; found by random search for the
fewest registers."""
FIRST_WEIGHTS, LAST_WEIGHTS, ROW = 10, 17, 18
"""When, in the last unit of a step, the next step's weights are fetched, and in each unit the next pixel's row: after
their last use, early enough for the next."""

TOTALS = [f"v{i}" for i in range(8)]
WEIGHTS = [f"v{i}" for i in range(16, 24)]
ROWS = ["v24", "v25"]
POOL = [f"v{i}" for i in (*range(8, 16), *range(26, 32))]
"""Registers of what is on its way."""


def sources() -> dict[str, list[str]]:
    """Instructions of a unit, in an order in which they can be executed, and which results each reads."""
    found: dict[str, list[str]] = {f"eor{c}": [] for c in range(CHANNELS)}
    found |= {f"cnt{c}": [f"eor{c}"] for c in range(CHANNELS)}
    level, made = [f"cnt{c}" for c in range(CHANNELS)], 0
    while len(level) > 1:
        names = [f"sum{made + i}" for i in range(len(level) // 2)]
        found |= {name: level[2 * i : 2 * i + 2] for i, name in enumerate(names)}
        level, made = names, made + len(names)
    return found | {"add": level}


def readers() -> dict[str, str]:
    """Instruction → the one that reads its result."""
    return {read: name for name, reads in sources().items() for read in reads}


@functools.cache
def registers() -> dict[str, str]:
    """Instruction → register of its result, the same in every unit: a result is read within one ``PERIOD``."""
    spans = {
        name: {moment % PERIOD for moment in range(PATTERN[name], PATTERN[reader])}
        for name, reader in readers().items()
    }
    best: dict[str, int] = {}
    for start in range(PERIOD):
        found: dict[str, int] = {}
        for name in sorted(spans, key=lambda name: (PATTERN[name] - start) % PERIOD):
            taken = {number for other, number in found.items() if spans[other] & spans[name]}
            found[name] = next(number for number in range(len(spans)) if number not in taken)
        if not best or max(found.values()) < max(best.values()):
            best = found
    return {name: POOL[number] for name, number in best.items()}


def _unit(pixel: int, row: str, join: str) -> list[tuple[int, str]]:
    """The instructions of a unit, each with its moment."""
    where = registers()
    lines = []
    for name, reads in sources().items():
        kind, used = name.rstrip("0123456789"), [where[read] for read in reads]
        if kind == "eor":
            text = f"{join} {where[name]}.16b, {row}.16b, {WEIGHTS[int(name[3:])]}.16b"
        elif kind == "cnt":
            text = f"cnt {where[name]}.16b, {used[0]}.16b"
        elif kind == "sum":
            text = f"addp {where[name]}.16b, {used[0]}.16b, {used[1]}.16b"
        else:
            text = f"uadalp {TOTALS[pixel]}.8h, {used[0]}.16b"
        lines.append((PATTERN[name], text))
    return lines


def _weights(half: int, address: str) -> str:
    first = int(WEIGHTS[4 * half][1:])
    return f"ld1 {{v{first}.16b, v{first + 1}.16b, v{first + 2}.16b, v{first + 3}.16b}}, [{address}]"


def _row(pixel: int, pixels: int) -> str:
    """The register of a pixel's row: two in turn."""
    return ROWS[pixel % 2 if pixels > 1 else 0]


def _fetch(pixel: int, pixels: int, offset: str) -> str:
    return f"ldr q{_row(pixel, pixels)[1:]}, [@row{pixel}, {offset}]"


def step(units: int, join: str, *, last: bool, one_row: bool = False) -> list[str]:
    """One step. The last one fetches no other and ends when all its units have; before that, units end in the next step.

    Units are pixels that share weights; or (``one_row``) blocks of weights that share a pixel.
    """
    size = PERIOD * units
    slots: list[list[str]] = [[] for _ in range(size + (2 * PERIOD + PERIOD // 2 if last else 0))]
    rows = [ROWS[0] if one_row else _row(unit, units) for unit in range(units)]
    for unit in range(units):
        for moment, text in _unit(unit, rows[unit], join):
            at = unit * PERIOD + moment
            slots[at if last else at % size].append(text)
    if last:  # what the units before it left
        for back in range(1, -(-max(PATTERN.values()) // PERIOD) + 1):
            for moment, text in _unit((units - back) % units, "", join):
                if moment >= back * PERIOD:
                    slots[moment - back * PERIOD].insert(0, text)
    for unit in range(1, units):
        at = (unit - 1) * PERIOD
        if one_row:
            slots[at + FIRST_WEIGHTS].append(_weights(0, f"@low{unit}"))
            slots[at + LAST_WEIGHTS].append(_weights(1, f"@high{unit}"))
        else:
            slots[at + ROW].append(_fetch(unit, units, "@offset"))
    if not last:
        at = size - PERIOD
        forward = [
            f"add @{end}{unit}, @{end}{unit}, #128"
            for unit in range(units if one_row else 1)
            for end in ("low", "high")
        ]
        slots[at + FIRST_WEIGHTS] += [*forward, f"adds @offset, @offset, #{STEP}", _weights(0, "@low0")]
        slots[at + LAST_WEIGHTS].append(_weights(1, "@high0"))
        slots[at + ROW].append(_fetch(0, units, "@offset"))
    return [line for slot in slots for line in slot]


def assembly(units: int, join: str, steps: int, one_row: bool = False) -> list[str]:
    """All of it: totals of ``units`` over ``steps`` steps. Operands are called ``@low0``, ``@high0``, … (the two halves of
    a block's weights), ``@offset`` (−16 · (steps − 1), counts up to zero), ``@row0`` … (each pixel's last step)."""
    lines = [_weights(0, "@low0"), _fetch(0, units, "@offset"), _weights(1, "@high0")]
    lines += [f"movi {total}.2d, #0" for total in TOTALS[:units]]
    # Units before the first: their results are zero.
    late = {
        registers()[read] for read, reader in readers().items() if PATTERN[read] // PERIOD != PATTERN[reader] // PERIOD
    }
    lines += [f"movi {register}.2d, #0" for register in sorted(late)]
    if steps > 1:
        lines += ["1:", *step(units, join, last=False, one_row=one_row), "b.ne 1b"]
    return lines + step(units, join, last=True, one_row=one_row)


def _function(name: str, units: int, common: bool, steps: int, one_row: bool) -> Inline:
    def block(number: int, value: str) -> list[Operand]:
        high = f"%high{number}"
        line = f"{high} = getelementptr i8, ptr {value}, i64 64"
        return [Operand(f"low{number}", value), Operand(f"high{number}", high, line=line)]

    operands = [*block(0, "%weights"), Operand("offset", "%wide", "i64", "%wide = sext i32 %number to i64")]
    if one_row:
        operands += [operand for unit in range(1, units) for operand in block(unit, f"%row{unit}")]
    operands += [Operand(f"row{p}", f"%row{p}", changes=False) for p in range(1 if one_row else units)]
    name += f"_{'and' if common else 'xor'}" + ("" if steps > 1 else "_once")
    used = sorted({*WEIGHTS, *ROWS, *registers().values()}, key=lambda register: int(register[1:]))
    lines = assembly(units, "and" if common else "eor", steps, one_row)
    return inline(name, "aarch64-linux-gnu", lines, TOTALS[:units], units, operands, used)


@functools.cache
def function(pixels: int, common: bool, steps: int) -> Inline:
    """The loop over whole steps: ``weights`` are the block's, a row is where a pixel's last step lies, ``number`` is
    −16 · (steps − 1)."""
    return _function(f"xnorc_a53_{pixels}", pixels, common, steps, False)


@functools.cache
def function_of_blocks(blocks: int, common: bool, steps: int) -> Inline:
    """The same for one pixel and several blocks: row 0 is the pixel's, the others are the other blocks' weights."""
    return _function(f"xnorc_a53_row_{blocks}", blocks, common, steps, True)
