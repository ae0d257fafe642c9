"""The tuner: which layers, in which order, and when a choice is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx

from ..errors import DeviceError
from ..lower.build import compile_program, lower
from ..lower.knobs import Knobs
from ..lower.program import Argument, Program
from ..runtimes.device import Device, parse_device, to_device
from ..targets import Target
from .measure import Layer, Measured, measure, package_of, part_for
from .records import LayerRecord, Records
from .space import Point, Space

BATCH = 8
"""Candidates of one program."""
LEAST_SHARE = 0.003
"""Layers that take less of the time are left as they ship."""
LEAST_GAIN = 0.02
"""By how much a choice must be faster than the shipped one, measured anew, to be kept."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerResult:
    """What became of a layer. ``reason``: why nothing was tried or kept, else empty."""

    layer: str
    op: str
    times: int
    shipped_us: float
    us: float
    choices: dict[str, int]
    trials: int
    wrong: int
    """Candidates that were refused because they did not compute the same bits."""
    reason: str = ""

    @property
    def gain(self) -> float:
        """How many times faster than the shipped schedule."""
        return self.shipped_us / self.us if self.us else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "gain": self.gain}


@dataclass
class Tuning:
    """How to tune: on which device, how many candidates a layer, and where records are kept."""

    records: Records
    device: str = "host"
    trials: int = 32
    on_interrupt: Callable[[], None] = lambda: None
    """Called when Ctrl-C ended the tuning."""
    done: list[LayerResult] = field(default_factory=list)
    interrupted: bool = False


def device_of(text: str) -> Device:
    """The device to tune on. Raises ``InputError`` or ``DeviceError`` where ``text`` names none that runs kernels."""
    if text.startswith(("sim", "serial://")):
        raise DeviceError(f"--tune runs on host, qemu or ssh://user@host, not on '{text}'")
    return parse_device(text)


def tune(
    packed: onnx.ModelProto, target: Target, name: str, feeds: Mapping[str, np.ndarray], tuning: Tuning,
    progress: Progress = lambda stage: None,
) -> None:  # fmt: skip
    """Tune the layers of a packed model; results go to ``tuning.done`` and, layer by layer, into the file of its records.

    ``feeds``: one sample of the model's inputs. Ctrl-C ends the tuning, not the caller: ``tuning.interrupted`` is set, and
    what was found is kept. Raises ``DeviceError`` when the device cannot be reached or is no device for kernels,
    ``ToolError`` where a tool is missing.
    """
    device = device_of(tuning.device)
    try:
        progress("timing the shipped schedules")
        layers, shares = _layers(packed, target, name, feeds, device, tuning)
        for number, layer in enumerate(layers):
            where = f"tuning layer {number + 1} of {len(layers)}: {layer.name} ({shares[number]:.0%} of the time)"
            if layer.template.key in tuning.records.layers:
                tuning.done.append(_known(layer, tuning.records.layers[layer.template.key]))
                continue
            result = _tune_layer(layer, target, device, tuning.trials, _behind(where, progress))
            tuning.done.append(result)
            tuning.records.layers[layer.template.key] = LayerRecord(
                layer.name, target.name, device.name, result.choices, result.us, result.shipped_us, result.trials
            )
            tuning.records.save()
    except KeyboardInterrupt:
        tuning.interrupted = True
        tuning.on_interrupt()


def _known(layer: Layer, record: LayerRecord) -> LayerResult:
    return LayerResult(
        layer.name, layer.op, layer.times, record.shipped_us, record.us, record.choices, 0, 0, "tuned before"
    )


def _behind(where: str, progress: Callable[[str], None]) -> Callable[[str], None]:
    """``progress`` of a part of the work: told behind ``where``."""
    return lambda stage: progress(where + stage)


