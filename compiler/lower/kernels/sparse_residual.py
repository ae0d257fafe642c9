"""``SparseResidualGemm``: the panels of ``low_bit``, into which the 8-bit weights are written after the bits are decoded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .codes import Decoder
from .common import Expr, apart, cast, constant_input, function
from .float_product import Tile, choose_tile
from .low_bit import Panel, chunk_steps, columns_first, decode_columns, product


def lay_out(call: KernelCall, tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The listed weights in the order in which panels are decoded: place in the panel (int16), value, first of each panel.

    Panels are counted tile by tile, and within a tile chunk by chunk.
    """
    depth, columns = int(call.attrs["k"]), call.output.shape[-1]
    values, at, starts = (constant_input(call, i, "the list of weights") for i in (5, 6, 7))
    steps = chunk_steps(depth)
    chunks = -(-depth // steps)
    channel = np.repeat(np.arange(columns), np.diff(starts))
    k = at.astype(np.int64)
    tiles = -(-columns // tile.columns)
    rest = columns % tile.columns
    pitch = np.full(tiles, tile.columns)
    if rest:
        pitch[-1] = -(-rest // tile.lanes) * tile.lanes
    panel = channel // tile.columns * chunks + k // steps
    place = k % steps * pitch[channel // tile.columns] + channel % tile.columns
    order = np.lexsort((place, panel))
    first = np.searchsorted(panel[order], np.arange(tiles * chunks + 1))
    assert not len(place) or place.max() < 1 << 15
    return place[order].astype(np.int32), values[order], first.astype(np.int32)


def sparse_gemm(call: KernelCall) -> Kernel:
    """The kernel."""
    rows, columns = math.prod(call.output.shape[:-1]), call.output.shape[-1]
    depth = int(call.attrs["k"])
    tile = choose_tile(call.target, rows, columns)
    steps = chunk_steps(depth)
    chunks = -(-depth // steps)
    lay = columns_first(tile.lanes)
    places, values, firsts = lay_out(call, tile)
    padded = -columns % tile.columns
    tables: list[Any] = []
    with function(call) as fn:
        x = fn.input(0)
        decoder = Decoder(fn, lay, lay, tile.lanes, wide=True)
        # A place is two bytes: there is no 16-bit type in a package's tensors.
        stored = fn.constant("places", places.astype(np.uint16).view(np.uint8))
        given = fn.constant("values", values)
        first_of = fn.constant("firsts", firsts)
        for name, index in (("value_scale", 8), ("value_zero", 9)):
            tables.append(fn.constant(name, np.pad(constant_input(call, index, name), (0, padded))))
        out = fn.output()

        def decode(panel: Panel, first: Expr) -> None:
            decode_columns(call, decoder, panel, first)
            pitch = panel.vectors * tile.lanes
            number = T.Bind(first // tile.vectors * chunks + panel.first // steps)
            begin = T.Bind(first_of.load(number))
            with T.serial(0, first_of.load(number + 1) - begin) as i:
                entry = T.Bind(begin + i)
                low, high = (cast(stored.load(entry * 2 + byte), "int32") for byte in (0, 1))
                place = T.Bind(low | (high << 8))
                channel = T.Bind(first * tile.lanes + place % pitch)
                centred = apart(cast(given.load(entry), "float32") - tables[1].load(channel), 1)
                panel.weights.store(place, apart(centred * tables[0].load(channel), 1))

        product(call, x, out, tile, decode)
    return fn.kernel()
