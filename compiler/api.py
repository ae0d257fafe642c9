"""The verbs of the Python API that work on ONNX models: ``optimize``, ``explain`` and ``compile``."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from . import __version__, golden, targets
from . import shortcuts as shortcuts_of
from .calibrate import choose
from .errors import InputError, ModelError, TargetError
from .model import prepare, read_model, save_model, source_names
from .operations import Operations, of_float_model, of_packed_model
from .package import GOLDEN, MAX_MODEL_INCLUDED, MODEL, PACKED, REPORT, Package, golden_bytes, model_bytes
from .passes import Optimized, Options, Record, Status
from .passes import optimize as run_passes
from .samples import split
from .targets import FpgaOptions, Target

if TYPE_CHECKING:
    from .lower.templates import Choices
    from .tuning import Tuning

Model: TypeAlias = str | os.PathLike[str] | onnx.ModelProto
Progress = Callable[[str], None]

GOLDEN_SAMPLES = 4


@dataclass(frozen=True)
class Explanation:
    """What the passes do with a model, node by node."""

    records: list[Record]
    """One a node of the model, in its order."""
    source: dict[str, str]
    """Node → torch module that it came from, where the exporter said so."""
    parameter_bytes: int
    """Size of the constants of the model as given."""
    packed_bytes: int
    """Size of the constants of the packed model."""
    operations: Operations | None
    """What one run of the model would take in float; None where shapes depend on data."""
    packed_operations: Operations | None
    """What one run of the packed model takes."""
    choices: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Number of nodes by status; statuses that do not occur are left out."""
        found = Counter(record.status.value for record in self.records)
        return {status.value: found[status.value] for status in Status if found[status.value]}

    def to_dict(self) -> dict[str, Any]:
        """The same facts for JSON; also the package's ``report.json``."""
        return {
            "nodes": [
                {**asdict(record), "status": record.status.value, "source": self.source.get(record.node, "")}
                for record in self.records
            ],
            "summary": {
                "nodes": self.counts(),
                "parameter_bytes": self.parameter_bytes,
                "packed_bytes": self.packed_bytes,
                "operations": self.operations and self.operations.to_dict(),
                "packed_operations": self.packed_operations and self.packed_operations.to_dict(),
            },
            "choices": self.choices,
        }


