"""Evaluates whatever does not depend on an input of the model.

Matches every node of the main graph whose inputs are all constant, and `Shape` and `Size` of a tensor of static shape.
Exporters fold only small tensors and leave whole weight-binarization chains (`Sub → Sin → Sign → Mul`) in the graph; here
there is no size limit.

Why it is right: the nodes run in ONNX Runtime with graph optimizations off, in float32 as the graph says, which is what
they compute in the model too. With ``Options.sign_zero``, a `Sign` of weights gives that value at zero, as the user asked.

Does not fire for random operators, for nodes with subgraphs, for a node that computes a model output (the model must keep
a node for it), and for results that are not tensors.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ... import golden
from ...opset import DOMAIN
from ..base import Context, Pass, Status, is_output
from ..graph import all_typed, infer_types, node_proto, remove_node, toposort

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


class FoldConstants(Pass):
    """See the module."""

    name: ClassVar[str] = "fold_constants"

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Fold until nothing is left to fold; shapes that became static can make more constant."""
        changed = False
        while True:
            toposort(graph)
            again = _fold_shapes(graph, ctx)
            again |= _fold_values(graph, ctx)
            if again and not all_typed(graph):
                infer_types(graph, ctx)
            changed |= again
            if not again:
                return changed

    def ensures(self, graph: gs.Graph, ctx: Context) -> str | None:
        """No foldable node is left."""
        left = _foldable(graph)
        return f"node '{left[0].name}' ({left[0].op}) is constant and was not folded" if left else None


def _fold_shapes(graph: gs.Graph, ctx: Context) -> bool:
    changed = False
    for node in list(graph.nodes):
        if node.op not in ("Shape", "Size") or node.domain or is_output(graph, node.outputs[0]):
            continue
        shape = node.inputs[0].shape
        if shape is None or not all(isinstance(size, (int, np.integer)) for size in shape):
            continue
        if node.op == "Size":
            value = np.array(np.prod(shape, dtype=np.int64))
        else:
            value = np.array(shape[node.attrs.get("start", 0) : node.attrs.get("end")], dtype=np.int64)
        _set_constant(graph, ctx, node, [value], "the shape is static")
        changed = True
    return changed


def _foldable(graph: gs.Graph) -> list[gs.Node]:
    """Nodes to fold, in graph order. A model output stops the folding of its own node only."""
    known: set[int] = set()
    found = []
    for node in graph.nodes:
        if node.op in _RANDOM or any(node.subgraphs()) or (node.op == "Dropout" and len(node.outputs) > 1):
            continue
        if any(out.type != "tensor_type" for out in node.outputs if isinstance(out, gs.Variable)):
            continue
        if any(is_output(graph, out) for out in node.outputs):
            continue
        if all(t.is_empty() or isinstance(t, gs.Constant) or id(t) in known for t in node.inputs):
            known |= {id(out) for out in node.outputs}
            found.append(node)
    return found


def _fold_values(graph: gs.Graph, ctx: Context) -> bool:
    nodes = _foldable(graph)
    if not nodes:
        return False
    ours = {id(node) for node in nodes}
    feeds: dict[str, np.ndarray] = {}
    wanted: list[gs.Tensor] = []
    for node in nodes:
        feeds.update({t.name: np.asarray(t.values) for t in node.inputs if isinstance(t, gs.Constant)})
        wanted += [t for t in node.outputs if t.outputs and any(id(reader) not in ours for reader in t.outputs)]
    zero = ctx.options.sign_zero
    protos = []
    for node in nodes:
        proto = node_proto(node)
        if zero is not None and node.op == "Sign" and not node.domain:
            proto = onnx.helper.make_node("Binarize", proto.input, proto.output, proto.name, domain=DOMAIN, zero=zero)
        protos.append(proto)
    domains = {item.domain: item.version for item in graph.import_domains or () if item.domain not in ("", DOMAIN)}
    values = golden.evaluate(protos, feeds, [t.name for t in wanted], opset=ctx.opset, domains=domains)
    for node in nodes:
        reason = "constant: computed at compile time"
        if zero is not None and node.op == "Sign":
            reason += f", with sign(0) = {zero:+d} as chosen"
        _set_constant(graph, ctx, node, [values.get(t.name) for t in node.outputs], reason)
    return True


def _set_constant(graph: gs.Graph, ctx: Context, node: gs.Node, values: list[np.ndarray | None], reason: str) -> None:
    """Turn the outputs of ``node`` into constants (in place, so that subgraphs see it too) and remove the node."""
    outputs = list(node.outputs)
    ctx.note(node, Status.FOLDED, reason)
    remove_node(graph, node)
    for tensor, value in zip(outputs, values, strict=True):
        if value is not None:
            tensor.to_constant(np.ascontiguousarray(value).reshape(value.shape))
