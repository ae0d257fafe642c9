"""Random binary networks through every pass: the packed model gives exactly what the original gives.

Layers have random kernels, strides, dilations, pads, groups, residuals, pools, activations (non-monotone ones too), batch
norms with ties and zero scales, and signs with each value of sign(0). No difference is allowed in any output.
"""

import numpy as np
import pytest

from tests.passes.mini import RealNet, compiled, count


class Walk:
    """A network that grows layer by layer; ``size`` is the [C, H, W] of ``y``."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = [int(v) for v in self.rng.integers([1, 5, 5], [40, 14, 14])]
        self.net = RealNet((int(self.rng.integers(1, 3)), *self.size), seed)
        self.y = "x"

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pool(self, x: str) -> str:
        if min(self.size[1:]) < 4:
            return x
        self.size[1:] = [(v - 1) // 2 + 1 for v in self.size[1:]]
        return self.net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def activation(self, x: str) -> str:
        slopes = self.rng.choice([-0.3, 0, 0.25, 1.5], (self.size[0], 1, 1)).astype(np.float32)
        choices = [("Relu",), ("PRelu", slopes), ("Clip", np.float32(-1), np.float32(1)), None, None]
        chosen = choices[self.rng.integers(len(choices))]
        return x if chosen is None else self.net.node(chosen[0], x, *chosen[1:])

    def norm(self, x: str) -> str:
        channels, fixed = self.size[0], {}
        if self.chance(0.3):  # exact ties: integer means
            fixed = {"beta": np.zeros(channels), "mean": np.round(3 * self.net.floats(channels))}
        if self.chance(0.1):
            fixed["gamma"] = self.rng.choice([0.0, -0.0, 1, -1], channels)
        return self.net.bn(x, channels, **fixed)

    def residual(self) -> None:
        channels = self.size[0]
        x = self.net.conv(self.net.sign(self.y, int(self.rng.integers(-1, 2))), channels, channels, pads=[1] * 4)
        self.y = self.net.node("Add", self.norm(self.activation(x)), self.y)

    def plain(self) -> None:
        rng, cin = self.rng, self.size[0]
        sign = self.net.sign(self.y, int(rng.integers(-1, 2)))
        if self.chance(0.2):
            sign = self.pool(sign)
        group = cin if self.chance(0.2) else 1
        out = group * int(rng.integers(1, 3)) if group > 1 else int(rng.integers(1, 40))
        kernel, pads = int(rng.integers(1, 4)), [int(v) for v in rng.integers(0, 3, 4)]
        strides, dilations = ([int(v) for v in rng.integers(1, 3, 2)] for _ in range(2))
        padded = [self.size[1] + pads[0] + pads[2], self.size[2] + pads[1] + pads[3]]
        dilations = [d if d * (kernel - 1) < p else 1 for d, p in zip(dilations, padded, strict=True)]
        kernel = kernel if kernel <= min(padded) else 1
        x = self.net.conv(
            sign, cin, out, (kernel, kernel), group=group, bias=self.chance(0.3), pads=pads, strides=strides,
            dilations=dilations,
        )  # fmt: skip
        reach = [d * (kernel - 1) + 1 for d in dilations]
        self.size = [out, *((p - r) // s + 1 for p, r, s in zip(padded, reach, strides, strict=True))]
        steps = [self.activation, self.norm] + ([self.pool] if self.chance(0.4) else [])
        for i in rng.permutation(len(steps)):
            x = steps[i](x)
        self.y = x

    def classify(self) -> None:
        zero, count = int(self.rng.integers(-1, 2)), int(np.prod(self.size))
        flatten_first = self.chance(0.5)
        x = self.net.node("Flatten", self.y) if flatten_first else self.net.sign(self.y, zero)
        x = self.net.sign(x, zero) if flatten_first else self.net.node("Flatten", x)
        # Eighths, so that the sum is exact in any order: see split_bias.
        bias = (np.round(self.net.floats(7) * 8) / 8).astype(np.float32)
        self.y = self.net.node("Gemm", x, self.net.signs(7, count), bias, transB=1)


@pytest.mark.parametrize("seed", range(40))
def test_random_net(seed):
    walk = Walk(seed)
    for _ in range(int(walk.rng.integers(2, 6))):
        (walk.residual if walk.chance(0.3) else walk.plain)()
    if walk.chance(0.5):
        walk.classify()
    found = count(compiled(walk.net, walk.y, runs=2))
    assert found["BinaryConv"] >= 2 and "Conv" not in found and "Gemm" not in found
