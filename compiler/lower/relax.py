"""Packed ONNX → Relax → a list of kernel calls.

Standard operators go through the converters of TVM's ONNX front end, one node at a time; ``ai.xnorc`` operators, with
the nodes of their group, go to our own kernels. Every tensor of the model keeps its name, so that a step of the
program can be compared with the same tensor in ONNX Runtime.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax, te, tirx
from tvm.relax.frontend.onnx import onnx_frontend

from ..errors import ModelError, UnsupportedError
from ..operations import count_macs, tensor_types
from ..opset import DOMAIN, REGISTRY, TensorType
from ..targets import Target
from . import functions, pooling, sorting, transposing  # noqa: F401  they register their converters
from .converters import CHECKS, CONVERTERS
from .epilogue import Fused, float_chain, packed_copy, read_epilogue
from .kernel import Epilogue, EpilogueStep, KernelCall
from .layout import ELEMENTWISE, FIRST, LAST, PACKERS, POOLS, Layout, constant_last, convert, physical, turned
from .program import DTYPES, STORED
from .templates import Choices, Template

MAX_RANK = 8
"""Most axes of a tensor: ``XNORC_MAX_RANK`` of the C runtime."""


def metadata(proto: Any, key: str) -> str | None:
    """Value of one entry of ``metadata_props``."""
    return next((entry.value for entry in proto.metadata_props if entry.key == key), None)


def attribute_ints(node: onnx.NodeProto, name: str) -> list[int]:
    """An attribute of integers, or [0] where there is none."""
    return next((list(a.ints) for a in node.attribute if a.name == name), [0])


def symbol(text: str) -> str:
    """``text`` as a C identifier."""
    return re.sub(r"\W+", "_", text).strip("_") or "x"


@dataclass(frozen=True)
class Item:
    """One node or fused group of the model, with the names of the tensors that it gives."""

    name: str
    op: str
    nodes: list[str]
    outputs: list[str]
    macs: int


class Importer:
    """Builds the Relax function of one packed model."""

    def __init__(self, model: onnx.ModelProto, target: Target, prefix: str, tuned: Choices | None = None) -> None:
        self.model, self.target, self.prefix, self.tuned = model, target, prefix, tuned or {}
        self.templates: dict[str, Template] = {}
        """Name of a kernel of our own → what it was made by."""
        self.types = tensor_types(model)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.items: list[Item] = []
        self._labels: Counter[str] = Counter()
        self._bare: dict[str, onnx.NodeProto] = {}
        """Accumulators stored as float32 and nothing else done to them → their layer."""
        self.hints: dict[str, str] = {}
        """Relax variable name → tensor name."""
        self._front = onnx_frontend.ONNXGraphImporter({}, "float32", sanitize=False)
        self._front.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._nodes: dict[str, relax.Expr] = self._front._nodes
        self._bb = self._front.bb

    def build(self) -> tvm.IRModule:
        """The module: ``main`` in Relax, our kernels in TIR."""
        graph = self.model.graph
        for name, value in self.constants.items():
            if value.dtype.kind not in "fiub" or value.dtype.isbuiltin != 1:
                raise ModelError(f"initializer '{name}' is {value.dtype}: devices hold {', '.join(DTYPES)}")
            self._nodes[name] = relax.const(np.asarray(value, order="C"), str(value.dtype))
        parameters: list[relax.Var] = []
        for value in graph.input:
            if value.name not in self.constants:
                kind = self.types[value.name]
                if str(kind.dtype) not in DTYPES:
                    raise ModelError(
                        f"input '{value.name}' is {kind.dtype}: devices hold {', '.join(DTYPES)}; export the model in float32"
                    )
                parameters.append(relax.Var(f"in{len(parameters)}", relax.TensorType(kind.shape, str(kind.dtype))))
                self._nodes[value.name] = parameters[-1]
        groups = self._groups()
        self._bare = {f.output: f.nodes[0] for f in groups if f.epilogue.kind == "float" and not f.epilogue.steps}
        self.layout = Layout(groups, self.types, self.constants, [out.name for out in graph.output])
        groups = self._with_copies(groups)
        with self._bb.function("main", params=parameters):
            with self._bb.dataflow():
                for fused in groups:
                    self._emit(fused)
                result = self._bb.emit_output(relax.Tuple([self._nodes[out.name] for out in graph.output]))
            self._bb.emit_func_output(result)
        return self._bb.get()

    def _groups(self) -> list[Fused]:
        """Nodes in an order in which they can run, with every anchor's group as one at the place of its last node."""
        nodes = list(self.model.graph.node)
        members: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            if anchor := metadata(node, "xnorc.group"):
                members.setdefault(anchor, []).append(node)
        shapes = {name: kind.shape for name, kind in self.types.items()}
        fused_at: dict[int, Fused] = {}
        covered: set[int] = set()
        for node in nodes:
            if node.domain == DOMAIN and REGISTRY[node.op_type].anchor:
                group = [n for n in members.get(node.name, []) if n is not node]
                fused = read_epilogue(node, group, self.constants, shapes)
                covered |= {id(n) for n in fused.nodes}
                fused_at[id(fused.nodes[-1])] = fused
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for out in self.model.graph.output:
            readers.setdefault(out.name, []).append(onnx.NodeProto(domain="output"))
        for node in nodes:
            if id(node) not in covered and self._is_float_layer(node):
                fused = float_chain(node, readers, self.constants, shapes)
                if len(fused.nodes) > 1 and not any(id(n) in covered for n in fused.nodes):
                    covered |= {id(n) for n in fused.nodes}
                    fused_at[id(fused.nodes[-1])] = fused
        order = []
        for node in nodes:
            if id(node) in fused_at:
                order.append(fused_at[id(node)])
            elif id(node) not in covered:
                order.append(Fused(Epilogue(), node.output[0], [node]))
        return order

    def _with_copies(self, groups: list[Fused]) -> list[Fused]:
        """The groups, where those that store numbers channels last have taken in the nodes that pack these numbers."""
        taken: set[int] = set()
        for fused in groups:
            anchor, epilogue = fused.nodes[0], fused.epilogue
            last = self.layout.works_last(fused)
            is_anchor = anchor.domain == DOMAIN and REGISTRY[anchor.op_type].anchor
            if not is_anchor or epilogue.kind == "bits" or (epilogue.channels_first and not last):
                continue
            perm = LAST if last else range(len(self.types[fused.output].shape))
            readers, copies = self.layout.readers.get(fused.output, []), []
            for reader in readers:
                node = reader.nodes[0]
                copy = packed_copy(node, perm, self.constants) if len(reader.nodes) == 1 else None
                if copy is not None and node.input[0] == fused.output:
                    copies.append(copy)
                    fused.copies.append(node)
                    taken.add(id(reader))
            # A packed model names its outputs: what nobody else reads is not stored.
            kept = len(copies) < len(readers) or fused.output not in self.layout.free
            rest = [reader for reader in readers if id(reader) not in taken]
            half = kept and len(rest) == 1 and fused.output in self.layout.free and self._casts(rest[0], np.float16)
            if half:
                fused.nodes.append(rest[0].nodes[0])
                fused.output = rest[0].output
                taken.add(id(rest[0]))
            fused.epilogue = replace(epilogue, copies=tuple(copies), kept=kept or not copies, half=half)
        return self._with_halves([fused for fused in groups if id(fused) not in taken])

    def _with_halves(self, groups: list[Fused]) -> list[Fused]:
        """The groups, where epilogues read residuals as they are stored, in float16."""
        widened = {fused.output: fused for fused in groups if self._casts(fused, np.float32)}
        needed = {name for fused in groups if fused.nodes[0].domain != DOMAIN for name in fused.nodes[0].input}
        needed |= {out.name for out in self.model.graph.output}
        for fused in groups:
            whole = {step.p for step in fused.epilogue.steps if isinstance(step.p, int) and step.lies is None}
            for i, name in enumerate(fused.extra):
                if name in widened and i in whole:
                    fused.extra[i] = widened[name].nodes[0].input[0]
            needed |= {*fused.extra, *fused.nodes[0].input}
        return [fused for fused in groups if fused.output not in widened or fused.output in needed]

    def _casts(self, fused: Fused, to: type[np.floating]) -> bool:
        """Whether a group is the cast of a float tensor to ``to`` alone, which lies as what it casts does."""
        node = fused.nodes[0]
        if node.op_type != "Cast" or node.domain or len(fused.nodes) > 1:
            return False
        kinds = [self.types.get(name) for name in (node.input[0], fused.output)]
        floats = {np.float16: np.float32, np.float32: np.float16}
        if any(kind is None for kind in kinds) or [kind.dtype for kind in kinds if kind] != [floats[to], to]:
            return False
        return (node.input[0] in self.layout.last) == (fused.output in self.layout.last)

    def _is_float_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a float32 convolution over one or two axes, of a computed tensor with constant weights."""
        if node.domain or node.op_type != "Conv" or node.input[0] in self.constants:
            return False
        kind, out = self.types.get(node.input[0]), self.types.get(node.output[0])
        known = all(name in self.constants for name in node.input[1:] if name)
        plain = kind is not None and out is not None and kind.dtype == np.float32 and len(kind.shape) in (3, 4)
        return known and plain and min(*attribute_ints(node, "pads"), 0) >= 0

    def _emit(self, fused: Fused) -> None:
        anchor = fused.nodes[0]
        as_last = self.layout.works_last(fused)
        if anchor.domain == DOMAIN:
            results = self._kernel(anchor, fused, as_last)
            outputs = [fused.output] if fused.epilogue.kept else []
            outputs += [node.output[0] for node in fused.copies]
        else:
            steps = fused.epilogue.steps
            if as_last:
                results = self._convert_last(anchor, steps)
            else:
                results = self._convert(anchor, self._inputs(anchor, False), steps=steps)
            written = [fused.output] if len(fused.nodes) > 1 else anchor.output
            pairs = list(zip(written, results, strict=False))
            if lost := [name for name in anchor.output[len(results) :] if name]:
                raise UnsupportedError(anchor.name, anchor.op_type, f"its output '{lost[0]}' is not computed")
            outputs, results = [name for name, _ in pairs if name], [expr for name, expr in pairs if name]
        if not as_last and fused.output in self.layout.last and not fused.copies:
            results[0] = transposing.permuted(self._bb, self._bb.emit(results[0]), LAST)
        elif as_last and anchor.op_type in POOLS and fused.output not in self.layout.last:
            results[0] = transposing.permuted(self._bb, self._bb.emit(results[0]), FIRST)
        item = len(self.items)
        for number, (name, expr) in enumerate(zip(outputs, results, strict=True)):
            hint = f"n{item}_{number}"
            self.hints[hint] = name
            self._nodes[name] = self._bb.emit(expr, name_hint=hint)
            half = anchor.op_type == "Cast" or fused.epilogue.half
            self._check_type(anchor, name, (*DTYPES, STORED) if half else DTYPES)
        nodes = [*fused.nodes, *fused.copies]
        op = "+".join([anchor.op_type, *(n.op_type for n in nodes[1:] if n.op_type not in ("Cast", "Transpose"))])
        # A twin's products are those of the layer before: they are the model's work once.
        macs = 0 if self._twin(anchor, fused) else count_macs(anchor, self.types)
        self.items.append(Item(self._label(anchor), op, [n.name for n in nodes], list(outputs), macs))

    def _label(self, node: onnx.NodeProto) -> str:
        """A short unique name for people: the torch module that a node came from, else the original node."""
        base = metadata(node, "xnorc.source") or metadata(node, "xnorc.for") or node.name
        self._labels[base] += 1
        label = base if self._labels[base] == 1 else f"{base}.{self._labels[base]}"
        return label if label == base or label not in self._labels else f"{label}.{len(self.items)}"

    def _check_type(self, node: onnx.NodeProto, name: str, known: Sequence[str]) -> None:
        expected, got = self.types.get(name), self._nodes[name].ty
        if not isinstance(got, relax.TensorType):
            raise UnsupportedError(node.name, node.op_type, f"'{name}' is no tensor at run time")
        if str(got.dtype) not in known:
            raise UnsupportedError(
                node.name, node.op_type, f"'{name}' is {got.dtype}; devices hold {', '.join(DTYPES)}"
            )
        shape = None
        if isinstance(got.shape, relax.ShapeExpr):
            if not all(isinstance(size, tirx.IntImm) for size in got.shape):
                raise UnsupportedError(node.name, node.op_type, f"the shape of '{name}' depends on data")
            shape = tuple(int(size) for size in got.shape)
            if 0 in shape:
                raise UnsupportedError(node.name, node.op_type, f"'{name}' is empty")
            if len(shape) > MAX_RANK:
                raise UnsupportedError(node.name, node.op_type, f"'{name}' has more than {MAX_RANK} axes")
        if expected is None and shape is not None:
            self.types[name] = TensorType(shape, np.dtype(str(got.dtype)))
            return
        if expected is not None and name in self.layout.last:
            expected = physical(expected)
        if expected is None or shape is None or shape != expected.shape or str(got.dtype) != str(expected.dtype):
            raise UnsupportedError(
                node.name, node.op_type, f"TVM gives '{name}' the type {got.dtype} {shape}, the model says {expected}"
            )

    def _read(self, name: str, last: bool) -> relax.Expr:
        """A tensor with its channels where the reader wants them: transposed as part of the reader's step if need be."""
        value = self._nodes[name]
        if name in self.constants:
            if not last:
                return value
            moved = constant_last(self.constants[name])
            return relax.const(moved, str(moved.dtype))
        if last == (name in self.layout.last):
            return value
        return self._bb.emit(transposing.permuted(self._bb, value, LAST if last else FIRST))

    def _inputs(self, node: onnx.NodeProto, last: bool) -> list[relax.Expr | None]:
        return [self._read(name, last) if name else None for name in node.input]

    def _convert_last(self, node: onnx.NodeProto, steps: Sequence[EpilogueStep] = ()) -> list[relax.Expr]:
        """A standard operator on tensors that lie channels last."""
        if node.op_type in (*ELEMENTWISE, "Cast", "Concat"):
            return self._convert(turned(node), self._inputs(node, True), constant_last)
        data, last = self._read(node.input[0], True), node.output[0] in self.layout.last
        return [convert(self._bb, node, data, self.constants, self.types[node.output[0]].shape, steps, last)]

    def _convert(
        self, node: onnx.NodeProto, given: Sequence[relax.Expr | None],
        lay: Callable[[np.ndarray], np.ndarray] = lambda value: value, steps: Sequence[EpilogueStep] = (),
    ) -> list[relax.Expr]:  # fmt: skip
        """A standard operator, by TVM's converter or one of our own. ``lay``: how constants lie in ``given``."""
        inputs = onnx_frontend.onnx_input()
        for value in given:
            inputs.append(value)
        table = onnx_frontend._get_convert_map()
        if node.domain not in ("", "ai.onnx") or (node.op_type not in table and node.op_type not in CONVERTERS):
            raise UnsupportedError(node.name, node.op_type, "xnorc has no lowering for this operator")
        try:
            attrs = self._front._parse_attr(node.attribute)
            if steps:
                attrs["epilogue"] = steps
            attrs["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = [lay(self.constants[name]) if name in self.constants else None for name in node.input]
                if node.op_type in CHECKS:
                    CHECKS[node.op_type](list(inputs), values, attrs)
                if node.op_type in CONVERTERS:
                    made = CONVERTERS[node.op_type](self._bb, list(inputs), values, attrs)
                else:
                    made = table[node.op_type].get_converter(self._front.opset)(
                        self._bb, inputs, attrs, [self._nodes, {}]
                    )
            made = self._bb.normalize(made)
        except UnsupportedError as error:
            raise UnsupportedError(node.name, node.op_type, error.reason) from error
        except Exception as error:
            raise UnsupportedError(node.name, node.op_type, _reason(error)) from error
        if isinstance(made, relax.Tuple):
            return list(made.fields)
        if isinstance(made.ty, relax.TupleType):
            made = self._bb.emit(made)
            return [self._bb.emit(relax.TupleGetItem(made, i)) for i in range(len(made.ty.fields))]
        return [made]

    def _twin(self, node: onnx.NodeProto, fused: Fused) -> str | None:
        """The operand of the twin of a layer (see ``KernelCall.twin``): the other plane of signs that can be zero."""
        steps = fused.epilogue.steps
        if node.op_type not in ("BinaryConv", "BinaryGemm") or not steps or steps[0].op != "add":
            return None
        if not isinstance(steps[0].p, int) or steps[0].lies is not None:
            return None
        other = self._bare.get(fused.extra[steps[0].p])
        if other is None or other.op_type != node.op_type or other.input[1] != node.input[1]:
            return None
        return other.input[0] if list(other.attribute) == list(node.attribute) else None

    def _kernel(self, node: onnx.NodeProto, fused: Fused, last: bool) -> list[relax.Expr]:
        """An ``ai.xnorc`` operator with its epilogue, by our own kernel: all that it stores.

        ``last``: its feature maps lie channels last.
        """
        op = REGISTRY[node.op_type]
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if last and node.op_type in PACKERS:
            attrs["perm"] = [0, 1, 2, 3]
        maps = set(fused.extra) | ({fused.output} if fused.output in self.layout.last else set())
        maps |= {node.input[0]} if self.layout.native(node) else set()

        def kind(name: str) -> TensorType:
            return physical(self.types[name]) if last and name in maps else self.types[name]

        epilogue = replace(fused.epilogue, channels_first=False) if last else fused.epilogue
        twin = self._twin(node, fused)
        extra = [*fused.extra, *([] if twin is None else [twin])]
        module, function = op.kernel.split(":")
        call = KernelCall(
            name=f"{self.prefix}_k{len(self.items)}_{symbol(node.op_type)}",
            op=node.op_type,
            attrs={k: list(v) if not isinstance(v, int) else v for k, v in attrs.items()},
            inputs=tuple(map(kind, node.input)),
            constants={i: self.constants[name] for i, name in enumerate(node.input) if name in self.constants},
            output=kind(fused.output),
            target=self.target,
            epilogue=epilogue,
            extra=tuple(map(kind, extra)),
            twin=None if twin is None else len(fused.extra),
            copies=tuple(self.types[copy.output[0]] for copy in fused.copies),
        )
        try:
            write = getattr(importlib.import_module(f"..lower.kernels.{module}", __package__), function)
            template = self.templates[call.name] = Template(call, write).with_choices(self.tuned)
            kernel = write(template.call)
        except UnsupportedError as error:
            raise UnsupportedError(node.name, node.op_type, error.reason) from error
        places = {"input": list(node.input), "extra": extra}
        arguments = [
            relax.const(np.ascontiguousarray(a), str(a.dtype))
            if isinstance(a, np.ndarray)
            else self._read(places[a[0]][a[1]], last and places[a[0]][a[1]] in maps)
            for a in kernel.args
        ]
        func = kernel.func.with_attr("op_pattern", 8).with_attr("xnorc.scheduled", 1)
        if kernel.in_place:
            func = func.with_attr("xnorc.in_place", list(kernel.in_place))
        variable = self._bb.add_func(func, call.name)
        made = [relax.TensorType(kind.shape, str(kind.dtype)) for kind in call.outputs]
        if len(made) == 1:
            return [relax.call_tir(variable, arguments, made[0])]
        all_ = self._bb.emit(relax.call_tir(variable, arguments, made))
        return [relax.TupleGetItem(all_, i) for i in range(len(made))]


def _reason(error: Exception) -> str:
    """What an error of TVM says, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, (ValueError, NotImplementedError)) and lines:
        return lines[-1]
    return f"TVM cannot convert this use of it ({type(error).__name__}: {lines[-1] if lines else ''})"


def rounded_product(a: Any, b: Any) -> Any:
    """``a * b`` for float32 TIR expressions, rounded by itself.

    TVM lets LLVM contract a product and the addition after it into one fused operation, which rounds once: then the
    device would differ from ONNX Runtime in the last bit, and a sign near zero could flip. The fence stops that.
    """
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", a * b)


def _legalize_multiply(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    a, b = call.args
    if str(call.ty.dtype) != "float32":
        return bb.call_te(tvm.topi.multiply, a, b)
    shape = [int(size) for size in call.ty.shape]

    def multiply(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        def at(tensor: te.Tensor, index: Sequence[Any]) -> Any:
            index = index[len(index) - len(tensor.shape) :]
            return tensor(*[0 if int(size) == 1 else i for i, size in zip(index, tensor.shape, strict=True)])

        return te.compute(shape, lambda *i: rounded_product(at(x, i), at(y, i)), name="T_multiply")

    return bb.call_te(multiply, a, b, primfunc_name_hint="multiply")


def legalize(mod: tvm.IRModule) -> tvm.IRModule:
    """Every Relax operator but reshapes to a TIR function; constants folded; one binding a kernel call."""
    return tvm.ir.transform.Sequential(
        [
            relax.transform.LegalizeOps({"relax.multiply": _legalize_multiply}, skip_ops=["relax.reshape"]),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(mod)
