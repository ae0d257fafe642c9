"""Attention probabilities on a logarithmic grid: recognised for ``fixed_point``, which multiplies with them by shifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..base import constant, producer, static_shape
from ..graph import as_function
from .grid import Quantizer

_CHAIN = frozenset({"Abs", "Add", "Ceil", "Clip", "Div", "Floor", "Log", "Max", "Min", "Mul", "Neg", "Round", "Sub"})
"""From a probability to its code."""
_REGION = _CHAIN | {"And", "Cast", "Equal", "Exp", "Greater", "Less", "Mod", "Not", "Or", "Pow", "Where"}
"""From a code to a level."""
_NEAR = 256
"""Floats on either side of a threshold on which the code is checked."""
_OPEN = 64
"""Floats next to a threshold that may go either way: the error of a float32 logarithm, 2^-22 + 8 · 2^-24 · |log p| for p from
2^-16 on, moves a threshold by a factor of up to 1 + 2^-17, which is 64 floats. ONNX Runtime itself gives different
logarithms of one number, depending on where in a tensor it lies."""


@dataclass(frozen=True)
class LogLevels:
    """Levels that are 0 or powers of two, of a quantizer of probabilities."""

    source: gs.Tensor
    """The probabilities, float32: what a Softmax gives."""
    threshold: np.ndarray
    """float32 [T], rising: the code is the number of thresholds that a probability reaches."""
    shifts: tuple[int, ...]
    """Code → n where the level is 2^(n − top), or −1 where it is 0."""
    top: int
    row_sum: float
    """Bound of the sum of the levels of one row, in units of 2^-top."""
    nodes: tuple[gs.Node, ...]


def _walk(tensor: gs.Tensor, ops: frozenset[str], stop: set[int]) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """The one tensor that ``tensor`` is computed from by ``ops`` with single constants, and the nodes in order."""
    nodes: dict[int, gs.Node] = {}
    sources: dict[int, gs.Tensor] = {}
    stack = [tensor]
    while stack:
        x = stack.pop()
        value, node = constant(x), producer(x)
        if value is not None or x.is_empty():
            if value is not None and value.size != 1:
                return None
            continue
        if id(x) in stop or node is None or node.domain or node.op not in ops:
            sources[id(x)] = x
        elif id(node) not in nodes:
            nodes[id(node)] = node
            stack += node.inputs
    if len(sources) != 1 or len(nodes) > 40:
        return None
    (source,) = sources.values()
    ordered: list[gs.Node] = []
    known = {id(source)}
    waiting = list(nodes.values())
    while waiting:
        ready = [n for n in waiting if all(constant(x) is not None or x.is_empty() or id(x) in known for x in n.inputs)]
        if not ready:
            return None
        ordered += ready
        known |= {id(out) for n in ready for out in n.outputs}
        waiting = [n for n in waiting if not any(n is r for r in ready)]
    return source, ordered


def read_log_levels(tensor: gs.Tensor, quantizers: dict[int, Quantizer], opset: int) -> LogLevels | str | None:
    """What ``tensor`` is; the reason why it is not on a grid of powers of two; None where no quantizer of a Softmax is above.

    The code of a probability is found by ONNX Runtime, which runs the model's own nodes: the floats of [0, 1] at which it
    changes are the thresholds, found by bisection. The code falls as the probability rises (it is minus a logarithm), up to
    the rounding of the logarithm: a probability within 64 floats of a threshold, where the model's own code is open, has
    the code of its side here. That no other float has another code is checked on 20,000 of them and all near a threshold.
    """
    found = _walk(tensor, _REGION, set(quantizers))
    quantizer = None if found is None else quantizers.get(id(found[0]))
    if found is None or quantizer is None or quantizer.fraction or quantizer.high - quantizer.low > 255:
        return None
    above = _walk(quantizer.source, _CHAIN, set())
    softmax = None if above is None else producer(above[0])
    if above is None or softmax is None or softmax.op != "Softmax" or not found[1] or not above[1]:
        return None
    source, chain = above
    inner = list(reversed(quantizer.nodes))
    codes = np.arange(quantizer.low, quantizer.high + 1, dtype=np.float32)
    levels = as_function(found[0], found[1], tensor, opset)(codes).astype(np.float64)
    used = levels != 0
    mantissa, exponent = np.frexp(levels)
    if not used.any() or (levels < 0).any() or (mantissa[used] != 0.5).any():
        return "its levels are not powers of two"
    steps = _thresholds(source, [*chain, *inner], quantizer.output, codes, opset)
    if steps is None:
        return "its code does not fall throughout as the probability rises"
    threshold, order = steps
    top = int(1 - exponent[used].min())
    shifts = np.where(used, exponent - 1 + top, -1)[order].astype(int)
    if max(shifts.max(), 0) > 24:
        return f"its levels span {shifts.max()} powers of two"
    # A level is at most c · p for what reaches the first threshold, and the least level below it; rows of p sum to 1.
    units = np.where(shifts >= 0, 2.0 ** np.maximum(shifts, 0), 0.0)
    columns = static_shape(tensor)[-1]
    ratio = float((units[1:] / threshold).max()) if len(threshold) else 0.0
    row_sum = min(ratio * (1 + columns * 2.0**-20) + columns * units[0], columns * units.max())
    nodes = (*chain, *inner, *found[1])
    return LogLevels(source, threshold, tuple(int(n) for n in shifts), top, row_sum, nodes)


def _thresholds(
    source: gs.Tensor, nodes: list[gs.Node], end: gs.Tensor, codes: np.ndarray, opset: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rising thresholds, and the index (into ``codes``) of the level between them, from p = 0 to p = 1."""
    function = as_function(source, nodes, end, opset)

    def code_of(bits: np.ndarray) -> np.ndarray:
        """Codes of floats given by their bit patterns: for floats of one sign, these are in order."""
        return function(bits.astype(np.int32).view(np.float32)).astype(np.int64)

    one = int(np.float32(1).view(np.int32))
    first, last = code_of(np.array([0, one]))
    if first < last:
        return None
    wanted = np.arange(first - 1, last - 1, -1)  # threshold i: the least p whose code is wanted[i] or less
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), one, np.int64)
    if not len(wanted):
        return None
    for _ in range(32):
        middle = (low + high) // 2
        reached = code_of(middle) <= wanted
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    near = np.unique(np.clip(high[:, None] + np.arange(-_NEAR, _NEAR), 0, one))
    spread = np.linspace(0, one, 20001).astype(np.int64)
    probes = np.union1d(near, spread)
    expected = first - (probes[:, None] >= high).sum(1)
    wrong = probes[code_of(probes) != expected]
    if len(wrong) and np.abs(wrong[:, None] - high).min(1).max() > _OPEN:
        return None
    limits = high.astype(np.int32).view(np.float32)
    if limits.min() < 2.0**-126:
        return None
    return limits, (np.arange(first, last - 1, -1) - int(codes[0])).astype(int)
