"""What of a packed model runs on the FPGA: its Relax module matched by patterns, one composite function a stage.

Every node of the packed model becomes one call of Relax, by the name of its operator; ``FuseOpsByPattern`` puts each match
of a pattern into a function of its own. The longest run of such functions that read one another (by multiplications) goes
to the FPGA, what comes before (the head) and after it (the tail) stays on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax
from tvm.relax.dpl import DFPattern, is_call_dps_packed, wildcard

from ...errors import UnsupportedError
from ...operations import count_macs, tensor_types
from ...opset import DOMAIN, TensorType
from .layers import READERS, Layer, NotOnFpga, read_layer
from .stages import INPUT, Flow, Stage


@dataclass
class Partition:
    """``head`` and ``tail``: models for the CPU, or None. Between them ``stages``, from tensor ``source`` to ``result``.

    ``nodes``: those that the FPGA computes. ``reasons``: anchor node → why it is not among them.
    """

    stages: list[Stage]
    layers: list[Layer]
    source: str
    result: str
    nodes: list[str]
    head: onnx.ModelProto | None
    tail: onnx.ModelProto | None
    reasons: dict[str, str] = field(default_factory=dict)


def partition(packed: onnx.ModelProto) -> Partition:
    """Cut a packed model. Raises ``UnsupportedError`` when no part of it can run on an FPGA, naming the first layer."""
    graph = _Graph(packed)
    composites, reasons = graph.composites()
    run = _best_run(composites, graph)
    if run is None:
        name, reason = next(iter(reasons.items()), ("", "it has no binary layer"))
        op = next((node.op_type for node in packed.graph.node if node.name == name), "model")
        raise UnsupportedError(name or packed.graph.name, op, f"no part of this model can run on an FPGA: {reason}")
    for layer in composites:
        if layer not in run.layers and layer.macs:
            reasons[layer.nodes[0].name] = _apart(layer, composites, graph)
    source, result = run.source, run.layers[-1].result
    stages = _connected(run)
    on_fpga = [node.name for layer in run.layers for node in layer.nodes]
    for node in graph.nodes:
        if node.name not in on_fpga and node.name not in reasons and count_macs(node, graph.types):
            reasons[node.name] = f"there is no unit for {node.op_type}"
    outputs = [value.name for value in packed.graph.output]
    inputs = [value.name for value in packed.graph.input if value.name not in graph.constants]
    behind = _needed(packed, outputs, {result})
    tail = _cut(packed, graph.types, behind, [*inputs, result], outputs)
    before = _needed(
        packed, [source, *(tail_input for tail_input in _outside(behind, tail) if tail_input != result)], set()
    )
    wanted = [name for name in _outside(behind, tail) if name not in (*inputs, result)]
    head = (
        None
        if source in inputs and not wanted
        else _cut(packed, graph.types, before, inputs, _unique([source, *wanted]))
    )
    return Partition(stages, run.layers, source, result, on_fpga, head, None if not behind else tail, reasons)


class _Graph:
    """A packed model as a Relax module whose calls carry the number of their node."""

    def __init__(self, packed: onnx.ModelProto) -> None:
        self.packed, self.types = packed, tensor_types(packed)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
        self.nodes = list(packed.graph.node)
        self.readers: dict[str, int] = {}
        for name in [*(name for node in self.nodes for name in node.input), *(o.name for o in packed.graph.output)]:
            self.readers[name] = self.readers.get(name, 0) + 1

    def composites(self) -> tuple[list[Layer], dict[str, str]]:
        """The layers that an FPGA can run, and why others cannot, by node."""
        reasons: dict[str, str] = {}

        def fits(context: Any) -> bool:
            calls = [context.matched_expr, *context.matched_bindings.values()]
            found = {self._number(call) for call in calls if isinstance(call, relax.Call)}
            numbers = sorted(number for number in found if number is not None)
            nodes = [self.nodes[number] for number in numbers]
            if any(self.readers[name] > 1 for node in nodes[:-1] for name in node.output):
                return False
            try:
                self._layer(numbers)
            except NotOnFpga as error:
                if any(count_macs(node, self.types) for node in nodes):
                    reasons[nodes[0].name] = str(error)
                return False
            return True

        patterns: list[Any] = [(f"fpga.{name}", _pattern(operators), {}, fits) for name, operators in READERS]
        fused = relax.transform.FuseOpsByPattern(patterns, bind_constants=True)(self._module())
        found = []
        for binding in [b for block in fused["main"].body.blocks for b in block.bindings]:
            call = binding.value
            if isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                body = fused[call.op].body.blocks[0].bindings
                found.append(self._layer([self._number(inner.value) for inner in body]))
        names = {node.name for layer in found for node in layer.nodes}
        return found, {name: reason for name, reason in reasons.items() if name not in names}

    def _layer(self, numbers: list[Any]) -> Layer:
        return read_layer([self.nodes[number] for number in numbers], self.constants, self.types)

    @staticmethod
    def _number(call: Any) -> int | None:
        """The node that a call stands for: the last of its arguments."""
        if len(call.args) < 2 or not isinstance(call.args[1], relax.Tuple):
            return None
        last = call.args[1].fields[-1]
        return int(last.value.numpy()) if isinstance(last, tvm.ir.Constant) else None

    def _module(self) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        values: dict[str, relax.Expr] = {}
        inputs = [value.name for value in self.packed.graph.input if value.name not in self.constants]
        for index, name in enumerate(inputs):
            values[name] = relax.Var(f"in{index}", _type(self.types.get(name)))
        with builder.function("main", params=[values[name] for name in inputs]):
            with builder.dataflow():
                for number, node in enumerate(self.nodes):
                    arguments = [self._value(name, values) for name in node.input if name]
                    call = relax.call_dps_packed(
                        operator(node),
                        relax.Tuple([*arguments, relax.const(number, "int64")]),
                        [_type(self.types.get(name)) for name in node.output if name],
                    )
                    made = builder.emit(call)
                    names = [name for name in node.output if name]
                    for place, name in enumerate(names):
                        values[name] = made if len(names) == 1 else builder.emit(relax.TupleGetItem(made, place))
                outputs = [self._value(value.name, values) for value in self.packed.graph.output]
                result = builder.emit_output(relax.Tuple(outputs))
            builder.emit_func_output(result)
        return builder.get()

    def _value(self, name: str, values: dict[str, relax.Expr]) -> relax.Expr:
        if name not in values:
            values[name] = relax.const(np.zeros((), np.int8))  # constants are read from the model, by the node's number
        return values[name]


def _named(stage: Stage, taken: set[str]) -> Stage:
    """The stage with a name that no other has."""
    name, number = stage.name, 2
    while name in taken:
        name, number = f"{stage.name}_{number}", number + 1
    return replace(stage, name=name)


def operator(node: onnx.NodeProto) -> str:
    """The name of a node's operator in Relax."""
    return f"{node.domain or 'onnx'}.{node.op_type}"


