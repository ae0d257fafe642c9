"""``BinaryGemm``: a product whose pixels are rows."""

from __future__ import annotations

import math

import numpy as np

from ..kernel import Kernel, KernelCall
from .common import constant_input
from .product import CHANNELS, Gather, Product, make


def binary_gemm(call: KernelCall) -> Kernel:
    """``BinaryGemm`` with its epilogue. Bits past ``k`` are zero in both operands: they never differ."""
    weights = constant_input(call, 1, "the weights")
    lead, size = call.inputs[0].shape[:-1], call.inputs[0].shape[-1]
    images = lead[0] if call.epilogue.channels_first else 1
    rows = math.prod(lead) // images
    channels = weights.shape[0]
    padding = -channels % CHANNELS
    k = int(call.attrs["k"])
    product = Product(
        images=images,
        pixels=rows,
        gather=Gather(height=1, width=rows, bytes=size, out_width=rows),
        window=size,
        segments=[0],
        weights=np.pad(weights, ((0, padding), (0, 0))),
        masks=None,
        corrections=np.full((1, channels + padding), k, np.int32),
        bits=k,
    )
    return make(call, product)
