"""Small binary attention blocks, as exporters write them, for the tests of the passes."""

from __future__ import annotations

import numpy as np

from .mini import RealNet


class Attention(RealNet):
    """Heads of ±1 queries, keys and values from binary layers; methods for the parts that differ between systems."""

    def __init__(self, tokens: int = 6, heads: int = 2, size: int = 8, seed: int = 1) -> None:
        super().__init__((1, tokens, heads * size), seed)
        self.tokens, self.heads, self.size = tokens, heads, size
        self.width = heads * size

    def linear(self, x: str, zero: int = 1) -> str:
        """Sign, ±1 weights, scale and bias."""
        y = self.node("MatMul", self.sign(x, zero), self.signs(self.width, self.width))
        return self.node("Add", self.node("Mul", y, np.float32(0.3)), self.floats(self.width))

    def split(self, x: str, perm: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        """``[1, S, H·D]`` → heads."""
        cut = self.node("Reshape", x, np.array([1, self.tokens, self.heads, self.size]))
        return self.node("Transpose", cut, perm=list(perm))

    def join(self, x: str) -> str:
        """``[1, H, S, D]`` → ``[1, S, H·D]``."""
        return self.node(
            "Reshape", self.node("Transpose", x, perm=[0, 2, 1, 3]), np.array([1, self.tokens, self.width])
        )

    def operands(self, zero: int = 1) -> tuple[str, str, str]:
        """Signs of query, key (transposed) and value."""
        q, k, v = (self.linear("x") for _ in range(3))
        heads = self.split(q), self.split(k, (0, 2, 3, 1)), self.split(v)
        return tuple(self.sign(x, zero) for x in heads)  # type: ignore[return-value]

    def scores(self, q: str, k: str) -> str:
        """Product over the root of the size."""
        return self.node("Div", self.node("MatMul", q, k, name="scores"), np.float32(np.sqrt(self.size)))
