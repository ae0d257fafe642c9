"""Legalized Relax → ``Program``: walks the straight-line ``main`` and groups kernel calls into steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ..errors import UnsupportedError
from ..opset import TensorType
from .program import DTYPES, STORED, Argument, Call, Program, Step, Tensor
from .relax import Importer, Item, symbol


class Walker:
    """Turns bindings into calls, calls into steps."""

    def __init__(self, importer: Importer, mod: tvm.IRModule) -> None:
        self.importer, self.mod = importer, mod
        self.tensors: list[Tensor] = []
        self.constants: list[np.ndarray] = []
        self.steps: list[Step] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._values: dict[Any, Any] = {}
        self._named: set[int] = set()
        self._pending: list[Call] = []
        self._symbols: dict[str, str] = {}

    def program(self, name: str) -> Program:
        """The whole program, without places."""
        main, graph = self.mod["main"], self.importer.model.graph
        inputs = []
        names = [value.name for value in graph.input if value.name not in self.importer.constants]
        for number, (parameter, tensor) in enumerate(zip(main.params, names, strict=True)):
            index = self._tensor(parameter.ty, tensor, "input", number)
            inputs.append(index)
            self._values[parameter] = Argument("tensor", index)
        body = main.body
        for block in body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        results = self._value(body.body)
        outputs = self._outputs(results, [value.name for value in graph.output])
        for step in self.steps:
            self._reads_and_writes(step)
        kernels = tvm.IRModule({self._symbols[gv.name_hint]: f for gv, f in self._used_kernels().items()})
        templates = {self._symbols[own]: t for own, t in self.importer.templates.items() if own in self._symbols}
        return Program(name, self.tensors, inputs, outputs, self.steps, self.constants, kernels, templates=templates)

    def _used_kernels(self) -> Mapping[Any, Any]:
        return {gv: f for gv, f in self.mod.functions.items() if gv.name_hint in self._symbols}

    def _tensor(self, kind: Any, name: str, space: Any = "arena", place: int = 0) -> int:
        shape = tuple(int(size) for size in kind.shape)
        if str(kind.dtype) not in (*DTYPES, STORED):
            item = self._current()
            raise UnsupportedError(
                item.name, item.op, f"inside it is a tensor of {kind.dtype}; devices hold {', '.join(DTYPES)}"
            )
        self.tensors.append(Tensor(name, TensorType(shape, np.dtype(str(kind.dtype))), space, place))
        return len(self.tensors) - 1

    def _current(self) -> Item:
        """The node (or group) whose calls are being walked, for messages."""
        return self.importer.items[min(len(self.importer.items) - 1, len(self.steps))]

    def _constant(self, value: np.ndarray) -> Argument:
        value = np.ascontiguousarray(value)
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = len(self.constants)
            self.constants.append(value)
        return Argument("constant", self._known[key])

    def _value(self, expr: Any) -> Any:
        if expr in self._values:
            return self._values[expr]
        if isinstance(expr, relax.Tuple):
            return [self._value(field) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value)[expr.index]
        if hasattr(expr, "value") and hasattr(expr.value, "numpy"):
            return self._constant(expr.value.numpy())
        raise UnsupportedError(
            "?", type(expr).__name__, "this Relax expression has no place in a straight-line program"
        )

    def _bind(self, variable: Any, value: Any) -> None:
        if isinstance(value, relax.Call):
            self._values[variable] = self._call(value)
        else:
            self._values[variable] = self._value(value)
        hint = variable.name
        if hint in self.importer.hints:
            self._name(self._values[variable], self.importer.hints[hint])
            self._close(int(hint[1:].split("_")[0]))

    def _name(self, value: Any, name: str) -> None:
        """Give a tensor the model's name for it, unless it has one (then the name is a view of it)."""
        if isinstance(value, Argument) and value.kind == "tensor":
            tensor = self.tensors[value.index]
            if tensor.space == "arena" and value.index not in self._named:
                self._named.add(value.index)
                tensor.name = name
                tensor.type = TensorType(self.importer.types[name].shape, tensor.type.dtype)
                tensor.channels_last = name in self.importer.layout.last

    def _call(self, call: Any) -> Any:
        if call.op == tvm.ir.Op.get("relax.reshape"):
            return self._value(call.args[0])
        if call.op != tvm.ir.Op.get("relax.call_tir"):
            item = self._current()
            raise UnsupportedError(
                item.name, item.op, f"TVM does not lower {getattr(call.op, 'name', call.op)} to a kernel"
            )
        kernel, arguments = call.args[0], call.args[1]
        given = [self._value(a) for a in (arguments.fields if isinstance(arguments, relax.Tuple) else [arguments])]
        kinds = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
        made = [Argument("tensor", self._tensor(kind, f"t{len(self.tensors)}")) for kind in kinds]
        name = self._symbols.setdefault(
            kernel.name_hint,
            kernel.name_hint
            if kernel.name_hint.startswith(self.importer.prefix + "_k")
            else f"{self.importer.prefix}_f{len(self._symbols)}_{symbol(kernel.name_hint)}",
        )
        attrs = self.mod[kernel.name_hint].attrs
        in_place = tuple(int(i) for i in attrs["xnorc.in_place"]) if attrs and "xnorc.in_place" in attrs else ()
        self._pending.append(Call(name, given, [a.index for a in made], in_place))
        return made if isinstance(call.ty, relax.TupleType) else made[0]

    def _close(self, item: int) -> None:
        """The calls since the last step are the step of ``item``."""
        if self._pending:
            node = self.importer.items[item]
            self.steps.append(Step(node.name, node.op, list(node.nodes), self._pending, macs=node.macs))
            self._pending = []

    def _outputs(self, results: Sequence[Argument], names: Sequence[str]) -> list[int]:
        """Let each model output be written straight into the caller's buffer, or copied there where that cannot be."""
        outputs = []
        for number, (value, name) in enumerate(zip(results, names, strict=True)):
            kind = self.importer.types[name]
            if value.kind == "tensor" and self.tensors[value.index].space == "arena":
                tensor = self.tensors[value.index]
                tensor.space, tensor.place, tensor.name, tensor.type = "output", number, name, kind
                outputs.append(value.index)
                continue
            self.tensors.append(Tensor(name, kind, "output", number))
            outputs.append(len(self.tensors) - 1)
            self.steps.append(Step(f"copy {name}", "Copy", [], [Call(None, [value], [outputs[-1]])]))
        return outputs

    def _reads_and_writes(self, step: Step) -> None:
        """What a step takes from outside and gives to others; tensors between its own calls are neither."""
        for call in step.calls:
            for argument in call.inputs:
                inside = argument.kind == "constant" or any(argument.index in c.outputs for c in step.calls)
                if not inside and argument.index not in step.reads:
                    step.reads.append(argument.index)
            step.writes += [i for i in call.outputs if i in self._named or self.tensors[i].space == "output"]
