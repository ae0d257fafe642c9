"""``gelu_sign``: in front of a sign, GELU and its like are x itself, but for the numbers that they make zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node, constant, is_output, producer, static_shape
from ..chain import absorbed, original_name
from ..floats import COUNT, floats
from ..graph import as_function, dead_nodes, remove_node, toposort

_SMOOTH = frozenset({
    "Add", "Div", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Sigmoid",
    "Softplus", "Sub", "Tanh",
})  # fmt: skip
_BOWED = frozenset({"Gelu", "HardSwish", "Mish"})
"""Those that are such functions by themselves."""
_MOST = 16
"""Nodes that such a function may be made of."""
_SCANNED = 1 << 20
"""Floats, evenly spaced in their order, at which the function is evaluated: 4,096 between a power of two and the next."""

_Test = tuple[np.float32, bool]
"""A threshold, and whether only greater numbers pass, or those equal to it as well."""


class GeluSign(Pass):
    """``Pack(f(x))`` with one float threshold t → ``Pack(x)``, or ``Pack(ThresholdedRelu(x))``, with another.

    f is made of nodes that act on each element by itself (GELU, SiLU, Mish, written out or not) with single numbers as
    constants, joins x with a function of x, and is read by ``Pack`` only. BiBERT signs what comes out of its GELU.

    Why it is right. f(x) >= t (or > t) holds from some float b on, as x·Φ(x) does from zero on. Below b it fails, down to a
    float a from which on f is zero, since Φ has become less than a half of float32's last digit there (−5.54 for
    GELU). ``ThresholdedRelu`` makes zero of the same floats and nothing of the others. a and b are those of the very nodes
    in ONNX Runtime: they are evaluated at a million floats, evenly spaced in their order, and at every float near a
    change. x is taken to be finite.

    It does not fire where f(x) >= t holds on other sets, or where something else reads a tensor between x and the bits. By ONNX
    Runtime's tanh, which is a little beyond −1 for some x, and by its sigmoid, which is zero for some x from −16.3 on,
    x·(1 + tanh(…)) >= 0 and x·sigmoid(x) >= 0 change to and fro.
    """

    name: ClassVar[str] = "gelu_sign"
    requires: ClassVar[tuple[str, ...]] = ("pack",)

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        packs: dict[int, list[gs.Node]] = {}
        for node in graph.nodes:
            if node.op == "Pack" and node.domain == DOMAIN and np.dtype(node.inputs[0].dtype) == np.float32:
                packs.setdefault(id(node.inputs[0]), []).append(node)
        changed = False
        for group in packs.values():
            changed |= _rewrite(graph, ctx, group)
        toposort(graph)
        return changed


def _rewrite(graph: gs.Graph, ctx: Context, packs: list[gs.Node]) -> bool:
    result = packs[0].inputs[0]
    tests = [test for pack in packs if (test := _test(pack)) is not None]
    if len(result.outputs) != len(packs) or is_output(graph, result) or len(tests) != len(packs):
        return False
    function = _function(graph, result)
    if function is None:
        return False
    source, nodes = function
    found = _sets(as_function(source, nodes, result, ctx.opset), tests)
    lows = {low for low, _ in found or [] if low is not None}
    if found is None or len(lows) > 1:
        return False
    x = source
    if lows:
        (alpha,) = lows
        x = add_node(
            graph, ctx, "ThresholdedRelu", [x], stands_for=nodes[-1], shape=static_shape(x), dtype=np.float32,
            alpha=float(alpha),
        )  # fmt: skip
    base = original_name(ctx, packs[0])
    for pack, (low, first) in zip(packs, found, strict=True):
        pack.inputs[0] = x if low is not None or first > 0 else source
        limits = np.full(static_shape(pack.inputs[1]), first, np.float32)
        pack.inputs[1] = add_constant(ctx, f"{base}/gelu_threshold", limits)
        pack.attrs["strict"] = 0
    for node in nodes:
        absorbed(ctx, node, Status.FUSED, f"only its sign is needed, by '{base}'")
    for node in dead_nodes(graph):
        remove_node(graph, node)
    return True


def _test(pack: gs.Node) -> _Test | None:
    """The test of a ``Pack`` with one threshold for all channels."""
    limit = constant(pack.inputs[1])
    return (limit.flat[0], bool(pack.attrs["strict"])) if limit is not None and np.unique(limit).size == 1 else None


def _function(graph: gs.Graph, result: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The nearest tensor on which all of ``result`` depends, and what computes it from there, where that is no mere chain."""
    place = {id(node): i for i, node in enumerate(graph.nodes)}
    inside: list[gs.Node] = []
    waiting, joined = [result], False
    while not joined or len(waiting) > 1:
        # What is computed last: those who read it have been seen.
        tensor = max(waiting, key=lambda x: place.get(id(producer(x)), -1))
        node = producer(tensor)
        if node is None or node.domain or node.op not in _SMOOTH or len(inside) == _MOST:
            return None
        if tensor is not result and (is_output(graph, tensor) or not _all_in(tensor.outputs, inside)):
            return None
        live = [x for x in node.inputs if constant(x) is None and not x.is_empty()]
        fixed = [value for x in node.inputs if (value := constant(x)) is not None]
        if any(value.size != 1 for value in fixed) or any(not _alike(x, result) for x in live):
            return None
        inside.insert(0, node)
        others = [x for x in live if not any(x is one for one in waiting)]
        waiting = [x for x in waiting if x is not tensor] + list({id(x): x for x in others}.values())
        joined = joined or len(waiting) > 1 or node.op in _BOWED
    return waiting[0], inside


def _all_in(nodes: Sequence[gs.Node], inside: Sequence[gs.Node]) -> bool:
    return all(any(node is one for one in inside) for node in nodes)


def _alike(x: gs.Tensor, result: gs.Tensor) -> bool:
    return np.dtype(x.dtype) == np.float32 and static_shape(x) == static_shape(result)


def _sets(
    function: Callable[[np.ndarray], np.ndarray], tests: Sequence[_Test]
) -> list[tuple[np.float32 | None, np.float32]] | None:
    """Where the function passes each test.

    ``(low, first)``: from ``first`` on, and (unless ``low`` is None) up to ``low``, where the function is zero. None where a
    test passes elsewhere.
    """

    def passes(y: np.ndarray, test: _Test) -> np.ndarray:
        return y > test[0] if test[1] else y >= test[0]

    scanned = np.linspace(1, COUNT - 2, _SCANNED).astype(np.int64)
    y = function(floats(scanned))
    if np.isnan(y).any():
        return None
    found: list[tuple[np.float32 | None, np.float32]] = []
    for test in tests:
        bits = passes(y, test)
        changes = np.flatnonzero(bits[1:] != bits[:-1])
        if not 0 < len(changes) <= 2 or not bits[-1]:
            return None
        exact = []
        for change in changes:
            near = np.arange(scanned[max(change - 1, 0)], scanned[min(change + 2, _SCANNED - 1)] + 1)
            there = passes(function(floats(near)), test)
            (steps,) = np.nonzero(there[1:] != there[:-1])
            if len(steps) != 1:
                return None
            exact.append(floats(near[steps[0] : steps[0] + 2]))
        first = exact[-1][1]
        if len(exact) == 1:
            found.append((None, first))
            continue
        low = exact[0][0]
        if first > 0 or y[scanned <= scanned[changes[0]]].any():
            return None
        found.append((low, first))
    return found