def optimize(
    model: Model,
    *,
    output: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sign_zero: int | None = None,
    float_layers: str = "float32",
    shortcuts: str = "float32",
    calibration: Mapping[str, np.ndarray] | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Pack a model: run the passes, and write the packed model to ``output`` if given.

    ``shapes`` fixes dynamic inputs; ``sign_zero`` is the value of sign(0) (None: as the model says); ``check`` compares
    the graph with ONNX Runtime after every pass. With ``float_layers="int8"`` the layers that would stay in float are
    computed on 8-bit integers, whose ranges are taken from ``calibration``: inputs by name, the first axis counting samples
    (see ``xnorc.calibrate``). With ``shortcuts="float16"`` shortcuts between binary layers are stored as float16 (see
    ``xnorc.passes.fixed.half_shortcuts``). Raises ``ModelError`` when the model cannot be compiled, ``InputError`` when the
    calibration data do not fit.
    """
    given = _read(model, shapes)
    result = _packed(given, _options(given, sign_zero, float_layers, shortcuts, calibration, progress), check, progress)
    if output is not None:
        save_model(result.model, output)
    return result


def explain(
    model: Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sign_zero: int | None = None,
    float_layers: str = "float32",
    shortcuts: str = "float32",
    calibration: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """What would be packed, what not, and why. Takes the arguments of ``optimize``."""
    given = _read(model, shapes)
    options = _options(given, sign_zero, float_layers, shortcuts, calibration, progress)
    return _explanation(given, _packed(given, options, False, progress))


def optimize_and_explain(
    model: Model,
    *,
    output: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    sign_zero: int | None = None,
    float_layers: str = "float32",
    shortcuts: str = "float32",
    calibration: Mapping[str, np.ndarray] | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """``optimize`` and ``explain`` at the price of one."""
    given = _read(model, shapes)
    packed = _packed(given, _options(given, sign_zero, float_layers, shortcuts, calibration, progress), check, progress)
    save_model(packed.model, output)
    return _explanation(given, packed)


def compile(
    model: Model,
    target: str | Target = "host",
    *,
    output: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sign_zero: int | None = None,
    float_layers: str = "float32",
    shortcuts: str = "float32",
    calibration: Mapping[str, np.ndarray] | None = None,
    name: str | None = None,
    golden_inputs: Mapping[str, np.ndarray] | None = None,
    fpga: FpgaOptions | None = None,
    tuned: str | os.PathLike[str] | None = None,
    tune: Tuning | None = None,
    progress: Progress | None = None,
) -> Package:
    """Compile a model for a target, and write the package to ``output`` if given.

    ``shapes``, ``sign_zero``, ``float_layers``, ``shortcuts`` and ``calibration`` are those of ``optimize``.
    ``name`` (default: after the file) names the library and its C functions. ``golden_inputs`` are samples to keep in the
    package with the original model's outputs, by input name, the first axis counting samples; by default they are a few
    seeded random ones. ``fpga``: choices for an FPGA board. ``tuned``: a file of schedules that were tuned before, to be used
    in place of those that ship; ``tune``: tune them now (see ``xnorc.tuning``). ``progress`` is called with the name of each
    stage as it begins.

    Raises ``TargetError``, ``ModelError`` or ``UnsupportedError`` (naming the node) when this model cannot be compiled
    for this target, ``InputError`` when the golden inputs do not fit, ``ToolError`` when the C compiler fails.
    """
    chosen = targets.get(target) if isinstance(target, str) else target
    if chosen.is_fpga and shortcuts != "float32":
        raise TargetError(f"shortcuts in {shortcuts} are for CPUs: '{chosen.name}' is an FPGA board")
    title = identifier(model, name)
    say = progress or (lambda stage: None)
    say("reading the model")
    given = _read(model, shapes)
    options = _options(given, sign_zero, float_layers, shortcuts, calibration, say)
    packed = _packed(given, options, False, lambda stage: say(f"pass {stage}"))
    original = model.SerializeToString(deterministic=True) if isinstance(model, onnx.ModelProto) else model_bytes(model)
    choices = _tuned(given, packed.model, chosen, title, golden_inputs, tuned, tune, say)
    package = assemble(given, original, packed, chosen, title, golden_inputs, output, say, fpga=fpga, tuned=choices)
    if output is not None:
        say("writing the package")
        package.save(output)
    return package


def _tuned(
    given: onnx.ModelProto, packed: onnx.ModelProto, target: Target, name: str,
    golden_inputs: Mapping[str, np.ndarray] | None, tuned: str | os.PathLike[str] | None, tune: Tuning | None,
    say: Progress,
) -> Choices | None:  # fmt: skip
    """What tuning chose for layers, now or before."""
    if tuned is None and tune is None:
        return None
    if target.is_fpga:
        raise TargetError(f"tuned schedules are for CPUs: '{target.name}' is an FPGA board")
    from .tuning import Records
    from .tuning import tune as run_tuning

    if tune is None:
        return Records.read(tuned or "").choices()
    inputs = golden.random_inputs(given)
    if golden_inputs is not None:
        inputs = {key: value[0] for key, value in split(golden_inputs, inputs).items()}
    run_tuning(packed, target, name, inputs, tune, say)
    return tune.records.choices()


def estimate(
    model: Model,
    target: str,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sign_zero: int | None = None,
    fpga: FpgaOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a model would take on an FPGA board and how fast it would run there, in seconds and without building anything.

    Gives ``interval_cycles``, ``latency_cycles``, ``fps``, ``luts``, ``blocks``, ``stages`` (one a unit), ``cpu`` (nodes that
    stay on the CPU), ``reasons`` and ``partition``: operators of the ``head`` and the ``tail``, nodes on the ``fpga``. Raises
    ``TargetError`` when ``target`` is no board or the model does not fit it, ``UnsupportedError`` when no layer can run there.
    """
    from .runtimes.fpga.tools import require_amaranth

    require_amaranth()
    from .runtimes.fpga.board_compile import estimate as board_estimate
    from .runtimes.fpga.boards import get as board_of

    if not targets.get(target).is_fpga:
        raise TargetError(f"target '{target}' is no FPGA board: --estimate is for {', '.join(targets.BOARDS)}")
    given = _read(model, shapes)
    packed = _packed(given, Options(sign_zero=sign_zero), False, progress)
    board = board_of(target)
    cut, found = board_estimate(packed.model, board, fpga or FpgaOptions())
    left = [node.name for node in packed.model.graph.node if node.name not in set(cut.nodes)]
    ends = {
        part: [] if model is None else [node.op_type for node in model.graph.node]
        for part, model in (("head", cut.head), ("tail", cut.tail))
    }
    return {
        "board": board.name, "capacity": dict(board.capacity), **found.to_dict(), "cpu": left, "reasons": cut.reasons,
        "partition": {**ends, "fpga": [layer.nodes[0].name for layer in cut.layers]},
    }  # fmt: skip


def assemble(
    given: onnx.ModelProto,
    original: bytes,
    packed: Optimized,
    target: Target,
    name: str,
    golden_inputs: Mapping[str, np.ndarray] | None,
    output: str | os.PathLike[str] | None,
    say: Progress,
    facts: Mapping[str, Any] | None = None,
    fpga: FpgaOptions | None = None,
    tuned: Choices | None = None,
) -> Package:
    """Lower a packed model and put the package together, in memory; raises as ``compile`` does.

    ``given`` is the model that ``packed`` was made of, as the passes read it, ``original`` its bytes; ``facts`` go into the
    manifest.
    """
    if target.is_fpga:
        from .runtimes.fpga.tools import require_amaranth

        require_amaranth()
        from .runtimes.fpga.board_compile import compile_for_board
        from .runtimes.fpga.boards import get as board_of

        built = compile_for_board(packed.model, board_of(target.name), name, fpga or FpgaOptions(), say)
    else:
        from .lower.build import compile_model

        built = compile_model(packed.model, target, name, say, tuned)
    say("computing golden outputs")
    kept = _golden(given, golden_inputs)
    included = len(original) <= MAX_MODEL_INCLUDED
    members = dict(built.members) if target.is_fpga else {f"lib/{file}": data for file, data in built.members.items()}
    members[PACKED] = packed.model.SerializeToString(deterministic=True)
    members[REPORT] = json.dumps(_explanation(given, packed).to_dict(), indent=1, sort_keys=True).encode()
    members[GOLDEN] = golden_bytes(*kept)
    if included:
        members[MODEL] = original
    manifest = {
        **(facts or {}),
        **built.manifest,
        "xnorc": __version__,
        "name": name,
        "target": target.name,
        "machine": {"arch": target.arch, "features": sorted(target.features)},
        "choices": packed.choices,
        "model": {"sha256": hashlib.sha256(original).hexdigest(), "bytes": len(original), "included": included},
    }
    return Package.of(f"{name}.xnorc" if output is None else output, members, manifest)


def _read(model: Model, shapes: Mapping[str, Sequence[int]] | None) -> onnx.ModelProto:
    return prepare(model, shapes) if isinstance(model, onnx.ModelProto) else read_model(model, shapes)


def _options(
    model: onnx.ModelProto, sign_zero: int | None, float_layers: str, shortcuts: str,
    calibration: Mapping[str, np.ndarray] | None, progress: Progress | None,
) -> Options:  # fmt: skip
    say = progress or (lambda stage: None)
    int8 = choose(model, float_layers, calibration, sign_zero, say)
    return Options(sign_zero, int8, shortcuts_of.choose(model, shortcuts, sign_zero, int8, say))


def _packed(model: onnx.ModelProto, options: Options, check: bool, progress: Progress | None) -> Optimized:
    return run_passes(model, options, check, progress=progress)


def _explanation(given: onnx.ModelProto, packed: Optimized) -> Explanation:
    gone = (Status.FOLDED, Status.REMOVED)
    computed = [record.node for record in packed.records if record.status not in gone]
    return Explanation(
        packed.records,
        source_names(given),
        _constant_bytes(given),
        _constant_bytes(packed.model),
        of_float_model(given, computed),
        of_packed_model(packed.model),
        packed.choices,
    )


def _constant_bytes(model: onnx.ModelProto) -> int:
    tensors = list(model.graph.initializer)
    tensors += [attr.t for node in model.graph.node if node.op_type == "Constant" for attr in node.attribute]
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in tensors
        if tensor.data_type
    )


def _golden(
    model: onnx.ModelProto, data: Mapping[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    session = golden.session(model)
    if data is None:
        samples = [golden.random_inputs(model, seed) for seed in range(GOLDEN_SAMPLES)]
        inputs = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    else:
        inputs = split(data, golden.random_inputs(model))
    counts = {len(value) for value in inputs.values()}
    if counts == {0}:
        raise InputError("golden inputs: there are no samples")
    runs = [golden.run(session, {name: value[index] for name, value in inputs.items()}) for index in range(max(counts))]
    return inputs, {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def identifier(model: Model, name: str | None) -> str:
    """Name of the C library: what the caller says, else made of the file's name."""
    if name is not None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or name.lower().startswith("xnorc"):
            raise ModelError(
                f"name '{name}' must be a C identifier of at most 64 characters that does not start with xnorc"
            )
        return name
    text = "model" if isinstance(model, onnx.ModelProto) else Path(model).stem
    text = re.sub(r"[^A-Za-z0-9_]", "_", text)[:48] or "model"
    return f"model_{text}" if not text[0].isalpha() or text.lower().startswith("xnorc") else text
