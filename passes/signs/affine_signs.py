"""Activations that are signs times a scale plus a shift: what they are made of, and whether a layer can be freed of both.

A layer L (Conv, Gemm, MatMul) is linear: L(b·m) = L(b)·m for a scale m that is one number for each sum of L, and
L(b + t) = L(b) + L(t) for a constant t. So ``L(0.5·b + 0.5)``, a layer of {0, 1}, is ``0.5·L(b) + 0.5·L(1)``, and
XNOR-Net's ``L(sign(x)·mean|x|)`` is ``L(sign(x))·mean|x|`` (Rastegari et al., "XNOR-Net", ECCV 2016, section 3.2).

``read_affine`` follows the activation back to its ``Binarize`` through Mul, Div, Add, Sub and Neg, and through operations
that move elements; ``sink_affine`` rewrites the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from ..base import constant, consumers, producer, static_shape
from ..chain import RESHAPES
from ..windows import constant_pad, max_pool_window
from .sign_residue import is_binarize

_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Neg", "Sub"})
_MOVES = RESHAPES | {"MaxPool", "Pad", "Transpose"}
_DEPTH = 32
"""Longest path that is followed backwards."""


@dataclass(frozen=True)
class Post:
    """One operation on the value that was signs: ``v·p``, ``v/p``, ``v+p``, ``v−p`` or ``p−v``.

    ``operand``: p, a constant or a computed float32 tensor. ``shape``: its shape beside the running tensor, of the same
    rank (a computed one may have to be reshaped to it).
    """

    op: Literal["mul", "div", "add", "sub", "rsub"]
    operand: gs.Tensor
    shape: tuple[int, ...]

    @property
    def value(self) -> np.ndarray | None:
        """The operand in ``shape``, when it is constant."""
        found = constant(self.operand)
        return None if found is None else found.reshape(self.shape)

    @property
    def scales(self) -> bool:
        """Whether this is a multiplication or a division."""
        return self.op in ("mul", "div")


@dataclass(frozen=True)
class AffineSigns:
    """A tensor that is ``posts`` (in order) of the signs of ``binarize``, moved by ``moves`` (in order)."""

    binarize: gs.Node
    moves: tuple[gs.Node, ...]
    pad_values: tuple[int, ...]
    """For each move the sign that it pads with (0 where it pads nothing, or zeros)."""
    posts: tuple[Post, ...]


def read_affine(tensor: gs.Tensor) -> AffineSigns | str | None:
    """See ``tensor`` as an affine function of signs.

    A text says why it is not one although it comes from signs by arithmetic; None: it does not. Signs without any
    arithmetic have no ``posts``.
    """
    path: list[gs.Node] = []
    running: list[gs.Tensor] = []
    while not is_binarize(tensor):
        node = producer(tensor)
        if node is None or node.domain or node.op not in _ARITHMETIC | _MOVES or len(path) == _DEPTH:
            return None
        source = _live_input(node)
        if source is None:
            return None
        path.append(node)
        running.append(tensor)
        tensor = source
    binarize = producer(tensor)
    assert binarize is not None
    path.reverse()
    posts: list[Post] = []
    moves: list[gs.Node] = []
    pad_values: list[int] = []
    for node, output in zip(path, reversed(running), strict=True):
        if node.op in _ARITHMETIC:
            post = _post(node, tensor)
            if isinstance(post, str):
                return post
            posts.append(post)
        else:
            value = 0
            if posts:
                moved = _move(node, posts)
                if isinstance(moved, str):
                    return moved
                posts, value = moved
            elif node.op == "Pad":
                amounts = constant_pad(node)
                value = int(amounts.value) if not isinstance(amounts, str) and amounts.value in (-1, 1) else 0
            moves.append(node)
            pad_values.append(value)
        tensor = output
    return AffineSigns(binarize, tuple(moves), tuple(pad_values), tuple(posts))


def _live_input(node: gs.Node) -> gs.Tensor | None:
    """The input that the signs come through: of two computed operands the one that leads to a Binarize."""
    if node.op in _MOVES | {"Neg"}:
        return node.inputs[0]
    left, right = node.inputs
    if constant(left) is not None:
        return right if constant(right) is None else None
    if constant(right) is not None or (node.op == "Div" and constant(left) is None):
        return left
    sides = [side for side in (left, right) if leads_to_signs(side)]
    return sides[0] if len(sides) == 1 else None


def leads_to_signs(tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is a Binarize, seen through operations that move elements and arithmetic with constants."""
    for _ in range(_DEPTH):
        if is_binarize(tensor):
            return True
        node = producer(tensor)
        if node is None or node.domain or node.op not in _ARITHMETIC | _MOVES:
            return False
        if node.op in _MOVES | {"Neg"}:
            tensor = node.inputs[0]
            continue
        left, right = node.inputs
        if (constant(left) is None) == (constant(right) is None):
            # Two computed operands: a scale may be computed from signs as well, so the larger one decides.
            sizes = [int(np.prod(static_shape(side))) for side in (left, right)]
            if sizes[0] == sizes[1]:
                return False
            tensor = left if sizes[0] > sizes[1] else right
        else:
            tensor = right if constant(left) is not None else left
    return False


