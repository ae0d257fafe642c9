"""Nodes of a packed model → stages: which chains of operators the FPGA knows, and what they compute there.

``READERS`` lists the chains, longest first. A layer is read without knowing what comes before it, to see whether its
attributes and constants suit the hardware; its stages follow once the stream into it is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...operations import count_macs
from ...opset import TensorType
from ...opset.bits import packed_bytes
from .stages import Flow, Multiply, Stage
from .units.matvec import Product

READERS: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    ("gemm_threshold", (("ai.xnorc.BinaryGemm", 1 + 1), ("ai.xnorc.Pack", 2 + 1))),
    ("gemm", (("ai.xnorc.BinaryGemm", 1 + 1),)),
)
"""Chains: operators, each with its inputs besides the one from the operator before (the last is the node's number)."""


class NotOnFpga(Exception):
    """Why a node cannot run on the FPGA, in a few words."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Some nodes that become stages: they read ``source`` and make ``result``, tensors of the packed model."""

    name: str
    nodes: list[onnx.NodeProto]
    source: str
    result: str
    macs: int
    stages: Callable[[Flow | None], list[Stage]]
    """The stages behind a stream, or (None) behind the tensor itself. Raises ``NotOnFpga``."""
    meaning: dict[str, Any]
    """What the elements of the result are: ``kind`` ``bits`` (packed), or ``sums``: the accumulator is
    ``scale · element + offset``, of elements that are ``signed`` or not.
    """


def read_layer(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> Layer:
    """The layer that ``nodes``, a chain of ``READERS``, are. Raises ``NotOnFpga``."""
    chain = [node.op_type for node in nodes]
    reader = _Reader(nodes, constants, types)
    if chain[0] == "BinaryGemm":
        return reader.gemm()
    raise NotOnFpga(f"there is no unit for {' and '.join(chain)}")


class _Reader:
    def __init__(
        self, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
    ) -> None:
        self.nodes, self.constants, self.types = nodes, constants, types
        self.anchor = nodes[0]
        self.attrs = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
        found = next((p.value for p in self.anchor.metadata_props if p.key == "xnorc.source"), "") or next(
            (p.value for p in self.anchor.metadata_props if p.key == "xnorc.for"), self.anchor.name
        )
        self.name = re.sub(r"\W+", "_", found).strip("_").lower() or "layer"
        if self.name[0].isdigit():
            self.name = f"layer_{self.name}"

    def _constant(self, node: onnx.NodeProto, place: int) -> np.ndarray:
        name = node.input[place]
        if name not in self.constants:
            raise NotOnFpga(f"its input '{name}' is computed at run time")
        return self.constants[name]

    def _layer(self, macs: int, stages: Callable[[Flow | None], list[Stage]], terms: int = 0) -> Layer:
        counts = len(self.nodes) == 1 and terms > 0
        meaning = {"kind": "sums", "scale": 2, "offset": -terms, "signed": False} if counts else {"kind": "bits"}
        return Layer(self.name, self.nodes, self.anchor.input[0], self.nodes[-1].output[0], macs, stages, meaning)

    def gemm(self) -> Layer:
        """Rows of packed bits times packed weights, and perhaps thresholds."""
        shape, weights = self.types[self.anchor.input[0]].shape, self._constant(self.anchor, 1)
        terms = int(self.attrs[0]["k"])
        bits = np.unpackbits(weights, axis=-1, bitorder="little")
        rows = int(np.prod(shape[:-1]))

        def stages(flow: Flow | None) -> list[Stage]:
            if flow is None:
                if packed_bytes(terms) != shape[-1]:
                    raise NotOnFpga("the bits of its input do not lie side by side")
                kept, flow = bits[:, :terms], Flow(1, rows, terms)
            elif flow.bits != 1:
                raise NotOnFpga("its input is not of single bits")
            elif flow.pixels == rows and flow.channels == terms:
                kept = bits[:, :terms]
            elif rows == 1 and flow.frame_bits == terms and flow.pixels * packed_bytes(flow.channels) == shape[-1]:
                # A feature map read as one row: each pixel begins at a byte.
                kept = bits.reshape(len(bits), flow.pixels, -1)[:, :, : flow.channels].reshape(len(bits), -1)
                flow = Flow(1, 1, terms)
            else:
                raise NotOnFpga("its rows are not those of the layer before")
            product = self._product(kept)
            result = Flow(flow.height, flow.width, product.rows, product.result_bits)
            return [Multiply(self.name, tuple(node.name for node in self.nodes), flow, result, product)]

        return self._layer(count_macs(self.anchor, dict(self.types)), stages, terms)

    def _product(self, weights: np.ndarray) -> Product:
        """The product of ±1 weights 0/1 ``[M, K]`` with the thresholds of the ``Pack`` behind it, if there is one."""
        if len(self.nodes) == 1:
            return Product(weights)
        pack, attrs = self.nodes[-1], self.attrs[-1]
        if list(attrs["perm"]) != sorted(attrs["perm"]):
            raise NotOnFpga(f"'{pack.name}' moves axes")
        return thresholded(
            weights, self._constant(pack, 1).astype(np.int64) + int(attrs["strict"]), self._constant(pack, 2)
        )


def thresholded(weights: np.ndarray, least: np.ndarray, flip: np.ndarray) -> Product:
    """The product whose result is ``(sum >= least) xor flip`` of the sum of ±1 products, ``2 · count − K``.

    A flipped row is the row of opposite weights: ``sum < least`` is ``−sum > −least``.
    """
    terms = weights.shape[1]
    flipped = np.broadcast_to(flip.astype(bool), len(weights))
    limit = np.where(flipped, 1 - least, least)
    counts = np.clip(-((-limit - terms) // 2), 0, terms + 1)
    return Product(np.where(flipped[:, None], 1 - weights, weights).astype(np.uint8), counts)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Value of a node's attribute."""
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)