def _pattern(operators: tuple[tuple[str, int], ...]) -> DFPattern:
    """A chain of operators, each with its number of inputs, that read one another as their first input."""
    found: DFPattern = wildcard()
    for name, inputs in operators:
        found = is_call_dps_packed(name, [found, *(wildcard() for _ in range(inputs))])
    return found


def _type(kind: TensorType | None) -> relax.Type:
    if kind is None:
        return relax.TensorType(dtype="float32", ndim=-1)
    return relax.TensorType(kind.shape, str(kind.dtype))


@dataclass(frozen=True)
class _Run:
    """Layers that read ``source`` and one another, in order; ``flow``: the stream of ``source``. The last gives the result."""

    layers: list[Layer]
    source: str
    flow: Flow

    @property
    def worth(self) -> tuple[int, int]:
        """Multiplications; where they are equal, fewer layers are better."""
        return sum(layer.macs for layer in self.layers), -len(self.layers)


def _best_run(layers: list[Layer], graph: _Graph) -> _Run | None:
    """The layers with the most multiplications that begin at one tensor, end at one, and whose others nobody else reads."""
    place = {node.name: number for number, node in enumerate(graph.nodes)}
    layers = sorted(layers, key=lambda layer: place[layer.nodes[-1].name])
    best: _Run | None = None
    for source in dict.fromkeys(name for layer in layers if layer.macs for name in layer.sources):
        flow = _flow_of(source, layers)
        if flow is None:
            continue
        streams, inside = {source: flow}, []
        for layer in layers:
            if layer.result != source and all(name in streams for name in layer.sources):
                try:
                    _, streams[layer.result] = layer.stages(*(streams[name] for name in layer.sources))
                except NotOnFpga:
                    continue
                inside.append(layer)
        for last in inside:
            found = _Run(_behind(last, inside), source, flow)
            if (best is None or found.worth > best.worth) and found.worth[0] and _closed(found, graph):
                best = found
    return best


