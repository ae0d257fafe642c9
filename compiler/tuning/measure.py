"""Candidates of one layer as one program: a step each, on the same inputs, timed in turns by the device protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from ..lower import plan
from ..lower.build import Built, compile_program
from ..lower.knobs import Knobs
from ..lower.program import Argument, Call, Program, Step, Tensor
from ..lower.templates import Template
from ..opset import TensorType
from ..package import Package
from ..runtimes.device import Device
from ..targets import Target

NAME = "candidates"
_SECONDS = 0.4
"""What all runs of a program should take together."""
_REPEATS = (7, 60)


@dataclass(frozen=True)
class Layer:
    """A layer to tune. ``values``: its tensors and constants as they lie in memory, flat, by argument (``("input", 0)``)."""

    name: str
    op: str
    template: Template
    values: Mapping[tuple[str, int], np.ndarray]
    constants: frozenset[tuple[str, int]]
    macs: int
    times: int
    """Steps of the model that use it."""


@dataclass(frozen=True)
class Measured:
    """Of each candidate: seconds of a run, and whether its output has the bits of the first one's."""

    seconds: list[float]
    equal: list[bool]


def package_of(built: Built, name: str, target: Target) -> Package:
    """What a device needs of a package."""
    members = {f"lib/{file}": data for file, data in built.members.items()}
    return Package(Path(f"{name}.xnorc"), {**built.manifest, "name": name, "target": target.name}, members)


def part_for(device: Device) -> str:
    """The part of a package's ``lib/`` that a device runs."""
    return "shared" if device.name == "host" else "runner"


def output_name(candidate: int, output: int) -> str:
    """Name of what candidate ``candidate`` stores as its output ``output``."""
    return f"output{candidate}_{output}"


def program_of(layer: Layer, points: Sequence[Mapping[str, int]]) -> Program:
    """The program whose step i runs the layer's kernel with the choices ``points[i]``."""
    tensors: list[Tensor] = []
    inputs: list[int] = []
    places: dict[tuple[str, int], Argument] = {}
    constants: list[np.ndarray] = []
    for argument, value in layer.values.items():
        if argument in layer.constants:
            places[argument] = Argument("constant", len(constants))
            constants.append(value)
        else:
            places[argument] = Argument("tensor", len(tensors))
            inputs.append(len(tensors))
            kind = TensorType((value.size,), value.dtype)
            tensors.append(Tensor(f"{argument[0]}{argument[1]}", kind, "input", len(inputs) - 1))
    kernels, steps = {}, []
    outputs: list[int] = []
    call = layer.template.call
    for number, point in enumerate(points):
        symbol = f"{NAME}_k{number}"
        kernel = layer.template.make(symbol, Knobs(point))
        given = []
        for own in kernel.args:
            if isinstance(own, np.ndarray):
                given.append(Argument("constant", len(constants)))
                constants.append(own)
            else:
                given.append(places[own])
        written = []
        for i, kind in enumerate(call.outputs):
            written.append(len(tensors))
            size = int(np.prod(kind.shape, dtype=np.int64))
            flat = TensorType((size,), kind.dtype)
            tensors.append(Tensor(output_name(number, i), flat, "output", len(outputs) + i))
        outputs += written
        kernels[symbol] = kernel.func.with_attr("xnorc.scheduled", 1)
        reads = list(dict.fromkeys(a.index for a in given if a.kind == "tensor"))
        steps.append(
            Step(
                f"candidate {number}",
                layer.op,
                [],
                [Call(symbol, given, written)],
                reads,
                written,
                layer.macs,
            )
        )
    program = Program(NAME, tensors, inputs, outputs, steps, constants, tvm.IRModule(kernels))
    plan.plan(program)
    return program


def measure(layer: Layer, points: Sequence[Mapping[str, int]], target: Target, device: Device) -> Measured:
    """Compile, run and time candidates on ``device``. Under QEMU the times are modelled (``runtimes.cycles``)."""
    built = compile_program(program_of(layer, points), target, only=part_for(device))
    package = package_of(built, NAME, target)
    feeds: dict[str, np.ndarray] = {
        f"{kind}{index}": value[None]
        for (kind, index), value in layer.values.items()
        if (kind, index) not in layer.constants
    }
    with device.open(package) as session:
        found = session.run(feeds)
        seconds = [] if device.name == "qemu" else _times(session, feeds)
    if device.name == "qemu":
        from ..runtimes.cycles.model import step_seconds

        seconds = step_seconds(package, feeds)
    kinds = layer.template.call.outputs
    outputs = [
        b"".join(np.ascontiguousarray(found[output_name(number, i)]).tobytes() for i in range(len(kinds)))
        for number in range(len(points))
    ]
    equal = [output == outputs[0] for output in outputs]
    return Measured(seconds, equal)


def _times(session: Any, feeds: Mapping[str, np.ndarray]) -> list[float]:
    once = float(session.bench(feeds, 2, 1).min(axis=0).sum()) / 1e9
    repeats = int(min(max(_SECONDS / max(once, 1e-9), _REPEATS[0]), _REPEATS[1]))
    times = session.bench(feeds, repeats, 1).astype(np.float64) / 1e9
    return [float(value) for value in np.quantile(times, 0.25, axis=0)]
