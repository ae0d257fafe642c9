"""Counting ones: compressor trees of pipelined adders, and the cheapest such tree by dynamic programming.

A tree adds up bits. Its leaves are lookup tables of four inputs, its inner nodes carry chains that add two numbers at one
table a bit; a chain also has a carry input, which takes one more bit of weight one (free where the chain would otherwise
end in the first half of a slice). Every node ends in registers, so the clock sees one chain at a time.

The bits of a matrix-vector product are ``x xnor w``. Where the weights come from a memory, two of them and their two
inputs fit a table of four inputs: sum and carry of a half adder cost two tables for two products, and the XNORs nothing.
Where the weights are constants, the sum of three products is a function of three inputs, one of eight, and all rows of the
matrix share it: a leaf costs a row nearly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .technology import Pair, Technology

Weights = Literal["memory", "constant"]

_BALANCE = 0.05
"""Price, in tables, of a register that only delays: it takes no table, but a place in a slice."""
_FULL_SEARCH = 320
"""Up to this many bits every split is tried, beyond it those near the middle."""


def width_of(most: int) -> int:
    """Bits of a number from 0 to ``most``."""
    return max(1, most.bit_length())


@dataclass(frozen=True)
class Tree:
    """How ``bits`` bits are added: a leaf, or ``left + right`` and a carry bit. ``price``: tables, and a bit for delays."""

    bits: int
    price: float
    depth: int
    left: Tree | None = None
    right: Tree | None = None
    carry: bool = False

    @property
    def width(self) -> int:
        """Bits of the sum."""
        return width_of(self.bits)

    @property
    def tables(self) -> int:
        """LUT4s of the adders and, with weights from memory, of the leaves."""
        if self.left is None or self.right is None:
            return self.bits if self.depth else 0
        return self.left.tables + self.right.tables + adder_tables(self.left.bits, self.right.bits, self.carry)

    def groups(self) -> Iterator[int]:
        """Sizes of the groups of bits that enter: leaves left to right, each node's carry after its operands."""
        if self.left is None or self.right is None:
            yield self.bits
            return
        yield from self.left.groups()
        yield from self.right.groups()
        if self.carry:
            yield 1


