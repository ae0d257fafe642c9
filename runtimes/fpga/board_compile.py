"""A packed model and a board → the members and the manifest of a package: Verilog, and the CPU's share beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from ...errors import TargetError
from ...lower.build import Built, compile_model
from ...operations import count_macs, tensor_types
from ...package import RTL
from ...targets import NAMES, FpgaOptions, get
from . import boards
from .accelerator import Accelerator
from .emit import Design, emit
from .folding import Plan, TooLarge, compress, plan
from .partition import Partition, partition
from .units.technology import Technology

PARTS = ("head", "tail")
VIVADO = "vivado"
"""Folder of the members that Vivado reads."""


def estimate(packed: onnx.ModelProto, board: boards.Board, options: FpgaOptions) -> tuple[Partition, Plan]:
    """What would run where, and how fast. Raises ``UnsupportedError``, ``TargetError``."""
    cut = partition(packed)
    clock = options.clock_hz or board.clock_hz
    try:
        found = _planned(cut, board, clock, options.fps, options.share)
    except TooLarge as error:
        raise TargetError(f"{error}; {_way_out(cut, board, clock, options.share, error.least)}") from None
    return cut, compress(found, board.family) if options.mst else found


def _planned(cut: Partition, board: boards.Board, clock: float, fps: float | None, share: float) -> Plan:
    capacity = dict(board.capacity)
    return plan(cut.stages, clock, capacity, fps=fps, share=share, board=board.name, family=board.family)


def _way_out(cut: Partition, board: boards.Board, clock: float, share: float, least: Plan) -> str:
    """The option that would make a model fit, or the board."""
    wanted = -(-100 * least.luts // board.capacity["LUT4"])
    if 100 * share < wanted <= 100:
        try:
            _planned(cut, board, clock, None, wanted / 100)
            return f"--max-luts {wanted}% would make it fit"
        except TooLarge:
            pass
    for name in boards.NAMES:
        other = boards.get(name)
        if other.capacity["LUT4"] > board.capacity["LUT4"]:
            try:
                _planned(cut, other, other.clock_hz, None, share)
                return f"--target {name} has room for it"
            except TooLarge:
                pass
    return "no board here has room for it: fewer or narrower layers would need less"


def technology(board: boards.Board) -> Technology:
    """How sums are built on a board's chip."""
    return Technology("ecp5" if board.family == "ecp5" else "generic", share=True)


def compile_for_board(
    packed: onnx.ModelProto,
    board: boards.Board,
    name: str,
    options: FpgaOptions,
    progress: Callable[[str], None],
) -> Built:
    """Partition, fold, emit, and lower what stays on the CPU. Members: ``rtl/`` and ``<part>/lib/``.

    Raises ``UnsupportedError`` when no layer can run there, ``TargetError`` when the model does not fit.
    """
    cpu = get(options.cpu)
    if cpu.is_fpga:
        raise TargetError(f"'{cpu.name}' is no CPU: head and tail need one of {', '.join(NAMES)}")
    progress("folding")
    cut, found = estimate(packed, board, options)
    progress("writing Verilog")
    accelerator = Accelerator(cut.stages, found.folds, technology(board))
    design = emit(accelerator)
    members = {RTL: design.verilog.encode()}
    parts: dict[str, Any] = {}
    for part, model in zip(PARTS, (cut.head, cut.tail), strict=True):
        if model is None:
            parts[part] = None
            continue
        built = compile_model(model, cpu, f"{name}_{part}", lambda stage, part=part: progress(f"{part}: {stage}"))  # type: ignore[misc]
        members |= {f"{part}/lib/{file}": data for file, data in built.members.items()}
        parts[part] = {
            **built.manifest, "name": f"{name}_{part}", "target": cpu.name,
            "machine": {"arch": cpu.arch, "features": sorted(cpu.features)},
        }  # fmt: skip
    manifest = _manifest(packed, cut, found, design, board, parts)
    if board.family == "xc7":
        members |= _vivado(design, manifest["fpga"])
    return Built(members, manifest)


