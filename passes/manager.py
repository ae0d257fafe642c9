"""Runs the passes in order, holds each to its contract, and accounts for every node of the original model."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from .. import golden
from ..errors import ModelError, PassError, XnorcError
from ..opset import DOMAIN
from .base import Context, Options, Origin, Pass, Record, Status
from .graph import export_graph, import_graph, toposort

T = TypeVar("T")

PASSES = (
    "tidy.fold_constants",
    "tidy.drop_zeroed",
    "tidy.clean",
    "fixed.int8_layers",
    "fixed.half_shortcuts",
    "signs.recognise_sign",
    "tidy.clean",
    "fixed.fixed_point",
    "fixed.int8_rows",
    "levels.recognise_thresholds",
    "levels.recognise_levels",
    "signs.binary_weights",
    "signs.sink_affine",
    "tidy.fold_affine",
    "signs.split_bias",
    "signs.pad_exact",
    "signs.split_columns",
    "pack.pack_embeddings",
    "signs.sink_products",
    "signs.hoist_signs",
    "pack.pack",
    "pack.hamming",
    "pack.pack_products",
    "weights.bit_float",
    "pack.pack_sign_sums",
    "pack.fuse_attention",
    "levels.level_weights",
    "levels.pack_levels",
    "weights.low_bit",
    "weights.lookup",
    "pack.gate",
    "fuse.gelu_sign",
    "fuse.fuse_threshold",
    "fuse.float_threshold",
    "fuse.fuse_levels",
    "tidy.pad_pools",
    "tidy.clean",
    "fuse.split_concat",
    "fuse.fuse_epilogue",
    "verify",
)
"""The passes in the order in which they run, each as ``room.name``: the file ``passes/room/name.py``."""

_FLOAT_OPERATORS = ("Binarize", "Quantize")
"""Operators of ``ai.xnorc`` that compute float tensors of few values: canonical forms, not packed ones."""

_STEPS = (*_FLOAT_OPERATORS, "QuantizeMap")
"""Operators whose result jumps where a float input moves by a rounding."""

FLOAT_TOLERANCE = 1e-4
"""Allowed difference after a pass that rounds differently, as a part of the largest magnitude of the tensor. A
reordered float32 sum of k terms differs by at most about k·2⁻²⁴ of the sum of magnitudes: 1e-4 covers k = 1700 terms of
one sign, and longer sums of mixed signs."""


@dataclass
class Optimized:
    """What ``optimize`` gives."""

    model: onnx.ModelProto
    """The packed model; it runs in any ONNX runtime."""
    records: list[Record]
    """One a node of the original model, in its order."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Packed tensor → the original tensor that it holds the signs of."""
    choices: dict[str, str] = field(default_factory=dict)
    """Choices of the user that changed what is computed. ``sign_zero``: ``model``, ``+1`` or ``-1``; ``float_layers``:
    ``int8``, ``shortcuts``: ``float16``, where they were chosen."""


def load_pass(place: str) -> Pass:
    """The pass of ``passes/room/name.py``, given as ``room.name``. Raises ``PassError`` when the file has no such pass."""
    module = importlib.import_module(f".{place}", __package__)
    name = place.rpartition(".")[2]
    for item in vars(module).values():
        if isinstance(item, type) and issubclass(item, Pass) and getattr(item, "name", None) == name:
            return item()
    raise PassError(f"passes/{place.replace('.', '/')}.py has no pass named '{name}'")


def optimize(
    model: onnx.ModelProto,
    options: Options | None = None,
    check: bool = False,
    *,
    progress: Callable[[str], None] | None = None,
    passes: tuple[str | Pass, ...] = PASSES,
) -> Optimized:
    """Rewrite a model (from ``read_model``) to a packed model. The given model is not changed.

    With ``check``, the graph after every pass runs in ONNX Runtime on random inputs and is compared with the one
    before. ``progress`` is called with the name of each pass as it begins. Raises ``ModelError`` when the model cannot
    be compiled, ``PassError`` for a defect of a pass, which the message names.
    """
    options = options or Options()
    if options.sign_zero not in (None, -1, 1):
        raise ModelError(f"sign_zero must be +1 or -1 (or None: as the model says), is {options.sign_zero}")
    if any(node.domain == DOMAIN for node in model.graph.node):
        raise ModelError("the model holds ai.xnorc operators already: give the original model, not a packed one")
    graph, ctx = import_graph(model, options)
    checker = _Checker(model) if check else None
    done: list[str] = []
    for item in passes:
        step = load_pass(item) if isinstance(item, str) else item
        if progress is not None:
            progress(step.name)
        if _run_pass(step, graph, ctx, done) and checker is not None:
            _guarded(partial(checker.check, graph, step, ctx), step, done)
        done.append(step.name)
    result = export_graph(graph, ctx)
    _finish_records(graph, ctx)
    zero = options.sign_zero
    return Optimized(
        model=result,
        records=[ctx.records[name] for name in ctx.original],
        origins=dict(ctx.origins),
        choices={
            "sign_zero": "model" if zero is None else f"{zero:+d}",
            **({} if options.int8 is None else {"float_layers": "int8"}),
            **({} if options.shortcuts is None else {"shortcuts": "float16"}),
        },
    )


def _run_pass(step: Pass, graph: gs.Graph, ctx: Context, done: list[str]) -> bool:
    missing = [name for name in step.requires if name not in done]
    if missing:
        raise PassError(f"pass '{step.name}' needs '{missing[0]}' before it; ran before: {_history(done)}")
    ctx.current = step.name
    changed = _guarded(partial(step.run, graph, ctx), step, done)
    _guarded(partial(toposort, graph), step, done)
    problem = _guarded(partial(step.ensures, graph, ctx), step, done)
    if problem:
        raise PassError(f"after pass '{step.name}' (ran before: {_history(done)}): {problem}")
    return bool(changed)