def chain_tables(positions: int) -> int:
    """LUT4s of a carry chain: a CCU2C of the ECP5 holds two positions and counts as two."""
    return 2 * ((positions + 1) // 2)


def weighing(planes: int) -> int:
    """Cycles that it takes to add the sums of planes."""
    return (planes - 1).bit_length()


def adder_tables(left: int, right: int, carry: bool) -> int:
    """LUT4s of the adder of numbers up to ``left`` and ``right`` and perhaps a carry."""
    wide = max(width_of(left), width_of(right))
    return chain_tables(carry + wide + (width_of(left + right + carry) > wide))


_LEAVES: dict[Weights, tuple[Tree, ...]] = {
    "memory": (Tree(1, 1, 1), Tree(2, 2, 1)),
    "constant": (Tree(1, 0, 0), Tree(3, 0.2, 0)),
}


@cache
def best_tree(bits: int, weights: Weights) -> Tree:
    """The tree over ``bits`` bits that takes the fewest tables."""
    found = [leaf for leaf in _LEAVES[weights] if leaf.bits == bits]
    for carry in (False, True):
        rest = bits - carry
        middle = (rest + 1) // 2
        most = rest - 1 if bits <= _FULL_SEARCH else min(rest - 1, middle + 32)
        for first in range(middle, most + 1):
            left, right = best_tree(first, weights), best_tree(rest - first, weights)
            depth = max(left.depth, right.depth)
            late = (depth - left.depth) * left.width + (depth - right.depth) * right.width + carry * depth
            price = left.price + right.price + adder_tables(left.bits, right.bits, carry) + _BALANCE * late
            found.append(Tree(bits, price, depth + 1, left, right, carry))
    return min(found, key=lambda tree: (tree.price, tree.depth))


class ProcessingElement(wiring.Component):
    """One row: ``result = offset + sum over the words of a vector of (number of bits where x and w agree)``.

    A word may enter with every cycle. ``valid``, ``fresh`` and ``offset`` belong to the word whose sum is ready,
    ``tree.depth`` cycles after it entered; the sum starts there, where ``fresh``, at ``offset``. (Bits beyond those of the
    count make a comparison: begin at 2^n − threshold, and bit n of the result says whether the count reached it.) The
    result with that word is there a cycle later. With constant weights ``x`` are the sums of the tree's groups, made by
    ``Leaves``, two bits for a group of three.

    Inputs of several ``planes`` are numbers, bit i of each worth 2^i: every plane has a tree, and with it the sum is of
    x where w is 1 and of 2^planes − 1 − x where it is 0. Inputs then lie number by number; weights come from memory.
    With ``masks`` (weights from memory too) an x whose w is 0 adds nothing.
    """

    def __init__(
        self, bits: int, width: int, weights: Weights, technology: Technology, planes: int = 1, masks: bool = False
    ) -> None:
        self.masks = masks
        self.tree, self.technology, self.weights, self.planes = best_tree(bits, weights), technology, weights, planes
        wide = bits * planes if weights == "memory" else sum(map(width_of, self.tree.groups()))
        ports = {"x": In(wide), "valid": In(1), "fresh": In(1), "offset": In(width), "result": Out(width)}
        if weights == "memory":
            ports["w"] = In(bits)
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        self._count = 0
        totals: list[tuple[Value, int, int]] = []
        for plane in range(self.planes):
            self._place, self._inputs = 0, self.x if self.planes == 1 else Cat(*self.x[plane :: self.planes])
            totals.append((self._build(m, self.tree), plane, self.tree.bits))
        total = self._weigh(m, totals)
        go_on = Signal()
        m.d.comb += go_on.eq(~self.fresh)
        reached = self.technology.accumulate(m, total, self.result, go_on, self.offset, "reached")
        with m.If(self.valid):
            m.d.sync += self.result.eq(reached)
        return m

    def _weigh(self, m: Module, totals: list[tuple[Value, int, int]]) -> Value:
        """The sum of totals, each with the logarithm of its worth and the most it can be: neighbours in pairs, a cycle a level.

        ``weighing`` says how many levels there are.
        """
        while len(totals) > 1:
            level = []
            for (low, worth, low_most), (high, above, high_most) in zip(totals[::2], totals[1::2], strict=False):
                shift, name = above - worth, f"weighed_{self._count}"
                most = low_most + (high_most << shift)
                upper = self.technology.add(m, low[shift:], high, width_of(most) - shift, None, name)
                total = self._register(m, Cat(low[:shift], upper), width_of(most), "weighed")
                level.append((total, worth, most))
            if len(totals) % 2:
                value, worth, most = totals[-1]
                level.append((self._delay(m, value, 1), worth, most))
            totals = level
        return totals[0][0]

    def _register(self, m: Module, value: Value, width: int, name: str) -> Signal:
        register = Signal(width, name=f"{name}_{self._count}", reset_less=True)
        self._count += 1
        m.d.sync += register.eq(value)
        return register

    def _delay(self, m: Module, value: Value, cycles: int) -> Value:
        for _ in range(cycles):
            value = self._register(m, value, len(value), "wait")
        return value

    def _take(self, bits: int) -> tuple[Value, Value]:
        """The next ``bits`` inputs and weights."""
        start, self._place = self._place, self._place + bits
        return self._inputs[start : self._place], self.w[start : self._place] if self.weights == "memory" else Const(
            0, 1
        )

    def _build(self, m: Module, tree: Tree) -> Value:
        """The sum of the next groups, ``tree.depth`` cycles later."""
        if tree.left is None or tree.right is None:
            if self.weights == "constant":
                return self._take(tree.width)[0]
            x, w = self._take(tree.bits)
            same = x & w if self.masks else ~(x ^ w)
            return self._register(m, same if tree.bits == 1 else Cat(same[0] ^ same[1], same.all()), tree.width, "few")
        left, right = self._build(m, tree.left), self._build(m, tree.right)
        below = tree.depth - 1
        left = self._delay(m, left, below - tree.left.depth)
        right = self._delay(m, right, below - tree.right.depth)
        carry: Value | Pair | None = None
        if tree.carry:
            x, w = (self._delay(m, value, below) for value in self._take(1))
            carry = x & w if self.masks else (x, w) if self.weights == "memory" else x
        name = f"sum_{self._count}"
        return self._register(m, self.technology.add(m, left, right, tree.width, carry, name), tree.width, "sum")


class Leaves(wiring.Component):
    """What all rows of constant weights share: the sum of every group of inputs under every pattern of weights in use.

    ``x``: the vector. ``rows[i]`` is what row i needs, a cycle later, in the order of the tree's groups.
    """

    def __init__(self, weights: list[list[int]], tree: Tree) -> None:
        self.weights, self.groups = weights, list(tree.groups())
        self.wide = sum(map(width_of, self.groups))
        super().__init__({"x": In(len(weights[0])), "rows": Out(self.wide).array(len(weights))})

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        parts: list[list[Value]] = [[] for _ in self.weights]
        start = 0
        for size in self.groups:
            inputs = self.x[start : start + size]
            made: dict[tuple[int, ...], Signal] = {}
            for row, weights in enumerate(self.weights):
                pattern = tuple(weights[start : start + size])
                if pattern not in made:
                    name = f"sum_{start}_{''.join(map(str, pattern))}"
                    made[pattern] = Signal(width_of(size), name=name, reset_less=True)
                    agree = [inputs[i] if bit else ~inputs[i] for i, bit in enumerate(pattern)]
                    if size == 1:
                        m.d.sync += made[pattern].eq(agree[0])
                    else:
                        a, b, c = agree
                        m.d.sync += made[pattern].eq(Cat(a ^ b ^ c, (a & b) | (c & (a | b))))
                parts[row].append(made[pattern])
            start += size
        m.d.comb += [port.eq(Cat(*values)) for port, values in zip(self.rows, parts, strict=True)]
        return m
