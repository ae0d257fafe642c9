"""What a block of instructions costs on a core: llvm-mca's steady state, the block repeated back to back.

llvm-mca simulates the core's decoders, pipes and latencies with all loads hitting the first cache. Repeating a block is
what a loop does; for a block that runs once in a while it is the cost when its neighbours keep the core as busy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence

from ...errors import ToolError
from ...targets import Target
from .cores import Core
from .count import Block

_ITERATIONS = 100
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


def disassemble(blocks: Sequence[Block], target: Target) -> list[list[str]]:
    """The instructions of each block as assembly. What the disassembler does not know is left out."""
    triple = str(target.llvm["mtriple"])
    attributes = ",".join(str(item) for item in target.llvm.get("mattr", []))  # type: ignore[attr-defined]
    command = [tool("llvm-mc"), "--disassemble", f"--triple={triple}", f"--mattr={attributes}"]
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


def price_blocks(blocks: Sequence[Block], target: Target, core: Core) -> list[float]:
    """Cycles of each block. Raises ``ToolError`` when LLVM's tools are missing or know no model of the core."""
    if core.mcpu is None:
        raise ToolError(f"LLVM has no scheduling model of the core of {core.board}")
    if not blocks:
        return []
    text = ["\t.text"]
    assembly = disassemble(blocks, target)
    for number, lines in enumerate(assembly):
        # A branch is priced as an instruction; where it leads does not matter here.
        text += [f"# LLVM-MCA-BEGIN {number}", *lines, f"# LLVM-MCA-END {number}"]
    source = "\n".join(text) + "\n"
    attributes = ",".join(str(item) for item in target.llvm.get("mattr", []))  # type: ignore[attr-defined]
    command = [
        tool("llvm-mca"), f"--mtriple={target.llvm['mtriple']}", f"--mcpu={core.mcpu}", f"--mattr={attributes}",
        f"--iterations={_ITERATIONS}", "--json", "-",
    ]  # fmt: skip
    answer = _run(command, source)
    return _cycles(answer, len(blocks))


def _cycles(answer: str, count: int) -> list[float]:
    """Total cycles over iterations, of every region in order, from llvm-mca's JSON (in either of its forms)."""
    try:
        data = json.loads(answer)
        regions = data["CodeRegions"] if isinstance(data, dict) and "CodeRegions" in data else [data]
        found = {}
        for region in regions:
            summary = region["SummaryView"]
            found[int(region["Name"] or 0)] = summary["TotalCycles"] / summary["Iterations"]
        return [found[number] for number in range(count)]
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"llvm-mca answered in a form that is not known ({error}); LLVM 14 is") from error
