"""What a layer of few bits costs on a core, by kernel: the model by which its kernel is chosen, in the open.

A kernel's rate is what it reaches on a 3x3 layer of 128 channels at 28x28, everything it does included: modelled for Arm
cores (``xnorc bench --cycles``), measured on a Zen 3 for AVX2 and on a Zen 4 for AVX-512, scaled by the width of the vector
units for the others.
``n`` planes of activations times ``m`` of weights take n·m passes over bits, about half as many of lookups, but one over
8-bit integers, for which every task decodes the planes of the weights that it uses. So bits win for few planes and
integers for many.

``xnorc explain MODEL --costs TARGET`` prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..targets import Target

if TYPE_CHECKING:
    import onnx

KERNELS = ("popcount", "table", "int8", "float32")
PAIR = 1.25
"""What a pass of lookups of two planes costs, in passes of one."""
DECODED_BYTES = 32 << 10
"""Decoded rows that a task keeps."""
MOST_DECODED, FEWEST_DECODED = 64, 16
"""Pixels of a task that decodes."""


@dataclass(frozen=True)
class Rates:
    """Products a cycle: of bits by counting and by table lookup (None: not on this core), of 8-bit integers (and by which
    instruction), of float32. ``decode``: weights decoded a cycle and plane."""

    popcount: float
    table: float | None
    int8: float
    instruction: str
    float32: float
    decode: float


_A53 = Rates(35.0, None, 1.6, "smull", 2.0, 1.5)
_A72 = Rates(80.0, None, 3.2, "smull", 4.0, 3.1)
_A76 = Rates(80.0, None, 17.0, "sdot", 8.0, 2.9)
_A7 = Rates(15.0, None, 0.8, "vmull", 1.0, 1.0)
_AVX2 = Rates(100.0, 150.0, 19.0, "pmaddwd", 14.0, 7.4)
_AVX512 = Rates(290.0, None, 47.0, "vpdpbusd", 14.0, 7.0)
_PLAIN = Rates(16.0, None, 1.0, "one by one", 1.0, 1.0)


def rates(target: Target) -> Rates:
    """Those of a target's core."""
    if target.arch == "aarch64":
        if "dotprod" in target.features:
            return _A76
        return _A53 if target.llvm.get("mcpu") == "cortex-a53" else _A72
    if target.arch == "arm":
        return _A7
    if target.arch == "x86_64" and "avx2" in target.features:
        return _AVX512 if "avx512vpopcntdq" in target.features else _AVX2
    return _PLAIN


@dataclass(frozen=True)
class Work:
    """A layer: planes of activations and of weights, terms of a sum, output channels, pixels."""

    x_planes: int
    w_planes: int
    terms: int
    channels: int
    pixels: int

    @property
    def macs(self) -> int:
        """Products of whole numbers."""
        return self.terms * self.channels * self.pixels


def pixels_decoded_for(terms: int) -> int:
    """Most pixels of a task that decodes rows of ``terms`` numbers."""
    return min(MOST_DECODED, max(FEWEST_DECODED, DECODED_BYTES // terms))


def cycles(target: Target, work: Work) -> dict[str, float | None]:
    """Kernel → cycles of a layer; None where this core or this layer has it not."""
    core, passes = rates(target), work.x_planes * work.w_planes
    looked_up = core.table if work.channels >= 32 and work.pixels > 1 else None
    # A table holds what two planes of activations count; byte lanes hold fewer of its entries.
    lookups = (work.x_planes // 2 * PAIR + work.x_planes % 2) * work.w_planes
    decoding = work.w_planes / (core.decode * min(work.pixels, pixels_decoded_for(work.terms)))
    return {
        "popcount": work.macs * passes / core.popcount,
        "table": None if looked_up is None else work.macs * lookups / looked_up,
        "int8": work.macs * (1 / core.int8 + decoding) if passes > 1 else None,
        "float32": work.macs / core.float32,
    }


def choose(target: Target, work: Work) -> str:
    """The kernel that a layer gets. ``float32`` is there for comparison: the passes decided that the layer is of few bits."""
    found = {name: cost for name, cost in cycles(target, work).items() if cost is not None and name != "float32"}
    return min(found, key=lambda name: found[name])


@dataclass(frozen=True)
class LayerCost:
    """A layer of a packed model: million cycles by kernel, and which kernel it gets."""

    layer: str
    op: str
    x_planes: int
    w_planes: int
    macs: int
    mcycles: dict[str, float | None]
    chosen: str
    instruction: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def layer_costs(model: onnx.ModelProto, target: Target) -> list[LayerCost]:
    """Every layer of bit planes of a packed model."""
    from onnx import helper

    from ..operations import tensor_types

    types = tensor_types(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("BinaryConv", "BinaryGemm", "BitSerialConv", "BitSerialGemm"):
            continue
        shape, x = weights.get(node.input[1]), types.get(node.input[0])
        out = types.get(node.output[0])
        if shape is None or x is None or out is None:
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        serial = node.op_type.startswith("BitSerial")
        terms = int(attrs["k"]) if "k" in attrs else _terms(shape[1:] if serial else shape, attrs)
        work = Work(
            x.shape[0] if serial else 1, shape[0] if serial else 1, terms, out.shape[-1], math.prod(out.shape[:-1])
        )
        costs = {name: None if cost is None else cost / 1e6 for name, cost in cycles(target, work).items()}
        props = {entry.key: entry.value for entry in node.metadata_props}
        name = props.get("xnorc.source") or props.get("xnorc.for") or node.name
        found.append(
            LayerCost(name, node.op_type, work.x_planes, work.w_planes, work.macs, costs, choose(target, work),
                      rates(target).instruction)
        )  # fmt: skip
    return found


def _terms(shape: Sequence[int], attrs: dict[str, Any]) -> int:
    """Terms of a convolution's sum; ``shape``: of its packed weights ``[O, kh, kw, bytes]``."""
    return int(attrs["channels"]) // int(attrs["group"]) * shape[1] * shape[2]