def _tune_layer(layer: Layer, target: Target, device: Device, trials: int, progress: Progress) -> LayerResult:
    """Search, and measure the best against the shipped schedule once more: the fastest of many is partly luck."""
    space = Space(layer.template, trials)
    ships = _changed(layer, space.shipped)
    tried = wrong = 0
    best: Point = space.shipped
    gain = 1.0
    while tried < trials:
        drawn = space.candidates(min(BATCH, trials - tried))
        if not drawn:
            break
        progress(f", candidate {tried + 1} of {trials}" + (f", {gain:.2f}x" if gain > 1 else ""))
        found = measure(layer, [space.shipped, *(point for point, _ in drawn)], target, device)
        tried += len(drawn)
        for (point, candidate), seconds, equal in zip(drawn, found.seconds[1:], found.equal[1:], strict=True):
            if not equal:
                wrong += 1
                continue
            # What else the machine does changes from program to program: times count relative to the shipped one's.
            space.measured(candidate, seconds / found.seconds[0])
            if found.seconds[0] / seconds > gain:
                best, gain = point, found.seconds[0] / seconds
    if best is space.shipped:
        last = measure(layer, [space.shipped], target, device) if not tried else found
        us = last.seconds[0] * 1e6
        return LayerResult(layer.name, layer.op, layer.times, us, us, ships, tried, wrong, "as shipped")
    progress(", the best once more")
    again: Measured = measure(layer, [space.shipped, best], target, device)
    shipped, fastest = (seconds * 1e6 for seconds in again.seconds)
    if not again.equal[1] or shipped / fastest < 1 + LEAST_GAIN:
        return LayerResult(layer.name, layer.op, layer.times, shipped, shipped, ships, tried, wrong, "as shipped")
    return LayerResult(layer.name, layer.op, layer.times, shipped, fastest, _changed(layer, best), tried, wrong)


def _changed(layer: Layer, point: Point) -> dict[str, int]:
    """The answers of ``point`` that are not the defaults."""
    knobs = Knobs(point)
    layer.template.make(layer.template.call.name, knobs)
    return knobs.changed()


def _layers(
    packed: onnx.ModelProto, target: Target, name: str, feeds: Mapping[str, np.ndarray], device: Device, tuning: Tuning
) -> tuple[list[Layer], list[float]]:
    """The layers that have choices, those that take longest first, and their shares of the time of a run."""
    program = lower(packed, target, name)
    built = compile_program(program, target, only=part_for(device))
    package = package_of(built, name, target)
    samples = {key: np.asarray(value)[None] for key, value in feeds.items()}
    with device.open(package) as session:
        values = {**samples, **session.trace(samples)}
        times = session.bench(samples, 5, 1).min(axis=0).astype(np.float64)
    if device.name == "qemu":
        from ..runtimes.cycles.model import step_seconds

        times = np.array(step_seconds(package, samples))
    share: dict[str, float] = {}
    kept: dict[str, Layer] = {}
    for step, seconds in zip(program.steps, times / times.sum(), strict=True):
        for call in step.calls:
            template = program.templates.get(call.symbol or "")
            if template is None or not any(len(c) > 1 for c in template.call.knobs.asked.values()):
                continue
            key = template.key
            share[key] = share.get(key, 0.0) + float(seconds)
            old = kept.get(key)
            if old is not None:
                kept[key] = Layer(old.name, old.op, old.template, old.values, old.constants, old.macs, old.times + 1)
                continue
            arguments = _values(
                program, call.inputs, template.make(template.call.name, template.call.knobs).args, values
            )
            if arguments is not None:
                constants = frozenset(k for k, a in arguments.items() if a[0])
                flat = {k: a[1] for k, a in arguments.items()}
                kept[key] = Layer(step.name, step.op, template, flat, constants, step.macs, 1)
    order = sorted((key for key in kept if share[key] >= LEAST_SHARE), key=lambda key: -share[key])
    return [kept[key] for key in order], [share[key] for key in order]


def _values(
    program: Program, given: list[Argument], own: tuple[np.ndarray | tuple[str, int], ...],
    values: Mapping[str, np.ndarray],
) -> dict[tuple[str, int], tuple[bool, np.ndarray]] | None:  # fmt: skip
    """Every input of a kernel: whether it is constant, and its elements as they lie. None where one is not to be had."""
    found: dict[tuple[str, int], tuple[bool, np.ndarray]] = {}
    for argument, source in zip(given, own, strict=True):
        if isinstance(source, np.ndarray):
            continue
        if argument.kind == "constant":
            found[source] = (True, program.constants[argument.index].reshape(-1))
            continue
        tensor = program.tensors[argument.index]
        if tensor.name in values:
            entry = {"layout": "channels_last"} if tensor.channels_last else {}
            found[source] = (False, to_device(entry, values[tensor.name][:1]).reshape(-1))
        elif tensor.type.dtype == np.float32:  # between two calls of a step: any numbers will do
            size = int(np.prod(tensor.type.shape, dtype=np.int64))
            found[source] = (False, np.random.default_rng(0).standard_normal(size, np.float32))
        else:
            return None
    return found