def _guarded(call: Callable[[], T], step: Pass, done: list[str]) -> T:
    """Let xnorc's own errors about the model through, and name the pass in every other."""
    try:
        return call()
    except PassError as error:
        raise PassError(f"pass '{step.name}' (ran before: {_history(done)}): {error}") from error
    except XnorcError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {golden.one_line(error)}"
        raise PassError(f"pass '{step.name}' failed (ran before: {_history(done)}): {text}") from error


def _history(done: list[str]) -> str:
    return ", ".join(done) or "none"


def _finish_records(graph: gs.Graph, ctx: Context) -> None:
    """Write a record for every original node that no pass mentioned."""
    ctx.current = "manager"
    left = {node.name for node in graph.nodes}
    made: dict[str, list[gs.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.name in ctx.renamed:
            made[ctx.renamed[node.name]].append(node)
    for name in ctx.original:
        if name in ctx.records:
            continue
        if name in left:
            ctx.note(name, Status.FLOAT, "an operator on floats")
        elif made[name]:
            ops = ", ".join(dict.fromkeys(node.op for node in made[name]))
            packed = any(node.domain == DOMAIN and node.op not in _FLOAT_OPERATORS for node in made[name])
            ctx.note(name, Status.PACKED if packed else Status.FLOAT, f"computed as {ops}")
        else:
            ctx.note(name, Status.REMOVED, "no output of the packed model needs it")


class _Checker:
    """Compares the graph after a pass with the one before, on one random input."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.feeds = golden.random_inputs(model)

    def check(self, graph: gs.Graph, step: Pass, ctx: Context) -> None:
        """Raise ``PassError`` where ``graph`` differs from the graph of the last call by more than ``step`` may."""
        model = export_graph(graph, ctx)
        before, self.model = self.model, model
        if step.name in ("int8_layers", "half_shortcuts"):
            return  # carries out the user's choice, which is meant to change results
        if ctx.options.sign_zero is not None and step.name in ("fold_constants", "recognise_sign"):
            return  # these two carry out the user's choice for sign(0), which is meant to change results
        if step.exact:
            self._compare(model, before)
            return
        # Rounding flips signs of values near zero, and a flip moves everything behind it. So every sign gets the input,
        # and its readers get the sign, that was there before; what is computed in between is compared.
        values = golden.run(
            before, self.feeds, sorted({name for node in before.graph.node for name in node.output if name})
        )
        cut, pairs = _cut_signs(model, set(values))
        given = {
            info.name: values[pairs.get(info.name, info.name)]
            for info in cut.graph.input
            if info.name not in self.feeds
        }
        names = [out.name for out in cut.graph.output]
        found = golden.run(cut, {**self.feeds, **given}, names)
        for name in names:
            _differ(name, values[pairs.get(name, name)], found[name], FLOAT_TOLERANCE)

    def _compare(self, model: onnx.ModelProto, before: onnx.ModelProto) -> None:
        names = [out.name for out in model.graph.output]
        expected, found = golden.run(before, self.feeds, names), golden.run(model, self.feeds, names)
        for name in names:
            _differ(name, expected[name], found[name], 0.0)


def _differ(name: str, old: np.ndarray, new: np.ndarray, tolerance: float) -> None:
    """Raise ``PassError`` unless the arrays are equal, up to ``tolerance`` times the largest magnitude."""
    if old.shape != new.shape or old.dtype != new.dtype:
        raise PassError(f"tensor '{name}' was {old.dtype}{old.shape} and is {new.dtype}{new.shape}")
    wrong = old != new
    if old.dtype.kind == "f":
        wrong &= ~(np.isnan(old) & np.isnan(new))
        if tolerance:
            scale = float(np.max(np.abs(old[np.isfinite(old)]), initial=0.0))
            with np.errstate(invalid="ignore"):
                wrong &= ~(np.abs(old.astype(np.float64) - new) <= tolerance * scale)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise PassError(f"tensor '{name}'{list(at)} was {old[at]} and is {new[at]}; {wrong.sum()} values differ")


def _cut_signs(model: onnx.ModelProto, known: set[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """``model`` with every step (``_STEPS``) cut off on both sides, where its tensors are ``known`` from before.

    Its input is read from a model input ``<x>/given``, its readers read a model input, and both its input as computed
    and its result (``<y>/sign``) are outputs. Returns also what those stand for.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    infos = {info.name: info for info in [*model.graph.value_info, *model.graph.output, *model.graph.input]}
    own = {info.name for info in model.graph.input}
    pairs: dict[str, str] = {}
    outputs = [out.name for out in model.graph.output if out.name in known]
    for node in cut.graph.node:
        if node.domain != DOMAIN or node.op_type not in _STEPS or node.output[0] not in known:
            continue
        x, y = node.input[0], node.output[0]
        for name, renamed in ((x, f"{x}/given"), (y, y)):
            if name in own or name not in known or any(info.name == renamed for info in cut.graph.input):
                continue
            info = cut.graph.input.add()
            info.CopyFrom(infos[name])
            info.name = renamed
            pairs[renamed] = name
        if x in known and x not in own:
            node.input[0] = f"{x}/given"
            outputs.append(x)
        node.output[0] = f"{y}/sign"
        pairs[f"{y}/sign"] = y
        outputs = [f"{y}/sign" if name == y else name for name in outputs]
        outputs.append(f"{y}/sign")
    signs = set(pairs)
    del cut.graph.output[:], cut.graph.value_info[:]
    wanted = [name for name in dict.fromkeys(outputs) if name not in signs or name.endswith("/sign")]
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return cut, pairs