def _vivado(design: Design, facts: dict[str, Any]) -> dict[str, bytes]:
    """The project for Vivado: the AXI core, its script, the driver."""
    from .boards import pynq
    from .emit import TOP
    from .link.emitted import EmittedAccelerator

    sizes = (design.input_width, design.output_width, design.frame_in_bits, design.frame_out_bits)
    core = EmittedAccelerator(design.verilog, TOP, *sizes)
    files = pynq.project(core, bytes.fromhex(facts["design"]), facts["estimate"]["clock_hz"] / 1e6)
    return {f"{VIVADO}/{file}": text.encode() for file, text in files.items()}


def _manifest(
    packed: onnx.ModelProto, cut: Partition, found: Plan, design: Design, board: boards.Board, parts: dict[str, Any]
) -> dict[str, Any]:
    """Tensors and steps of head, accelerator and tail as one program; the accelerator is one step."""
    types = tensor_types(packed)
    tensors: list[dict[str, Any]] = []
    places: dict[str, int] = {}

    def place(tensor: Mapping[str, Any]) -> int:
        if tensor["name"] not in places:
            places[tensor["name"]] = len(tensors)
            tensors.append(dict(tensor))
        return places[tensor["name"]]

    def described(name: str) -> dict[str, Any]:
        return {"name": name, "dtype": str(types[name].dtype), "shape": list(types[name].shape)}

    constants = {tensor.name for tensor in packed.graph.initializer}
    inputs = [place(described(value.name)) for value in packed.graph.input if value.name not in constants]
    steps: list[dict[str, Any]] = []
    used: set[str] = set()

    def add(step: dict[str, Any]) -> None:
        label, number = step["name"], 2
        while label in used:
            label, number = f"{step['name']}.{number}", number + 1
        used.add(label)
        steps.append({**step, "name": label})

    for part in PARTS:
        if part == "tail":
            layers = [node for node in packed.graph.node if node.name in set(cut.nodes)]
            add(
                {
                    "name": "fpga", "op": "+".join(dict.fromkeys(node.op_type for node in layers)), "kind": "integer",
                    "reads": [place(described(cut.source))], "writes": [place(described(cut.result))],
                    "nodes": cut.nodes, "macs": sum(count_macs(node, types) for node in layers),
                }
            )  # fmt: skip
        if parts[part] is not None:
            own = parts[part]
            index = [place(tensor) for tensor in own["tensors"]]
            for step in own["steps"]:
                add({**step, "reads": [index[i] for i in step["reads"]], "writes": [index[i] for i in step["writes"]]})
    outputs = [place(described(value.name)) for value in packed.graph.output]
    last, first = cut.stages[-1].result, cut.stages[0].source
    text = f"{board.name}\n{design.verilog}"
    return {
        "tensors": tensors,
        "inputs": inputs,
        "outputs": outputs,
        "steps": steps,
        "memory": {"arena_bytes": 0, "workspace_bytes": 0, "max_threads": 1},
        "fpga": {
            "board": board.name,
            "design": hashlib.sha256(text.encode()).hexdigest()[:32],
            "baud": board.baud,
            "input_width": design.input_width,
            "output_width": design.output_width,
            "frame_in_bits": design.frame_in_bits,
            "frame_out_bits": design.frame_out_bits,
            "source": {
                "tensor": cut.source, "pixels": first.pixels, "channels": first.channels, "bits": first.bits,
                "kind": "bits" if _is_packed(packed, cut.source) else "integers",
            },
            "result": {
                "tensor": cut.result, "pixels": last.pixels, "channels": last.channels, "bits": last.bits,
                "dtype": str(types[cut.result].dtype), **cut.layers[-1].meaning,
            },
            "estimate": found.to_dict(),
            "reasons": cut.reasons,
            **parts,
        },
    }  # fmt: skip


def _is_packed(packed: onnx.ModelProto, tensor: str) -> bool:
    """Whether bits lie side by side in a tensor, in planes; else its elements are integers of a byte."""
    anchors = {"BinaryConv", "BinaryGemm", "BitSerialConv", "BitSerialGemm"}
    return any(tensor in node.input[:1] and node.op_type in anchors for node in packed.graph.node)
