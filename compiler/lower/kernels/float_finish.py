"""What a float layer's kernel does with its sums before it stores them: batch normalization and activation, channel by channel.

Attribute ``epilogue`` lists the steps as ``[operation, number of parameters]`` (see ``EpilogueStep``); their parameters, one
number a channel each, are the last arguments of the call.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from ..kernel import KernelCall
from .common import Expr, Flat, Function
from .outputs import apply


class Finish:
    """The steps of one call."""

    def __init__(self, call: KernelCall) -> None:
        self.steps: list[tuple[str, int]] = [(op, count) for op, count in call.attrs.get("epilogue", [])]
        self.inputs = len(call.inputs) - sum(count for _, count in self.steps)
        """Arguments before the parameters."""
        self.parameters: list[Flat] = []

    def declare(self, fn: Function) -> None:
        """The parameters, after all other inputs."""
        total = sum(count for _, count in self.steps)
        self.parameters = [fn.input(self.inputs + i) for i in range(total)]

    def apply(self, value: Expr, load: Callable[[Flat], Expr], lanes: int) -> Expr:
        """``value`` after all steps. ``load`` gives a parameter of the channels of ``value``."""
        given = iter(self.parameters)
        for op, count in self.steps:
            p, q = ([load(next(given)) for _ in range(count)] + [None, None])[:2]
            value = T.Bind(apply(op, value, p, q, lanes))
        return value
