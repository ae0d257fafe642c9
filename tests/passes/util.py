"""Before and expected graphs in ONNX text syntax: parse, run a pass, compare the structure and what is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from xnorc import golden
from xnorc.model import prepare
from xnorc.opset import DOMAIN, functions
from xnorc.passes.base import Context, Options, Pass
from xnorc.passes.graph import export_graph, import_graph

HEADER = '<ir_version: 10, opset_import: ["": {opset}, "ai.xnorc": 1]>\n'


def parse(text: str, constants: dict[str, np.ndarray] | None = None, opset: int = 18) -> onnx.ModelProto:
    """A model from its graph in text syntax; ``constants`` become initializers."""
    model = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    model.functions.extend(functions(sorted(used), opset))
    return model


def apply(
    model: onnx.ModelProto, *passes: Pass, options: Options | None = None, prepared: bool = True
) -> tuple[onnx.ModelProto, Context]:
    """Run passes; what they ensure is checked after each."""
    graph, ctx = import_graph(prepare(model) if prepared else model, options)
    for step in passes:
        ctx.current = step.name
        step.run(graph, ctx)
        assert step.ensures(graph, ctx) is None
    result = export_graph(graph, ctx)
    onnx.checker.check_model(result, full_check=True)
    return result, ctx


def ops(model: onnx.ModelProto) -> list[str]:
    """Operators in graph order."""
    return [node.op_type for node in model.graph.node]


def structure(model: onnx.ModelProto) -> list[str]:
    """The graph without the names that a pass chooses: a line a node, tensors by position, constants by value."""
    names = {info.name: info.name for info in model.graph.input}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        names[tensor.name] = f"{value.dtype}{list(value.shape)}{value.tolist()}"
    lines = []
    for index, node in enumerate(model.graph.node):
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = ", ".join(names[name] if name else "-" for name in node.input)
        lines.append(f"{node.domain}.{node.op_type} {sorted(attrs.items())} ({inputs})")
        names |= {name: f"%{index}.{i}" for i, name in enumerate(node.output)}
    return [*lines, "outputs " + ", ".join(f"{out.name}={names[out.name]}" for out in model.graph.output)]


def values(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Random data with exact zeros of both signs, ones, and denormals among it."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    special = np.float32([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 0.5, 3e38])
    return np.where(rng.random(shape) < 0.4, rng.choice(special, shape), x).astype(np.float32)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, *, tolerance: float = 0.0, runs: int = 3) -> None:
    """Both models give the same outputs on random inputs; bit for bit unless a relative ``tolerance`` is given."""
    for seed in range(runs):
        feeds = {}
        for info in before.graph.input:
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            feeds[info.name] = values(shape, seed)
        expected, found = golden.run(before, feeds), golden.run(after, feeds)
        assert list(expected) == list(found)
        for name, value in expected.items():
            assert value.dtype == found[name].dtype
            if tolerance:
                np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance)
            else:
                np.testing.assert_array_equal(found[name], value)


def assert_rewrites(before: onnx.ModelProto, expected: onnx.ModelProto, *passes: Pass, **how: object) -> Context:
    """The passes turn ``before`` into ``expected``, which computes the same."""
    result, ctx = apply(before, *passes)
    assert structure(result) == structure(expected)
    assert_same(before, result, **how)  # type: ignore[arg-type]
    return ctx
