"""Packed ONNX to the members of a package: the one entry of ``xnorc.lower``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..targets import Target
from . import codegen, plan
from .link import link
from .program import ALIGNMENT, Program
from .relax import Importer, legalize
from .schedules import schedule_all
from .share import share_kernels
from .steps import Walker
from .templates import Choices
from .tir import build

MAX_THREADS = 4

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """``members``: files of the package's ``lib/``. ``manifest``: tensors, steps and memory of the program."""

    members: dict[str, bytes]
    manifest: dict[str, Any]


def lower(packed: onnx.ModelProto, target: Target, name: str, tuned: Choices | None = None) -> Program:
    """Packed ONNX to a program of scheduled kernels with a memory plan (all but machine code).

    ``tuned``: what the tuner chose for layers, in place of the choices that ship.
    """
    importer = Importer(packed, target, name, tuned)
    mod = legalize(importer.build())
    program = Walker(importer, mod).program(name)
    schedule_all(program, target, tuned or {})
    share_kernels(program)
    plan.plan(program)
    return program


def compile_model(
    packed: onnx.ModelProto, target: Target, name: str, progress: Progress = lambda stage: None,
    tuned: Choices | None = None,
) -> Built:  # fmt: skip
    """Lower, compile and link a packed model for ``target``. ``name`` must be a C identifier.

    ``progress`` is called with the name of each stage as it begins; ``tuned`` is that of ``lower``. Raises
    ``UnsupportedError`` for a node that cannot be lowered, ``ToolError`` when zig fails.
    """
    progress("lowering")
    return compile_program(lower(packed, target, name, tuned), target, progress)


def compile_program(program: Program, target: Target, progress: Progress = lambda stage: None, only: str = "") -> Built:
    """Compile and link a lowered program (``only``: see ``link``); raises as ``compile_model`` does."""
    name = program.name
    progress("compiling kernels")
    machine = build(program.kernels, target)
    tensor_bytes = program.arena_bytes
    program.workspace_bytes = max(machine.workspace.values(), default=0)
    program.arena_bytes = max(tensor_bytes + MAX_THREADS * program.workspace_bytes, ALIGNMENT)
    blob, offsets = codegen.weights(program)
    progress("linking")
    with tempfile.TemporaryDirectory(prefix="xnorc-") as temporary:
        folder = Path(temporary)
        (folder / "kernels.o").write_bytes(machine.object())
        (folder / "weights.bin").write_bytes(blob)
        (folder / f"{name}.h").write_text(codegen.header(program))
        text = codegen.source(
            program, offsets, tensor_bytes=tensor_bytes, max_threads=MAX_THREADS, weights_file="weights.bin"
        )
        (folder / "model.c").write_text(text)
        (folder / "this.c").write_text(codegen.runner_glue(program))
        members = link(folder, name, target, only)
    return Built(members, describe(program, tensor_bytes, len(blob)))


def describe(program: Program, tensor_bytes: int, weight_bytes: int) -> dict[str, Any]:
    """The part of the manifest that the program determines."""
    return {
        "tensors": [
            {"name": t.name, "dtype": str(t.type.dtype), "shape": list(t.type.shape)}
            | ({"layout": "channels_last"} if t.channels_last else {})
            for t in program.tensors
        ],
        "inputs": program.inputs,
        "outputs": program.outputs,
        "steps": [
            {
                "name": s.name,
                "op": s.op,
                "kind": program.kind(s),
                "reads": s.reads,
                "writes": s.writes,
                "nodes": s.nodes,
                "macs": s.macs,
                **program.chosen(s),
            }
            for s in program.steps
        ],
        "memory": {
            "arena_bytes": program.arena_bytes,
            "tensor_bytes": tensor_bytes,
            "lower_bound_bytes": plan.lower_bound(program),
            "workspace_bytes": program.workspace_bytes,
            "max_threads": MAX_THREADS,
            "weight_bytes": weight_bytes,
            "plan": [
                {"tensor": life.tensor, "first": life.first, "last": life.last, "bytes": life.bytes,
                 "offset": program.tensors[life.tensor].place}
                for life in plan.lives(program)
            ],
        },
    }  # fmt: skip
