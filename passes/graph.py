"""Between ``ModelProto`` and the graph that passes edit, with everything carried across.

onnx-graphsurgeon drops the metadata of models and nodes and sorts by level; here metadata are kept, nodes keep the order
of the original model as far as data flow allows, and the same graph always gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.logger import G_LOGGER

from .. import golden
from ..errors import ModelError, PassError
from ..opset import DOMAIN, IR_VERSION, VERSION, functions
from .base import Context, Levels, Options, Origin, constant, is_output, replace_uses

_OWN_KEYS = ("xnorc.source", "xnorc.group", "xnorc.for")
_PRIVATE_KEYS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""What an exporter notes about the machine that it ran on: not for a package that is handed on."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnx-graphsurgeon from printing; its failures are raised all the same."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = before


def import_graph(model: onnx.ModelProto, options: Options | None = None) -> tuple[gs.Graph, Context]:
    """The graph of ``model`` and a fresh context.

    ``model`` is as ``read_model`` gives it: unique node names, shapes inferred. The function bodies of ``ai.xnorc`` are
    left out (``export_graph`` adds those in use); other functions must have been inlined. Raises ``ModelError``
    otherwise.
    """
    from ..model import source_names

    for function in model.functions:
        if function.domain != DOMAIN:
            raise ModelError(
                f"model-local function '{function.domain}.{function.name}' was not inlined: use read_model"
            )
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    with _quiet():
        graph = gs.import_onnx(bare)
    graph.functions.clear()
    ctx = Context(options=options or Options())
    ctx.opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    ctx.model_metadata = {item.key: item.value for item in model.metadata_props}
    ctx.source = source_names(model)
    for node in model.graph.node:
        ctx.original[node.name] = node.op_type
        props = {item.key: item.value for item in node.metadata_props}
        if "xnorc.group" in props:
            ctx.groups[node.name] = props["xnorc.group"]
        if "xnorc.for" in props:
            ctx.renamed[node.name] = props["xnorc.for"]
        ctx.metadata[node.name] = {key: value for key, value in props.items() if key not in _OWN_KEYS + _PRIVATE_KEYS}
    for name, origin in json.loads(ctx.model_metadata.get("xnorc.origins", "{}")).items():
        ctx.origins[name] = Origin(**origin)
    for name, levels in json.loads(ctx.model_metadata.get("xnorc.levels", "{}")).items():
        ctx.quantizers[name] = Levels(**levels)
    for inner in [graph, *graph.subgraphs(recursive=True)]:
        ctx.taken |= {node.name for node in inner.nodes} | set(inner.tensors())
    return graph, ctx


def export_graph(graph: gs.Graph, ctx: Context) -> onnx.ModelProto:
    """The graph as a model, with the function bodies of the ``ai.xnorc`` operators in it and all metadata.

    Sorts ``graph.nodes`` topologically as a side effect. The same graph gives the same bytes (serialize with
    ``deterministic=True``). Raises ``PassError`` for a cycle or two tensors of one name.
    """
    toposort(graph)
    check_names(graph)
    with _quiet():
        proto = gs.exporters.onnx_exporter.OnnxExporter.export_graph(graph, do_type_check=False)
    for node in proto.node:
        props = dict(ctx.metadata.get(node.name, {}))
        for key, names in zip(_OWN_KEYS, (ctx.source, ctx.groups, ctx.renamed), strict=True):
            if node.name in names:
                props[key] = names[node.name]
        for key in sorted(props):
            node.metadata_props.add(key=key, value=props[key])
    used = list(_node_protos(proto))
    own = sorted({node.op_type for node in used if node.domain == DOMAIN})
    others = sorted({node.domain for node in used} - {"", "ai.onnx", DOMAIN})
    versions = {item.domain: item.version for item in graph.import_domains or ()}
    imports = [helper.make_opsetid("", ctx.opset)]
    if own:
        imports.append(helper.make_opsetid(DOMAIN, VERSION))
    imports += [helper.make_opsetid(domain, versions.get(domain, 1)) for domain in others]
    model = helper.make_model(proto, opset_imports=imports, functions=functions(own, ctx.opset), ir_version=IR_VERSION)
    model.producer_name, model.producer_version = graph.producer_name, graph.producer_version
    metadata = dict(ctx.model_metadata)
    if own or ctx.origins:
        metadata["xnorc.origins"] = ctx.origins_json()
        if ctx.quantizers:
            metadata["xnorc.levels"] = ctx.quantizers_json()
        zero = ctx.options.sign_zero
        if zero is not None or "xnorc.sign_zero" not in metadata:
            metadata["xnorc.sign_zero"] = "model" if zero is None else f"{zero:+d}"
    if ctx.options.int8:
        metadata["xnorc.int8"] = json.dumps({name: item.scale for name, item in sorted(ctx.options.int8.items())})
    if ctx.options.shortcuts:
        metadata["xnorc.shortcuts"] = json.dumps(dict(sorted(ctx.options.shortcuts.items())))
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    return model


def _node_protos(proto: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in proto.node:
        yield node
        for attr in node.attribute:
            if attr.HasField("g"):
                yield from _node_protos(attr.g)


def captured(node: gs.Node) -> list[gs.Tensor]:
    """Tensors that the subgraphs of ``node`` read from outside (and their own inner ones, which have no producer
    outside)."""
    return [tensor for inner in node.subgraphs(recursive=True) for sub in inner.nodes for tensor in sub.inputs]


def toposort(graph: gs.Graph) -> None:
    """Sort the nodes so that each comes after those it reads from: the given order, a producer pulled to just before
    its first reader where it comes too late. Raises ``PassError`` for a cycle."""
    ours = {id(node) for node in graph.nodes}
    done: set[int] = set()
    entered: set[int] = set()
    order: list[gs.Node] = []
    for root in graph.nodes:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            if id(node) in entered:
                raise PassError(f"the graph has a cycle through node '{node.name}'")
            entered.add(id(node))
            stack.append((node, True))
            before = [p for tensor in [*node.inputs, *captured(node)] for p in tensor.inputs]
            stack += [(p, False) for p in reversed(before) if id(p) in ours and id(p) not in done and p is not node]
    graph.nodes[:] = order


def check_names(graph: gs.Graph) -> None:
    """Raise ``PassError`` when two tensors, or two nodes, share a name, or a tensor has two producers."""
    tensors: dict[str, gs.Tensor] = {}
    names: set[str] = set()
    for node in graph.nodes:
        if node.name in names:
            raise PassError(f"two nodes are named '{node.name}'")
        names.add(node.name)
        for tensor in [*node.inputs, *node.outputs]:
            if not tensor.is_empty() and tensors.setdefault(tensor.name, tensor) is not tensor:
                raise PassError(f"two tensors are named '{tensor.name}' (node '{node.name}')")
        for tensor in node.outputs:
            if len(tensor.inputs) > 1:
                raise PassError(f"tensor '{tensor.name}' is computed by two nodes")


def remove_node(graph: gs.Graph, node: gs.Node) -> None:
    """Take ``node`` out of the graph and cut it off from its tensors."""
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes[:] = [other for other in graph.nodes if other is not node]


def bypass(graph: gs.Graph, node: gs.Node, source: gs.Tensor) -> bool:
    """Let every reader of the first output of ``node`` read ``source``, and remove ``node``.

    When that output is a model output, ``source``'s producer takes the name over. Returns False, with nothing changed,
    when it cannot: ``source`` is an input, a constant or another output of the model.
    """
    out = node.outputs[0]
    if not is_output(graph, out):
        replace_uses(graph, out, source)
        remove_node(graph, node)
        return True
    if isinstance(source, gs.Constant) or not source.inputs or is_output(graph, source):
        return False
    maker = source.inputs[0]
    if not any(maker is other for other in graph.nodes):
        return False
    remove_node(graph, node)
    replace_uses(graph, source, out)
    maker.outputs = [out if tensor is source else tensor for tensor in maker.outputs]
    return True


def dead_nodes(graph: gs.Graph) -> list[gs.Node]:
    """Nodes that no model output depends on, in graph order."""
    alive: set[int] = set()
    stack = [p for tensor in graph.outputs for p in tensor.inputs]
    while stack:
        node = stack.pop()
        if id(node) not in alive:
            alive.add(id(node))
            stack += [p for tensor in [*node.inputs, *captured(node)] for p in tensor.inputs]
    return [node for node in graph.nodes if id(node) not in alive]


def all_typed(graph: gs.Graph) -> bool:
    """Whether every tensor has a dtype and a static shape."""
    return all(
        tensor.dtype is not None
        and tensor.shape is not None
        and all(isinstance(size, (int, np.integer)) for size in tensor.shape)
        for node in graph.nodes
        for tensor in node.outputs
        if not tensor.is_empty()
    )


def infer_types(graph: gs.Graph, ctx: Context) -> None:
    """Infer the shapes and dtypes that tensors lack, with ONNX's inference. What cannot be inferred stays unknown.

    For shapes that only became static through constant folding.
    """
    model = export_graph(graph, ctx)
    names = {out.name for out in graph.outputs}
    stale = [info for info in model.graph.value_info if info.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(info for info in stale if _is_static(info))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(f"shapes cannot be inferred: {golden.one_line(error)}") from error
    tensors = graph.tensors()
    for info in [*inferred.graph.value_info, *inferred.graph.output]:
        tensor = tensors.get(info.name)
        if not isinstance(tensor, gs.Variable) or not info.type.HasField("tensor_type"):
            continue
        if tensor.dtype is None and info.type.tensor_type.elem_type:
            tensor.dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if _is_static(info):
            tensor.shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]


def _is_static(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """The node as ONNX holds it."""
    with _quiet():
        return gs.exporters.onnx_exporter.OnnxExporter.export_node(node)


def as_function(
    source: gs.Tensor, nodes: Sequence[gs.Node], end: gs.Tensor, opset: int
) -> Callable[[np.ndarray], np.ndarray]:
    """What ``nodes`` make of numbers in place of ``source``, read at ``end``: [M] → [M], by ONNX Runtime on the very nodes.

    All their other inputs are constants of one number.
    """
    protos = [node_proto(node) for node in nodes]
    fixed = {x.name: value.reshape(()) for node in nodes for x in node.inputs if (value := constant(x)) is not None}

    def compute(values: np.ndarray) -> np.ndarray:
        if not protos:
            return values
        found = golden.evaluate(protos, {**fixed, source.name: values}, [end.name], opset=opset)[end.name]
        return np.broadcast_to(found, values.shape)

    return compute
