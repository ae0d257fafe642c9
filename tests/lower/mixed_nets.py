"""Random networks of everything at once: float layers, signs and quantizers, weights of few bits, residuals, attention.

``tests/passes/test_random_nets.py`` has networks without rounding, whose outputs must be equal; these are for validation,
which knows what rounding may do. The same seed gives the same network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from tests.passes.mini import RealNet


class Mixed(ABC):
    """A network that grows from its input ``x`` to ``y``; ``channels`` counts those of ``y``."""

    steps: tuple[str, ...]
    """Methods that add a piece each; some twice, so that they come more often."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.batch = int(self.rng.integers(1, 3))
        self.net, self.y, self.channels = RealNet((), seed), "x", 1

    def grow(self) -> Mixed:
        """One to five pieces and an end."""
        for _ in range(self.whole(1, 6)):
            getattr(self, str(self.rng.choice(self.steps)))()
        self.end()
        return self

    @abstractmethod
    def end(self) -> None:
        """What most networks have at their end."""

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def one_of(self, choices: Sequence[int]) -> int:
        return int(self.rng.choice(choices))

    # weights: ``shape`` has the output channels at ``axis``

    def weights(self, *shape: int, axis: int = 0) -> np.ndarray:
        """Signs (with a scale, or one a channel), ternary numbers, or integers of up to 4 bits times a scale."""
        kind, scale = self.whole(0, 5), np.float32(self.rng.uniform(0.01, 0.2))
        if kind < 3:
            each = [1] * len(shape)
            each[axis] = shape[axis]
            scales = [np.float32(1), scale, self.rng.uniform(0.01, 0.2, each)]
            return (self.net.signs(*shape) * scales[kind]).astype(np.float32)
        largest = 1 if kind == 3 else 2 ** self.whole(1, 4) - 1
        levels = self.rng.integers(-largest, largest + 1, shape).astype(np.float32)
        np.moveaxis(levels, axis, 0).reshape(shape[axis], -1)[:, 0] = largest  # no channel of zeros
        return levels * scale

    def floats(self, *shape: int) -> np.ndarray:
        return (self.net.floats(*shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)

    # activations

    def binarized(self, x: str, probability: float = 0.6) -> str:
        return self.net.sign(x, self.whole(-1, 2)) if self.chance(probability) else self.quantized(x)

    def quantized(self, x: str) -> str:
        """1 to 4 bits, as DoReFa, PACT or a fake quantizer with zero among its levels has them."""
        net, bits, form, reach = self.net, self.whole(1, 5), self.whole(0, 3), np.float32(self.rng.uniform(0.5, 3))
        top = 2**bits - 1
        if form == 0:
            x = net.node("Mul", net.node("Clip", x, np.float32(0), reach), np.float32(top / reach))
            return net.node("Mul", net.node("Round", x), np.float32(reach / top))
        if form == 1:
            low, high, step = np.float32(-(2 ** (bits - 1))), np.float32(max(1, 2 ** (bits - 1) - 1)), reach / top
            return net.node("Mul", net.node("Clip", net.node("Round", net.node("Div", x, step)), low, high), step)
        x = net.node("Mul", net.node("Clip", x, np.float32(0), np.float32(1)), np.float32(top))
        return net.node("Div", net.node("Round", x), np.float32(top))

    def activated(self, x: str, per_channel: tuple[int, ...]) -> str:
        """A float function, or none. ``per_channel``: the shape of a slope for each channel."""
        net, slope = self.net, self.rng.choice([-0.3, 0, 0.25, 1.5], per_channel).astype(np.float32)
        name = str(
            self.rng.choice(["", "", "Relu", "PRelu", "Clip", "LeakyRelu", "HardSwish", "Tanh", "Gelu", "RPRelu"])
        )
        if name == "Gelu":
            gate = net.node("Add", net.node("Erf", net.node("Div", x, np.float32(2**0.5))), np.float32(1))
            return net.node("Mul", net.node("Mul", x, gate), np.float32(0.5))
        if name == "RPRelu":
            x = net.node("PRelu", net.node("Sub", x, net.floats(*per_channel)), slope)
            return net.node("Add", x, net.floats(*per_channel))
        more = {"PRelu": [slope], "Clip": [np.float32(-1), np.float32(1)]}.get(name, [])
        return net.node(name, x, *more) if name else x


class Maps(Mixed):
    """Feature maps ``[N, C, H, W]``."""

    steps = ("float_layer", "layer", "layer", "layer", "residual", "residual", "pool", "branches")

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.channels, self.size = self.whole(1, 9), [self.whole(7, 33), self.whole(7, 33)]
        self.net.shape = (self.batch, self.channels, *self.size)
        if self.chance(0.7):
            self.float_layer()

    def _normed(self, x: str) -> str:
        return self.net.bn(x, self.channels) if self.chance(0.8) else x

    def _activated(self, x: str) -> str:
        return self.activated(x, (self.channels, 1, 1))

    def _conv(self, x: str, binary: bool) -> str:
        rng, cin, same = self.rng, self.channels, self.chance(0.6)
        kernel = [self.whole(1, 6)] * 2 if same else [self.whole(1, 6), self.whole(1, 6)]
        pads = [kernel[0] // 2, kernel[1] // 2] * 2 if same else [int(v) for v in rng.integers(0, 3, 4)]
        strides = [self.whole(1, 3)] * 2 if same else [self.whole(1, 3), self.whole(1, 3)]
        dilations = [1 + self.chance(0.1), 1 + self.chance(0.1)]
        padded = [self.size[0] + pads[0] + pads[2], self.size[1] + pads[1] + pads[3]]
        for i in range(2):
            if dilations[i] * (kernel[i] - 1) >= padded[i]:
                kernel[i] = dilations[i] = 1
        group = cin if self.chance(0.15) else 2 if cin % 2 == 0 and self.chance(0.1) else 1
        cout = group * self.whole(1, 3) if group > 1 else self.one_of([1, 3, 8, 16, 20, 32, 33, 64, 70, 96, 128])
        made = self.weights if binary else self.floats
        w, bias = made(cout, cin // group, *kernel), [self.net.floats(cout)] if self.chance(0.4) else []
        self.channels = cout
        spans = zip(padded, dilations, kernel, strides, strict=True)
        self.size = [(p - d * (k - 1) - 1) // s + 1 for p, d, k, s in spans]
        return self.net.node(
            "Conv", x, w, *bias, group=group, kernel_shape=kernel, pads=pads, strides=strides, dilations=dilations
        )

    def float_layer(self) -> None:
        self.y = self._activated(self._normed(self._conv(self.y, binary=False)))

    def layer(self) -> None:
        x = self._conv(self.binarized(self.y), binary=True)
        steps = [self._activated, self._normed, *([self._pooled] if self.chance(0.2) else [])]
        for i in self.rng.permutation(len(steps)):
            x = steps[i](x)
        self.y = x

    def residual(self) -> None:
        w = self.weights(self.channels, self.channels, 3, 3)
        x = self.net.node("Conv", self.binarized(self.y, 0.7), w, pads=[1] * 4)
        self.y = self._activated(self.net.node("Add", self._normed(self._activated(self._normed(x))), self.y))

    def _pooled(self, x: str) -> str:
        if min(self.size) < 4:
            return x
        window, stride, pad = self.whole(2, 4), self.whole(1, 3), self.whole(0, 2)
        self.size = [(v + 2 * pad - window) // stride + 1 for v in self.size]
        attrs = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        if self.chance(0.5):
            return self.net.node("MaxPool", x, **attrs)
        return self.net.node("AveragePool", x, count_include_pad=self.whole(0, 2), **attrs)

    def pool(self) -> None:
        self.y = self._pooled(self.y)

    def branches(self) -> None:
        sizes, cin, sign = [self.one_of([8, 16, 24, 32]) for _ in range(2)], self.channels, self.net.sign(self.y)
        ends = [self.net.bn(self.net.conv(sign, cin, size, (1, 1)), size) for size in sizes]
        self.y, self.channels = self.net.node("Concat", *ends, axis=1), sum(sizes)

    def end(self) -> None:
        if self.chance(0.4):
            return
        mean = self.chance(0.5)
        count = self.channels * (1 if mean else int(np.prod(self.size)))
        y = self.net.node("Flatten", self.net.node("GlobalAveragePool", self.y) if mean else self.y)
        for _ in range(self.whole(1, 3)):
            classes, kind = self.one_of([1, 7, 10, 64, 100]), self.whole(0, 3)
            x = y if kind == 0 else self.binarized(y)
            w = (self.floats if kind == 0 else self.weights)(classes, count)
            bias = [self.net.floats(classes)] if self.chance(0.5) else []
            y, count = self.net.node("Gemm", x, w, *bias, transB=1), classes
        self.y = self.net.node("Softmax", y, axis=-1) if self.chance(0.3) else y


class Rows(Mixed):
    """Sequences ``[N, T, F]``: feed-forward blocks, attention, convolutions over time."""

    steps = ("forward", "attention", "attention", "over_time")

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.channels, self.length = self.one_of([8, 12, 16, 24, 32, 40, 64]), self.whole(2, 20)
        self.net.shape = (self.batch, self.length, self.channels)

    def _dense(self, x: str, count: int) -> str:
        w = self.floats(self.channels, count) if self.chance(0.15) else self.weights(self.channels, count, axis=1)
        y = self.net.node("MatMul", self.binarized(x) if self.chance(0.85) else x, w)
        return self.net.node("Add", y, self.net.floats(count)) if self.chance(0.7) else y

    def _joined(self, y: str) -> None:
        """Residual and norm."""
        y = self.net.node("Add", y, self.y) if self.chance(0.8) else y
        scale, shift = self.net.floats(self.channels), self.net.floats(self.channels)
        if self.chance(0.4):
            y = self.net.node("LayerNormalization", y, scale, shift, axis=-1)
        elif self.chance(0.6):
            y = self.net.node("Add", self.net.node("Mul", y, scale), shift)
        self.y = y

    def forward(self) -> None:
        outer, inner = self.channels, self.one_of([16, 32, 48, 96])
        y = self.activated(self._dense(self.y, inner), (inner,))
        self.channels = inner
        y = self._dense(y, outer)
        self.channels = outer
        self._joined(y)

    def attention(self) -> None:
        net, heads = self.net, self.one_of([h for h in (1, 2, 4) if self.channels % h == 0])
        size = self.channels // heads

        def split(x: str, perm: list[int]) -> str:
            x = net.node("Reshape", x, np.int64([self.batch, self.length, heads, size]))
            return net.node("Transpose", x, perm=perm)

        perms = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (split(self._dense(self.y, self.channels), perm) for perm in perms)
        if self.chance(0.7):
            q, k = net.sign(q, self.whole(-1, 2)), net.sign(k, self.whole(-1, 2))
        scores, form = net.node("Div", net.node("MatMul", q, k), np.float32(np.sqrt(size))), self.whole(0, 4)
        if form == 1:
            above = net.node("GreaterOrEqual", scores, np.float32(self.rng.choice([0, 0.1])))
            weights = net.node("Cast", above, to=1)
        else:
            weights = net.node("Softmax", scores, axis=-1)
            weights = self.quantized(weights) if form == 2 else net.node("Round", weights) if form == 3 else weights
        y = net.node("MatMul", weights, self.binarized(v) if self.chance(0.6) else v)
        y = net.node("Transpose", y, perm=[0, 2, 1, 3])
        y = net.node("Reshape", y, np.int64([self.batch, self.length, self.channels]))
        self._joined(self._dense(y, self.channels))

    def over_time(self) -> None:
        kernel, count = self.one_of([1, 3, 5]), self.channels
        x = self.binarized(self.net.node("Transpose", self.y, perm=[0, 2, 1]))
        x = self.net.node("Conv", x, self.weights(count, count, kernel), pads=[kernel // 2] * 2)
        self._joined(self.net.node("Transpose", self.net.bn(x, count, trailing=1), perm=[0, 2, 1]))

    def end(self) -> None:
        form = self.whole(0, 4)
        if form == 0:
            y = self.net.node("ReduceMean", self.y, np.int64([1]), keepdims=0)
        elif form == 1:
            y, self.channels = self.net.node("Flatten", self.y), self.channels * self.length
        elif form == 2:
            y = self.net.node("Gather", self.y, np.int64(0), axis=1)
        else:
            return
        self.y = self._dense(y, self.one_of([2, 10, 33]))
