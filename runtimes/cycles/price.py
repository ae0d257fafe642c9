"""What blocks of instructions cost on a core, by llvm-mca.

llvm-mca simulates the core's decoders, pipes and latencies on a list of instructions, with all loads hitting the first
cache and every branch foreseen. Two prices are asked for:

* of each block alone, repeated back to back. That is what a loop of one block does. For a block that is not its own
  successor it invents dependencies (from its end to its start) that the program does not have.
* of sampled stretches of the execution, blocks in the order in which they ran, from a warmed-up pipeline.

The blocks' exact counts times the first, times the ratio of the second to the first over the samples, is the estimate of
a step (a ratio estimator: W. Cochran, "Sampling Techniques", chapter 6; the sampling of executions: Wunderlich et al.,
"SMARTS", ISCA 2003).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from ...errors import ToolError
from ...targets import Target
from .cores import Core
from .count import Block

_ITERATIONS = 100
_WARM_UP = 300
"""Instructions of a stretch that only fill the pipeline."""
_INSTALL = "install Debian's llvm"


def tool(name: str) -> str:
    """Path of an LLVM tool: ``name`` on PATH, else the newest ``name-N``. Raises ``ToolError``."""
    for candidate in (name, *(f"{name}-{version}" for version in range(22, 13, -1))):
        if path := shutil.which(candidate):
            return path
    raise ToolError(f"modelling cycles needs {name} on PATH: {_INSTALL}")


def _run(command: Sequence[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"'{command[0]}' does not run: {error}") from error
    if done.returncode and not done.stdout:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it failed"]
        raise ToolError(f"'{command[0]}': {lines[0].strip()}")
    return done.stdout


def _attributes(target: Target) -> str:
    return ",".join(str(item) for item in target.llvm.get("mattr", []))  # type: ignore[attr-defined]


def disassemble(blocks: Sequence[Block], target: Target) -> list[list[str]]:
    """The instructions of each block as assembly. What the disassembler does not know is left out."""
    command = [
        tool("llvm-mc"), "--disassemble", f"--triple={target.llvm['mtriple']}", f"--mattr={_attributes(target)}",
    ]  # fmt: skip
    # A marker that survives disassembly separates the blocks: an instruction that no compiler emits.
    marker = (0xD503201F | 0x7F << 5).to_bytes(4, "little")  # hint #127
    stream = b"".join(block.code + marker for block in blocks)
    lines = _run(command, " ".join(f"0x{byte:02x}" for byte in stream)).splitlines()
    found: list[list[str]] = [[]]
    for line in lines:
        line = line.strip()
        if line == "hint\t#127":
            found.append([])
        elif line and not line.startswith("."):
            found[-1].append(line)
    if len(found) != len(blocks) + 1:
        raise ToolError(f"llvm-mc gave {len(found) - 1} blocks for {len(blocks)}")
    return found[:-1]


class Pricer:
    """llvm-mca for one core. Raises ``ToolError`` when LLVM's tools are missing or know no model of the core."""

    def __init__(self, target: Target, core: Core) -> None:
        if core.mcpu is None:
            raise ToolError(f"LLVM has no scheduling model of the core of {core.board}")
        self.target, self.core = target, core

    def cycles(self, regions: Sequence[Sequence[str]], iterations: int = 1) -> list[int]:
        """Total cycles of each list of instructions, run ``iterations`` times back to back."""
        if not regions:
            return []
        text = ["\t.text"]
        for number, lines in enumerate(regions):
            text += [f"# LLVM-MCA-BEGIN {number}", *lines, f"# LLVM-MCA-END {number}"]
        command = [
            tool("llvm-mca"), f"--mtriple={self.target.llvm['mtriple']}", f"--mcpu={self.core.mcpu}",
            f"--mattr={_attributes(self.target)}", f"--iterations={iterations}", "--instruction-info=false",
            "--resource-pressure=false", "-",
        ]  # fmt: skip
        answer = _run(command, "\n".join(text) + "\n")
        found = [int(number) for number in re.findall(r"^Total Cycles:\s+(\d+)$", answer, re.MULTILINE)]
        if len(found) != len(regions):
            raise ToolError(f"llvm-mca answered for {len(found)} of {len(regions)} pieces of code")
        return found

    def alone(self, assembly: Sequence[Sequence[str]]) -> list[float]:
        """Cycles of each block, repeated back to back."""
        return [total / _ITERATIONS for total in self.cycles(assembly, _ITERATIONS)]

    def stretches(self, stretches: Sequence[Sequence[Sequence[str]]]) -> list[tuple[int, float]]:
        """Of each stretch (blocks in order): how many leading blocks fill the pipeline, and the cycles of the rest."""
        warm: list[int] = []
        for blocks in stretches:
            count, taken, length = 0, 0, sum(map(len, blocks))
            most = max(_WARM_UP, length // 10) if length >= 3 * _WARM_UP else 0  # a short one is priced whole
            while count < len(blocks) - 1 and taken + len(blocks[count]) <= most:
                taken += len(blocks[count])
                count += 1
            warm.append(count)
        whole = self.cycles([[line for block in blocks for line in block] for blocks in stretches])
        start = [
            [line for block in blocks[:count] for line in block] for blocks, count in zip(stretches, warm, strict=True)
        ]
        # A region must not be empty: a lone no-op stands for "nothing before".
        before = self.cycles([lines or ["nop"] for lines in start])
        return [
            (count, float(total - (first if count else 0)))
            for count, total, first in zip(warm, whole, before, strict=True)
        ]
