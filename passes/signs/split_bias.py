"""``split_bias``: a Gemm of signs keeps only its product; what it scales and adds becomes nodes of its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..base import Context, Pass, Status, add_constant, add_node, constant, static_shape
from ..chain import original_name
from .binary_layer import gemm_extras, product_of_signs


class SplitBias(Pass):
    """``Gemm(x, w, c)`` with ±1 activations and weights → ``Gemm(x, w) → (Mul by alpha) → (Add beta·c)``.

    It fires on the Gemms that ``pack`` packs, and is a pass of its own since it rounds: the product of signs is an exact
    integer, but ONNX Runtime's Gemm adds ``c`` before it has summed all of a row longer than 256 elements and rounds for
    each further part. Here ``c`` is added once, to the exact sum, so the result is the correctly rounded one, and what
    an integer accumulator gives. It can differ from the Gemm's by a few ulp.

    It does not fire for a ``c`` that is computed at run time and scaled (beta other than 1), which then stays float.
    """

    name: ClassVar[str] = "split_bias"
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, ctx: Context) -> bool:
        """See the class."""
        changed = False
        for node in [node for node in graph.nodes if node.op == "Gemm" and not node.domain]:
            alpha, beta, third = gemm_extras(node)
            if (alpha == 1 and third is None) or not product_of_signs(node):
                continue
            if third is not None and beta != 1 and constant(third) is None:
                ctx.note(node, Status.FLOAT, f"beta = {beta:g} scales '{third.name}', which is computed at run time")
                continue
            self._split(graph, ctx, node, alpha, beta, third)
            changed = True
        return changed

    @staticmethod
    def _split(
        graph: gs.Graph, ctx: Context, node: gs.Node, alpha: float, beta: float, third: gs.Tensor | None
    ) -> None:
        output, base = node.outputs[0], original_name(ctx, node)
        shape = static_shape(output)
        value: gs.Tensor = gs.Variable(ctx.fresh(f"{base}/product"), dtype=np.float32, shape=list(shape))
        ctx.made.add(value.name)
        node.outputs = [value]
        node.inputs = list(node.inputs)[:2]
        node.attrs.pop("alpha", None)
        node.attrs.pop("beta", None)
        steps: list[tuple[str, gs.Tensor]] = []
        if alpha != 1:
            steps.append(("Mul", add_constant(ctx, f"{base}/alpha", np.array(alpha, np.float32))))
        if third is not None:
            addend = constant(third)
            if addend is not None and beta != 1:
                third = add_constant(ctx, f"{base}/bias", addend * np.float32(beta))
            steps.append(("Add", third))
        for i, (op, operand) in enumerate(steps):
            last = output if i == len(steps) - 1 else None
            value = add_node(
                graph, ctx, op, [value, operand], stands_for=node, output=last, shape=shape, dtype=np.float32
            )
