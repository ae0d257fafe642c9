"""Inner loops in assembly: LLVM's text of a module with one function, which TIR calls and LLVM inlines.

TIR has no assembly of its own, and LLVM reorders what TIR says; in-order cores pay for that. The function is
``int32 f(totals, weights, row0, row1, …, number)``: ``totals`` is uint16 ``[pixels, 8]`` and is written, the rest says its
user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from .common import Expr, Flat


@dataclass(frozen=True)
class Operand:
    """Something that the assembly reads under ``@name`` and changes (``changes``) or not: a value of LLVM's, its type, and
    the line that makes it, where it is not an argument."""

    name: str
    value: str
    kind: str = "ptr"
    line: str = ""
    changes: bool = True


@dataclass(frozen=True)
class Inline:
    """A function: its name and the text of its module."""

    name: str
    text: str

    def call(self, totals: Flat, weights: Expr, rows: Sequence[Expr], number: int) -> None:
        """Emit the call."""
        with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", self.text):
            arguments = [totals.address(0), weights, *rows, tirx.const(number, "int32")]
            T.evaluate(tirx.call_extern("int32", self.name, *arguments))


def inline(name: str, triple: str, lines: Sequence[str], totals: Sequence[str], rows: int, operands: Sequence[Operand],
           spoiled: Iterable[str]) -> Inline:  # fmt: skip
    """``lines`` leave each pixel's totals in the registers ``totals``; ``spoiled`` are the vector registers used besides.
    Arguments are called ``%weights``, ``%row0`` …, ``%number``."""
    changed = [operand for operand in operands if operand.changes]
    others = [operand for operand in operands if not operand.changes]
    numbers = {operand.name: len(totals) + i for i, operand in enumerate([*changed, *others])}
    text = "\\0A".join(lines)
    for operand, number in sorted(numbers.items(), reverse=True):
        text = text.replace(f"@{operand}", f"${number}")
    rules = [f"=&{{{total}}}" for total in totals] + ["=&r"] * len(changed) + ["r"] * len(others)
    rules += [str(numbers[operand.name]) for operand in changed]
    rules += [f"~{{{register}}}" for register in spoiled] + ["~{cc}", "~{memory}"]
    result = "{ " + ", ".join(["<8 x i16>"] * len(totals) + [operand.kind for operand in changed]) + " }"
    given = ", ".join(f"{operand.kind} {operand.value}" for operand in [*others, *changed])
    parameters = "".join(f"ptr %row{p}, " for p in range(rows))
    body = [
        f'target triple = "{triple}"',
        f"define linkonce_odr i32 @{name}(ptr %totals, ptr %weights, {parameters}i32 %number) alwaysinline {{",
        *(f"  {operand.line}" for operand in operands if operand.line),
        f'  %all = call {result} asm sideeffect "{text}", "{",".join(rules)}"({given})',
    ]
    for i in range(len(totals)):
        body += [
            f"  %total{i} = extractvalue {result} %all, {i}",
            f"  %place{i} = getelementptr i8, ptr %totals, i32 {16 * i}",
            f"  store <8 x i16> %total{i}, ptr %place{i}, align 2",
        ]
    return Inline(name, "\n".join([*body, "  ret i32 0", "}", ""]))