def _post(node: gs.Node, running: gs.Tensor) -> Post | str:
    """One arithmetic node, or why it cannot be moved behind a layer."""
    rank = len(static_shape(running))
    if node.op == "Neg":
        minus = gs.Constant(f"{node.name}/minus_one", np.full([1] * rank, -1, np.float32))
        return Post("mul", minus, (1,) * rank)
    first = node.inputs[0] is running
    operand = node.inputs[1 if first else 0]
    if np.dtype(operand.dtype) != np.float32 or operand is running:
        return f"{node.op} '{node.name}' joins its signs with '{operand.name}'"
    shape = static_shape(operand)
    if len(shape) > rank or static_shape(node.outputs[0]) != static_shape(running):
        return f"{node.op} '{node.name}' makes the tensor of its signs grow"
    shape = (1,) * (rank - len(shape)) + shape
    if node.op in ("Mul", "Div"):
        if node.op == "Div" and not first:
            return f"Div '{node.name}' divides by its signs"
        return Post("mul" if node.op == "Mul" else "div", operand, shape)
    if constant(operand) is None:
        return f"{node.op} '{node.name}' adds a computed tensor to its signs"
    if node.op == "Add":
        return Post("add", operand, shape)
    return Post("sub" if first else "rsub", operand, shape)


def _move(node: gs.Node, posts: Sequence[Post]) -> tuple[list[Post], int] | str:
    """The operations seen behind ``node`` in place of before it, and the sign that ``node`` pads with."""
    before, after, pad_sign = static_shape(node.inputs[0]), static_shape(node.outputs[0]), 0
    if node.op == "Pad":
        amounts = constant_pad(node)
        if isinstance(amounts, str):
            return amounts
        sign = padded_sign(posts, amounts.value)
        if sign is None:
            return f"Pad '{node.name}' pads scaled signs with {amounts.value:g}, which is the value of no sign"
        pad_sign = sign
    moved: list[Post] = []
    for post in posts:
        which = "scale" if post.scales else "shift"
        if node.op == "Transpose":
            perm = list(node.attrs.get("perm") or range(len(before))[::-1])
            if sum(size != 1 for size in post.shape) > 1:
                return f"the {which} '{post.operand.name}' of its signs varies along several axes of '{node.name}'"
            shape = tuple(post.shape[i] for i in perm)
        elif node.op in RESHAPES:
            single = all(size == 1 for size in post.shape)
            if not single and (any(size != 1 for size in post.shape[1:]) or after[:1] != before[:1]):
                return (
                    f"the {which} '{post.operand.name}' of its signs varies along an axis that '{node.name}' reshapes"
                )
            shape = (post.shape[0] if not single and after else 1, *[1] * (len(after) - 1))[: len(after)]
        else:
            if any(size != 1 for size in post.shape[2:]):
                return f"the {which} '{post.operand.name}' of its signs varies inside the window of '{node.name}'"
            if node.op == "MaxPool" and (reason := _pool_obstacle(node, post)):
                return reason
            shape = post.shape
        moved.append(Post(post.op, post.operand, shape))
    return moved, pad_sign


