"""xnorc against ONNX's own node tests: ``python -m tests.lower.conformance > docs/conformance.md``.

Every case is prepared, lowered alone (what is not claimed must be refused with a reason), and the lowered ones are then
compiled for the host, many in one model, and run. A case is ``passed``, ``refused`` or ``wrong``; a crash is wrong.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from xnorc.model import OLDEST_OPSET, newest_opset

from .conformance_cases import SEVERAL, Form, difference, merged, node_forms

INTRODUCTION = """# Conformance

Written by `python -m tests.lower.conformance > docs/conformance.md`; do not edit. `tests/lower/test_conformance.py` keeps
it true.

The node tests of ONNX {onnx} (`onnx.backend.test`), compiled for `host` and compared with the outputs that they store:
integers exactly, floats with the tolerance of the case. Every case is compiled with all its inputs as inputs, then with all
but the first as constants, then after the passes. **Passed**: at least one of these compiles, and all that compile are right.
**Not claimed**: each is refused with a reason. **Wrong**: one gives other numbers, crashes, or fails without a reason.

Opsets: {oldest} to {newest}; a model of an older one than 18 is converted. Cases of opsets after {newest}, which the
installed ONNX Runtime does not run, are declared as {newest}; what is new in them is refused. Cases of one node in float64
are run in float32, but for casts and `Mod`. *As function body*: the cases
that ONNX writes with the operator expanded to others.
"""
SHORT = (
    (r"is object: devices hold|\bobject\b", "element type string"),
    (r"(?:is|a tensor of) (\w+)[:;] devices hold", r"element type \1"),
    (r"has the dynamic shape \[[^]]*\b0\b", "an empty input"),
    (r"' is empty$", "an empty tensor"),
    (r"is no tensor at run time", "a shape, which is constant"),
    (r"is not a tensor|in_seq|kind TYPE_PROTO|SequenceMap|SplitToSequence", "a sequence, an optional or a map"),
    (r"does not exist in opset|has unsupported type|Unrecognized attribute", "newer than the opsets above"),
    (r"imports none", "not an operator of the standard domain"),
    (r"holds (NaN|an infinite value)", r"a constant with \1"),
    (r"shape of (?:its output )?'[^']*' depends on (?:the )?data", "the shape of the output depends on data"),
    (r"TVM gives '[^']*' the type (\w+) None", "the shape of the output depends on data"),
    (r"has no lowering for this operator", "no lowering"),
    (r"oldest that xnorc reads", "older than the opsets above"),
    (r"TVM gives '[^']*' the type (\w+) .*, the model says", "TVM computes another shape or type"),
    (r"could not be converted|cannot be converted from opset|changes when it is converted", "conversion to opset 18"),
    (r"ONNX Runtime cannot (run|load) the model", r"ONNX Runtime cannot \1 it"),
)
"""What reasons say in short: a pattern, and its text."""

ROOT = Path(__file__).resolve().parents[2]
BATCH = 400
"""Forms in one model: a compilation of its own for each would take an hour."""


@dataclass
class Outcome:
    """``wrong`` is empty unless a form of the case gave something else, or crashed. ``reason``: why it is refused."""

    case: str
    op: str
    expanded: bool
    passed: bool
    reason: str
    wrong: str


def _worker(mode: str, job: object, folder: Path) -> tuple[Path, str]:
    """Run the worker; its results, and how it failed (empty: it did not)."""
    (folder / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-m", "tests.lower.conformance_worker", mode, str(folder / "job"), str(folder / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*Error\b", line)] or ["no message"]
    return folder / "out", "" if done.returncode == 0 else f"exit status {done.returncode}: {lines[-1]}"


def lower_alone(forms: Sequence[Form]) -> None:
    """Fill in ``refused`` and ``crashed`` of forms that have a model."""
    waiting = [form for form in forms if form.model is not None]
    while waiting:
        with tempfile.TemporaryDirectory() as temporary:
            job = [(form.key, form.model.SerializeToString()) for form in waiting if form.model is not None]
            path, failed = _worker("lower", job, Path(temporary))
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for form, line in zip(waiting, lines, strict=False):
            form.refused, form.crashed = line["refused"], line["crashed"]
        waiting = waiting[len(lines) :]
        if waiting:
            waiting[0].crashed = f"the compiler died, {failed}"
            waiting = waiting[1:]


def run_together(forms: Sequence[Form], found: dict[str, str]) -> None:
    """Compile and run forms of one opset; ``found[key]``: how the outputs differ. A batch that fails is halved."""
    if not forms:
        return
    model, feeds = merged(forms)
    with tempfile.TemporaryDirectory() as temporary:
        path, failed = _worker("run", (model.SerializeToString(), feeds), Path(temporary))
        results: dict[str, np.ndarray] = {} if failed else pickle.loads(path.read_bytes())
    if not failed:
        found.update({form.key: difference(form, results, f"f{i}_") for i, form in enumerate(forms)})
    elif len(forms) == 1:
        found[forms[0].key] = f"cannot be run: {failed}"
    else:
        half = len(forms) // 2
        run_together(forms[:half], found)
        run_together(forms[half:], found)


def measure(names: str = "") -> list[Outcome]:
    """The outcome of every node case whose name contains ``names``."""
    forms = node_forms(names)
    lower_alone(forms)
    found: dict[str, str] = {}
    ready = [form for form in forms if form.model is not None and not form.refused and not form.crashed]
    for opset in sorted({form.opset for form in ready}):
        same = [form for form in ready if form.opset == opset]
        for start in range(0, len(same), BATCH):
            run_together(same[start : start + BATCH], found)
    outcomes: dict[str, Outcome] = {}
    for form in forms:
        wrong = form.crashed or found.get(form.key, "")
        passed = form.key in found and not wrong
        before = outcomes.get(form.case)
        if before is None:
            outcomes[form.case] = Outcome(form.case, form.op, form.expanded, passed, form.refused, wrong)
        else:
            before.passed |= passed
            before.wrong = before.wrong or wrong
            before.reason = form.refused or before.reason
    return list(outcomes.values())


def short(reason: str, op: str) -> str:
    """A reason without names of tensors and nodes, and without the operator ``op`` that it is about."""
    reason = re.sub(r"^node '[^']*' \((\w+)\) cannot be lowered: ", r"\1: ", reason).removeprefix(f"{op}: ")
    for pattern, text in SHORT:
        if found := re.search(pattern, reason):
            return found.expand(text)
    return re.sub(r" ?'[^']*'", "", reason).split(": pass --shape")[0].replace("|", "/")[:140]


def _count(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(o.passed and not o.wrong for o in outcomes)} of {len(outcomes)}" if outcomes else ""


def introduction() -> str:
    """The text above the tables; it names the versions that they hold for."""
    return INTRODUCTION.format(newest=newest_opset(), oldest=OLDEST_OPSET, onnx=onnx.__version__)


def table(outcomes: Sequence[Outcome]) -> str:
    """``docs/conformance.md``."""
    wrong = [o for o in outcomes if o.wrong]
    refused = [o for o in outcomes if not o.wrong and not o.passed]
    by_op: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda o: (o.op == SEVERAL, o.op)):
        by_op[outcome.op].append(outcome)
    lines = [introduction()]
    lines += ["| cases | passed | not claimed | wrong |", "|---|---|---|---|"]
    lines += [f"| {len(outcomes)} | {len(outcomes) - len(refused) - len(wrong)} | {len(refused)} | {len(wrong)} |"]
    lines += [""] * bool(wrong) + [f"* wrong: `{o.case}`: {o.wrong}" for o in wrong]
    lines += ["", "## Operators with cases that pass", ""]
    lines += ["| operator | passed | as function body | why the others are not claimed |", "|---|---|---|---|"]
    nothing: dict[str, list[str]] = defaultdict(list)
    for op, cases in by_op.items():
        reasons = Counter(short(o.reason, op) for o in cases if o in refused)
        if any(o.passed for o in cases):
            merged_reasons = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
            whole, bodies = ([o for o in cases if o.expanded == kind] for kind in (False, True))
            lines.append(f"| {op} | {_count(whole)} | {_count(bodies)} | {merged_reasons} |")
        else:
            nothing["; ".join(sorted(reasons))].append(f"{op} ({len(cases)})")
    lines += ["", "## Operators of which no case is claimed", "", "| why | operators (cases) |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(ops)} |" for reason, ops in sorted(nothing.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # graphsurgeon prints warnings
        text = table(measure())
    print(text, end="")
