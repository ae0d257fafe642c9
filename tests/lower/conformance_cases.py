"""ONNX's own node test cases in the form that xnorc reads, and many of them as one model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from xnorc.errors import ModelError, XnorcError
from xnorc.model import newest_opset, prepare
from xnorc.opset import DOMAIN, IR_VERSION, VERSION
from xnorc.passes import optimize

SEVERAL = "several operators"


@dataclass
class Form:
    """One way to compile a case: ``refused`` says why it cannot be, else ``model`` and ``feeds`` are there."""

    key: str
    case: str
    op: str
    expanded: bool
    expected: dict[str, np.ndarray]
    rtol: float
    atol: float
    model: onnx.ModelProto | None = None
    feeds: dict[str, np.ndarray] | None = None
    refused: str = ""
    crashed: str = ""

    @property
    def opset(self) -> int:
        """The standard opset of the prepared model."""
        assert self.model is not None
        return next(item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx"))


def node_forms(names: str = "") -> list[Form]:
    """The forms of every node case whose name contains ``names``: with its inputs as inputs; where it has several, with
    all but the first as constants (so weights, shapes and axes come in models); and the last of these after the passes,
    which is what xnorc compiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = [case for case in collect_testcases("") if case.model is not None]
    ops = {case.name: case.model.graph.node[0].op_type for case in cases if len(case.model.graph.node) == 1}
    forms = []
    for case in cases:
        if names not in case.name:
            continue
        base = case.name.split("_expanded")[0]
        op = ops.get(base) or SEVERAL
        for inputs, outputs in ([_arrays(part) for part in data] for data in case.data_sets[:1]):
            model, inputs, outputs = _in_float32(case.model, inputs, outputs)
            given = [info.name for info in model.graph.input]
            for constants in ([], given[1:])[: 2 if len(given) > 1 else 1]:
                form = Form(
                    case.name + ("/constants" if constants else ""), case.name, op, base != case.name,
                    dict(zip([info.name for info in model.graph.output], outputs, strict=True)),
                    case.rtol, case.atol,
                )  # fmt: skip
                _prepare(form, model, dict(zip(given, inputs, strict=False)), constants)
                forms.append(form)
            if (packed := _after_passes(form)) is not None:
                forms.append(packed)
    return forms


def _arrays(values: Sequence[Any]) -> list[Any]:
    """Data of a case: scalars are stored as such, the element types that NumPy lacks as protobuf."""
    arrays = [numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in values]
    return [np.asarray(value) if isinstance(value, np.generic) else value for value in arrays]


def _in_float32(
    model: onnx.ModelProto, inputs: list[Any], outputs: list[Any]
) -> tuple[onnx.ModelProto, list[Any], list[Any]]:
    """A case in float64, which devices lack, as one in float32; where float64 is the point of it, it stays."""
    nodes = model.graph.node
    if len(nodes) != 1 or nodes[0].op_type in ("Cast", "CastLike", "BitCast", "Bernoulli", "Mod"):
        return model, inputs, outputs
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for info in [*copy.graph.input, *copy.graph.output]:
        if info.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    arrays = [
        [v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype == np.float64 else v for v in values]
        for values in (inputs, outputs)
    ]
    return copy, arrays[0], arrays[1]


def _after_passes(form: Form) -> Form | None:
    """The form after xnorc's passes; None when they leave the model as it is."""
    if form.model is None:
        return None
    made = replace(form, key=f"{form.case}/passes")
    try:
        made.model = optimize(form.model).model
        if _work(made.model) == _work(form.model):
            return None
    except XnorcError as error:
        made.model, made.refused = None, str(error)
    except Exception as error:
        made.model, made.crashed = None, f"{type(error).__name__}: {error}"
    return made


def _work(model: onnx.ModelProto) -> list[Any]:
    """What a model computes, without names of nodes."""
    constants = sorted(tensor.name for tensor in model.graph.initializer)
    return [
        constants,
        *(
            (n.op_type, list(n.input), list(n.output), sorted(a.SerializeToString() for a in n.attribute))
            for n in model.graph.node
        ),
    ]


def _prepare(form: Form, model: onnx.ModelProto, data: dict[str, np.ndarray], constants: Sequence[str]) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        tensors = all(isinstance(value, np.ndarray) for value in data.values()) and len(data) == len(model.graph.input)
        if constants and not tensors:
            form.refused = "an input is not a tensor"
            return
        for item in copy.opset_import:
            if not item.domain:
                item.version = min(item.version, newest_opset())
        copy.ir_version = IR_VERSION
        kept = [info for info in copy.graph.input if info.name not in constants]
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
        copy.graph.initializer.extend(numpy_helper.from_array(data[name], name) for name in constants)
        form.model = prepare(copy)
        form.feeds = {info.name: np.asarray(data[info.name]) for info in form.model.graph.input}
    except ModelError as error:
        form.refused = str(error)
    except Exception as error:
        form.crashed = f"{type(error).__name__}: {error}"


def merged(forms: Sequence[Form]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One model of forms of one opset, and what to feed it; tensors of form i have the prefix ``f{i}_``."""
    graph = onnx.GraphProto(name="cases")
    feeds: dict[str, np.ndarray] = {}
    for index, form in enumerate(forms):
        assert form.model is not None and form.feeds is not None
        alone = onnx.ModelProto()
        alone.CopyFrom(form.model)
        del alone.functions[:]  # their operators would be renamed
        part = compose.add_prefix(alone, f"f{index}_").graph
        for field in ("node", "input", "output", "initializer", "value_info"):
            getattr(graph, field).extend(getattr(part, field))
        feeds |= {f"f{index}_{name}": value for name, value in form.feeds.items()}
    imports = [helper.make_opsetid("", forms[0].opset), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    return model, feeds


def difference(form: Form, found: dict[str, np.ndarray], prefix: str) -> str:
    """How the outputs differ from those of the case; empty if they do not."""
    for name, expected in form.expected.items():
        got = found[prefix + name]
        if (got.shape, got.dtype) != (expected.shape, expected.dtype):
            return f"{name} is {got.dtype} {got.shape}, expected {expected.dtype} {expected.shape}"
        if expected.dtype.kind == "f":
            same = np.allclose(got, expected, rtol=min(form.rtol, 1e-3), atol=min(form.atol, 1e-5), equal_nan=True)
        else:
            same = bool(np.array_equal(got, expected))
        if not same:
            return f"{name} has other values"
    return ""