def _pool_obstacle(node: gs.Node, post: Post) -> str | None:
    """A maximum commutes with what rises; why this operation is not known to."""
    window = max_pool_window(node)
    if isinstance(window, str):
        return window
    if post.op == "rsub" or (post.scales and not is_nonnegative(post.operand)):
        return f"'{post.operand.name}' may turn the order of its signs round before MaxPool '{node.name}'"
    if post.op == "div" and constant(post.operand) is None:
        return f"'{post.operand.name}' may be zero before MaxPool '{node.name}'"
    return None


def is_nonnegative(tensor: gs.Tensor, depth: int = 8) -> bool:
    """Whether a float tensor can be proved to hold no negative number: Abs, Relu, squares, and their sums and means."""
    value = constant(tensor)
    if value is not None:
        return bool((value >= 0).all())
    node = producer(tensor)
    if node is None or node.domain or depth == 0:
        return False
    if node.op in ("Abs", "Relu", "Sigmoid", "Softplus", "Exp", "Softmax", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
        return True
    if node.op in ("Add", "Mul", "Div", "Max"):
        return all(is_nonnegative(side, depth - 1) for side in node.inputs)
    passes = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "AveragePool", "GlobalAveragePool", "Sqrt", "Expand"}
    return node.op in passes | RESHAPES and is_nonnegative(node.inputs[0], depth - 1)


def padded_sign(posts: Sequence[Post], value: float) -> int | None:
    """The p of 0, −1 and +1 that ``posts`` turn into ``value``, or None. A computed scale keeps only 0."""
    for sign in (0, -1, 1):
        running: np.ndarray = np.float32(sign).reshape(1)
        for post in posts:
            operand = post.value
            if operand is None:
                if (running != 0).any():
                    break
                continue  # 0 times any finite scale
            with np.errstate(all="ignore"):
                running = apply_post(post.op, running, operand.reshape(-1))
        else:
            if (running == np.float32(value)).all():
                return sign
    return None


def apply_post(op: str, v: np.ndarray, p: np.ndarray) -> np.ndarray:
    """One operation, in float32 as NumPy (and IEEE 754) rounds it."""
    if op == "mul":
        return v * p
    if op == "div":
        return v / p
    if op == "add":
        return v + p
    return v - p if op == "sub" else p - v


def sinkable(node: gs.Node) -> AffineSigns | str | None:
    """The activation of a Conv, Gemm or MatMul as an affine function of signs that the layer can be freed of; why it
    cannot; or None: it is no such function, or signs as they are."""
    if constant(node.inputs[1]) is None or (node.op == "Gemm" and node.attrs.get("transA", 0)):
        return None
    found = read_affine(node.inputs[0])
    if found is None or isinstance(found, str) or not found.posts:
        return found if isinstance(found, str) else None
    for post in found.posts:
        varying = [axis for axis, count in enumerate(post.shape) if count != 1]
        if node.op == "Conv":
            allowed = [0] + [1] * is_depthwise(node) if post.scales else list(range(1, len(post.shape)))
        else:
            last = len(post.shape) - 1
            allowed = list(range(last)) if post.scales else [last]
        wrong = [axis for axis in varying if axis not in allowed]
        if wrong:
            what = "scale" if post.scales else "shift"
            return (
                f"the {what} '{post.operand.name}' of its signs varies along axis {wrong[0]}: "
                f"what it sums is no {'multiple of a sum of signs' if post.scales else 'sum of signs and a constant'}"
            )
    return found


def is_depthwise(node: gs.Node) -> bool:
    """Whether a Conv sums over one input channel at a time."""
    return node.op == "Conv" and int(node.attrs.get("group", 1)) == static_shape(node.inputs[0])[1]


def feeds_layer(tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` reaches a Conv, Gemm or MatMul with constant weights by what ``read_affine`` can follow back."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        current = waiting.pop()
        for node in consumers(current):
            if node.domain:
                continue
            if node.op in ("Conv", "Gemm", "MatMul"):
                if node.inputs[0] is current and constant(node.inputs[1]) is not None:
                    return True
            elif node.op in _ARITHMETIC | _MOVES and id(node) not in seen:
                output = node.outputs[0]
                grows = node.op in _ARITHMETIC and output.shape != current.shape
                if not grows:
                    seen.add(id(node))
                    waiting.append(output)
    return False