def _flow_of(source: str, layers: list[Layer]) -> Flow | None:
    """The stream of a tensor, as a layer with products takes it."""
    for layer in layers:
        if layer.macs and layer.sources == (source,):
            try:
                made, _ = layer.stages(None)
            except NotOnFpga:
                continue
            return made[0].source
    return None


def _behind(last: Layer, layers: list[Layer]) -> list[Layer]:
    """Those of ``layers`` that ``last`` needs, and itself."""
    wanted, found = {last.result}, []
    for layer in reversed(layers):
        if layer.result in wanted:
            found.append(layer)
            wanted |= set(layer.sources)
    return found[::-1]


def _closed(run: _Run, graph: _Graph) -> bool:
    """Whether nobody outside reads what is made inside, but for the result."""
    read = [name for layer in run.layers for name in layer.sources]
    return all(graph.readers.get(layer.result) == read.count(layer.result) for layer in run.layers[:-1])


def _apart(layer: Layer, layers: list[Layer], graph: _Graph) -> str:
    """Why a layer that there are units for is not in the run that was chosen."""
    known = {node.name for other in layers for node in other.nodes}
    for name in layer.sources:
        for node in graph.nodes:
            if node.name not in known and name in node.output:
                return f"before it '{node.name}' ({node.op_type}) runs on the CPU, and the FPGA takes one run of layers"
        for node in graph.nodes:
            if node.name not in known and name in node.input:
                return f"what it reads is read by '{node.name}' ({node.op_type}) on the CPU as well"
    return "it does not adjoin the layers that run on the FPGA"


def _connected(run: _Run) -> list[Stage]:
    """The stages of a run, named, each with what it reads."""
    streams, makers = {run.source: run.flow}, {run.source: INPUT}
    stages: list[Stage] = []
    for layer in run.layers:
        made, streams[layer.result] = layer.stages(*(streams[name] for name in layer.sources))
        inputs = tuple(makers[name] for name in layer.sources)
        for stage in made:
            stages.append(replace(_named(stage, {other.name for other in stages}), inputs=inputs))
            inputs = (stages[-1].name,)
        makers[layer.result] = inputs[0]
    return stages


def _needed(model: onnx.ModelProto, outputs: list[str], given: set[str]) -> list[onnx.NodeProto]:
    """The nodes that ``outputs`` need, in order, where ``given`` is there already."""
    wanted, found = set(outputs) - given, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            found.append(node)
            wanted = (wanted - set(node.output)) | (set(node.input) - given)
    return found[::-1]


def _outside(nodes: list[onnx.NodeProto], model: onnx.ModelProto) -> list[str]:
    """Inputs of ``model`` that one of ``nodes`` reads, or that are outputs themselves."""
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    return [value.name for value in model.graph.input if value.name in read]


def _cut(
    model: onnx.ModelProto, types: Mapping[str, TensorType], nodes: list[onnx.NodeProto], inputs: list[str],
    outputs: list[str],
) -> onnx.ModelProto:  # fmt: skip
    """A model of ``nodes`` alone. Whatever they read and do not make are its inputs, those of ``inputs`` first."""
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name}
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in read]
    constant = {tensor.name for tensor in initializers}
    free = sorted((read | (set(outputs) - made)) - made - constant - {t.name for t in model.graph.initializer})
    given = [name for name in inputs if name in free] + [name for name in free if name not in inputs]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    for repeated in (graph.node, graph.input, graph.output, graph.initializer):
        del repeated[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    graph.input.extend(_info(name, types[name]) for name in given)
    graph.output.extend(_info(name, types[name]) for name in outputs)
    kept = [value for value in graph.value_info if value.name in made and value.name not in outputs]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return part


def _info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind.dtype), kind.shape)


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


assert DOMAIN == "ai.xnorc"
