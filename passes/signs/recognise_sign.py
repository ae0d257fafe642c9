"""Rewrites every sign idiom to `Binarize(zero)`.

Matches (``sign_idioms.py`` and ``sign_residue.py`` hold the matchers)
* `Sign(x)`: zero = 0, or ``Options.sign_zero``; `Sign` of a sign, also with constants between (`Sign(Sign(x) + 0.1)`);
* `Where(x > 0, 1, -1)`: any of the four comparisons, the constant on either side, the levels in either order, `Not` and
  casts between; the levels may be ±a (a scalar or one per channel), which leaves `Mul(a)` behind the sign;
* arithmetic on the comparison that ends in two levels ±a: `2·(x > 0) − 1`, `((x > 0) − 0.5)·2` and the like;
* the same with two levels that are not opposite, and `sign(ReLU(x))`, which is 0 or 1, in front of a layer with constant
  weights: `Binarize · (a − b)/2 + (a + b)/2`, if these give a and b exactly. ``sink_affine`` moves both behind the layer;
* a comparison with c ≠ 0: `Binarize(Sub(x, c))`;
* a sign whose zeros get a value: `Where(sign(x) == 0, 1, sign(x))`, the masked assignment `s[s == 0] = 1` (exported as
  `NonZero → Transpose → ScatterND`), `sign(x) + (x == 0)`;
* `Clip` with 0 strictly inside its bounds, before a sign: dropped;
* straight-through residue: `(s − y) + y`, `y + (s − y)`, `(s + y) − y`, `s + (y − y)` for a sign s and any y: s itself.

Why it is right. For levels the two values are computed in float32 as the graph does it. `Clip` keeps the sign and the zero.
``x > c`` is ``x − c > 0`` for all finite floats: the exact difference is 0 only if x = c, else it is at least the spacing of
the smaller operand's binade, which is a float too (gradual underflow), and rounding is monotone, so a positive difference
cannot round to 0 or below; where it overflows, the infinity has the right sign. (The compiled code therefore must not flush
denormals between this Sub and the comparison; ``fuse_threshold`` removes the Sub on integers.) x must not be NaN.
The residue is equal to s but for the rounding of s − y: taking s is what the network was trained to mean.

Does not fire for dtypes other than float32, for a comparison of two variables, for levels that are not opposite (0
and 1) in front of anything else, and for tensors of unknown shape. A `Sin` before the sign of an activation stays, in float.

The output tensor keeps its name.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ...opset import DOMAIN
from ..base import Context, Pass, Status, add_constant, add_node
from ..graph import bypass, dead_nodes, remove_node
from .sign_idioms import Sign, match, near_miss
from .sign_residue import SameAs


class RecogniseSign(Pass):
    """See the module."""

    name: ClassVar[str] = "recognise_sign"
    requires: ClassVar[tuple[str, ...]] = ("fold_constants",)
    exact: ClassVar[bool] = False  # a straight-through residue rounds

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """Sweeps in graph order until nothing more matches: one idiom can be part of another."""
        changed, again = False, True
        while again:
            again = False
            for node in list(graph.nodes):
                if not node.outputs:  # removed in this sweep
                    continue
                found = match(node, ctx.options.sign_zero)
                if isinstance(found, Sign):
                    again |= _to_binarize(graph, ctx, node, found)
                elif isinstance(found, SameAs):
                    again |= _drop(graph, ctx, node, found)
            changed |= again
        for node in graph.nodes:
            reason = near_miss(node)
            if reason is not None:
                ctx.note(node, Status.FLOAT, reason)
        return changed


def _to_binarize(graph: gs.Graph, ctx: Context, node: gs.Node, found: Sign) -> bool:
    x = found.x
    if x.dtype is not None and np.dtype(x.dtype).kind in "iu":
        text = f"the sign of integers ('{x.name}' is {np.dtype(x.dtype)}), of which bits are not made: cast to float32 before"
        ctx.note(node, Status.FLOAT, f"{text} the sign, not after it")
        return False
    if x.dtype != np.float32 or x.shape is None or not all(isinstance(size, (int, np.integer)) for size in x.shape):
        ctx.note(
            node, Status.FLOAT, f"the sign of a tensor of type {x.dtype} and shape {x.shape}: not a static float32"
        )
        return False
    out = node.outputs[0]
    shape, dtype = list(x.shape), x.dtype
    remove_node(graph, node)
    if found.threshold is not None:
        limit = add_constant(ctx, f"{node.name}/threshold", found.threshold)
        x = add_node(graph, ctx, "Sub", [x, limit], stands_for=node, shape=shape, dtype=dtype)
    if found.negate:
        x = add_node(graph, ctx, "Neg", [x], stands_for=node, shape=shape, dtype=dtype)
    after = [(op, value) for op, value in (("Mul", found.coefficient), ("Add", found.offset)) if value is not None]
    value = add_node(
        graph, ctx, "Binarize", [x], stands_for=node, domain=DOMAIN, output=None if after else out, zero=found.zero
    )
    if found.coefficient is not None and (found.coefficient > 0).all():
        ctx.levels[value.name] = out.name
    for index, (op, number) in enumerate(after, start=1):
        operand = add_constant(ctx, f"{node.name}/level", number)
        end = out if index == len(after) else None
        value = add_node(graph, ctx, op, [value, operand], stands_for=node, output=end, shape=shape, dtype=dtype)
    chosen = ctx.options.sign_zero is not None and found.zero == ctx.options.sign_zero and node.op == "Sign"
    extra = f", sign(0) = {found.zero:+d} as chosen" if chosen else ""
    ctx.note(node, Status.FLOAT, f"a sign ({found.idiom}{extra}) that nothing reads as bits")
    _absorb(graph, ctx, found.nodes, f"part of the sign '{ctx.renamed.get(node.name, node.name)}'")
    return True


def _drop(graph: gs.Graph, ctx: Context, node: gs.Node, found: SameAs) -> bool:
    if not bypass(graph, node, found.tensor):
        return False
    ctx.note(node, Status.REMOVED, found.reason)
    _absorb(graph, ctx, found.nodes, f"part of the straight-through residue at '{node.name}'")
    return True


def _absorb(graph: gs.Graph, ctx: Context, nodes: list[gs.Node], reason: str) -> None:
    """Remove those of ``nodes`` that nothing needs any more, and what only they needed."""
    inner = {id(node) for node in nodes}
    for dead in dead_nodes(graph):
        part = id(dead) in inner
        ctx.note(dead, Status.FUSED, reason) if part else ctx.note(dead, Status.REMOVED, f"only {reason}")
        remove_node(graph, dead)
