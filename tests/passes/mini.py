"""Small models for the tests of passes, written node by node, and the check that a rewritten graph computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper, shape_inference

from xnorc.golden import run
from xnorc.model import prepare
from xnorc.opset import DOMAIN, IR_VERSION, VERSION, functions
from xnorc.passes.base import Context, Options, Pass
from xnorc.passes.graph import export_graph, import_graph
from xnorc.passes.manager import Optimized, optimize

OPSET = 18


class Net:
    """A model under construction. Each method appends a node and returns the name of its output."""

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = tuple(shape)
        self.count = 0

    def const(self, value: np.ndarray, name: str | None = None) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name or f"const{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str | np.ndarray, name: str | None = None, domain: str = "", **attrs: Any) -> str:
        names = [x if isinstance(x, str) else self.const(x) for x in inputs]
        self.count += 1
        name = name or f"{op.lower()}{self.count}"
        self.nodes.append(helper.make_node(op, names, [f"{name}_y"], name=name, domain=domain, **attrs))
        return f"{name}_y"

    def sign(self, x: str, zero: int = 1, name: str | None = None) -> str:
        return self.node("Binarize", x, name=name, domain=DOMAIN, zero=zero)

    def signs(self, *shape: int) -> np.ndarray:
        return np.where(self.rng.integers(0, 2, shape) > 0, 1, -1).astype(np.float32)

    def conv(
        self, x: str, cin: int, cout: int, kernel: Sequence[int] = (3, 3), *, group: int = 1, bias: bool = False,
        weight: str | None = None, name: str | None = None, **attrs: Any,
    ) -> str:  # fmt: skip
        w = weight or self.const(self.signs(cout, cin // group, *kernel))
        extra = [self.const(self.floats(cout))] if bias else []
        return self.node("Conv", x, w, *extra, name=name, group=group, kernel_shape=list(kernel), **attrs)

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def affine(self, x: str, gamma: np.ndarray, beta: np.ndarray, trailing: int = 2, name: str = "bn") -> str:
        shape = (-1,) + (1,) * trailing
        scaled = self.node("Mul", x, gamma.astype(np.float32).reshape(shape), name=f"{name}_mul{self.count}")
        return self.node("Add", scaled, beta.astype(np.float32).reshape(shape), name=f"{name}_add{self.count}")

    def bn(self, x: str, channels: int, trailing: int = 2, scale: float = 3.0) -> str:
        """A folded BatchNormalization with scales of both signs."""
        return self.affine(x, self.floats(channels), scale * self.floats(channels), trailing)

    def model(self, *outputs: str) -> onnx.ModelProto:
        used = sorted({node.op_type for node in self.nodes if node.domain == DOMAIN})
        graph = helper.make_graph(
            self.nodes, "mini", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs], self.constants,
        )  # fmt: skip
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
        model = helper.make_model(graph, opset_imports=imports, functions=functions(used, OPSET), ir_version=IR_VERSION)
        for i, name in enumerate(outputs):  # a declared output needs its shape: take that of a run
            value = run(model, {"x": np.zeros(self.shape, np.float32)}, [name])[name]
            model.graph.output[i].CopyFrom(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            )
        return model


def inputs(shape: Sequence[int], seed: int) -> np.ndarray:
    """Data with many exact zeros of both signs, so that ties are met."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x[rng.random(shape) < 0.15] = 0.0
    x[rng.random(shape) < 0.1] = -0.0
    return x


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def rewrite(model: onnx.ModelProto, *passes: Pass, runs: int = 3) -> tuple[gs.Graph, Context]:
    """Run passes; after each, the graph must still run and give exactly what it gave before.

    A pass that rounds may differ by a few ulp; what it gives is then what the next passes must keep.
    """
    graph, ctx = import_graph(shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    data = [inputs(shape, seed) for seed in range(runs)]
    wanted = [run(model, {"x": x}) for x in data]
    for step in passes:
        ctx.current = step.name
        step.run(graph, ctx)
        assert step.ensures(graph, ctx) is None
        rewritten = export_graph(graph, ctx)
        onnx.checker.check_model(rewritten, full_check=True)
        for i, x in enumerate(data):
            found = run(rewritten, {"x": x})
            for name, value in found.items():
                if step.exact:
                    assert same_bits(value, wanted[i][name]), f"{step.name} changed '{name}'"
                else:
                    np.testing.assert_allclose(value, wanted[i][name], rtol=1e-5, atol=1e-5)
            wanted[i] = found
    return graph, ctx


def ops(graph: gs.Graph) -> dict[str, int]:
    """How often each operator occurs."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        found[node.op] = found.get(node.op, 0) + 1
    return found


def node_of(graph: gs.Graph, op: str) -> gs.Node:
    """The one node with this operator."""
    (node,) = [node for node in graph.nodes if node.op == op]
    return node


class RealNet(Net):
    """A model as exporters write it: without the operators of ``ai.xnorc``."""

    def sign(self, x: str, zero: int = 1, name: str | None = None) -> str:
        if zero == 0:
            return self.node("Sign", x, name=name)
        test = self.node("GreaterOrEqual" if zero > 0 else "Greater", x, np.float32(0))
        return self.node("Where", test, np.float32(1), np.float32(-1), name=name)

    def bn(self, x: str, channels: int, trailing: int = 2, scale: float = 3.0, **fixed: np.ndarray) -> str:
        """BatchNormalization; ``gamma``, ``beta``, ``mean`` and ``var`` can be given."""
        values = {
            "gamma": self.floats(channels), "beta": self.floats(channels), "mean": scale * self.floats(channels),
            "var": self.rng.uniform(0.5, 20, channels),
        }  # fmt: skip
        values.update(fixed)
        return self.node("BatchNormalization", x, *(np.asarray(v, np.float32) for v in values.values()))


def compiled(net: Net, *outputs: str, runs: int = 4, **options: Any) -> Optimized:
    """Optimize the whole model; its outputs must be exactly those of the original in ONNX Runtime."""
    model = net.model(*outputs)
    optimized = optimize(prepare(model), Options(**options), check=True)
    onnx.checker.check_model(optimized.model, full_check=True)
    for seed in range(runs):
        x = inputs(net.shape, seed)
        expected = run(model, {"x": x})
        for name, value in run(optimized.model, {"x": x}).items():
            assert same_bits(value, expected[name]), f"'{name}' differs at seed {seed}"
    return optimized


def count(optimized: Optimized) -> dict[str, int]:
    """How often each operator occurs in the packed model."""
    return dict(Counter(node.op_type for node in optimized.model.graph.node))


def reason(optimized: Optimized, node: str) -> str:
    """What became of an original node, in words."""
    return next(record.reason for record in optimized.records if record.node == node)
