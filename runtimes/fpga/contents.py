"""Contents of memories as files, for yosys: it reads them at once, and takes a time that grows with the square of their
number for words that are assigned one by one.
"""

from __future__ import annotations

import re
from pathlib import Path

_LEAST = 64
"""Words of a memory that is worth a file."""
_BLOCK = re.compile(r"  initial begin\n((?:    (\S+)\[\d+\] = \d+'h[0-9a-fA-F]+;\n)+)  end\n")
_WORD = re.compile(r"    (\S+)\[(\d+)\] = \d+'h([0-9a-fA-F]+);\n")


def outside(verilog: str, folder: Path) -> str:
    """``verilog`` with ``$readmemh`` in place of the words of large memories, which go to files in ``folder``."""
    made = 0

    def replace(block: re.Match[str]) -> str:
        nonlocal made
        words = _WORD.findall(block[1])
        name = block[2]
        whole = [(name, str(place)) for place in range(len(words))] == [word[:2] for word in words]
        if not whole or len(words) < _LEAST:
            return block[0]
        file = f"contents{made}.hex"
        (folder / file).write_text("".join(f"{word}\n" for _, _, word in words))
        made += 1
        return f'  initial $readmemh("{file}", {name});\n'

    return _BLOCK.sub(replace, verilog)
