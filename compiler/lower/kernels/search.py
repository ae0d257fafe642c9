"""``HammingTopK``, ``LookupTopK`` and ``RerankTopK``: scan, then select.

A scan fills a scratch row of values for a few queries at once, so that a code is loaded once for all of them; its blocks of
documents are spread over the thread pool. ``select`` then picks the best of each row.

* Hamming distances come from the micro-kernels of the binary product (``micro``): documents in the place of output channels.
* Table look-ups keep documents side by side: byte j of a block holds number m of two documents, one in each half, and one
  instruction (``vpshufb``, ``tbl``, ``vtbl``) looks a register full of them up. Entries add up in bytes for as long as ``peak``
  allows and are then widened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset import packed_bytes
from ..kernel import Kernel, KernelCall
from . import micro as micros
from .common import (
    Expr,
    Flat,
    bit_weights,
    broadcast,
    cast,
    constant_input,
    copy_bytes,
    function,
    intrinsic,
    number,
    outer_loop,
    pieces,
    scratch,
    shuffle,
)
from .select import RUN, select_largest, select_nearest

if TYPE_CHECKING:
    from ...targets import Target

CHANNELS = micros.CHANNELS
TASK_BYTES = 32 << 10
"""Bytes of codes that a task scans: half of the smallest first-level cache."""


def hamming_top_k(call: KernelCall) -> Kernel:
    """``HammingTopK``. A corpus that is a constant is laid out at compile time, another block by block while it is scanned."""
    (queries, size), documents = call.inputs[0].shape, call.inputs[1].shape[0]
    micro = micros.select(call.target)
    row_bytes = -(-size // micro.grain) * micro.grain
    bits, blocks = 8 * size, -(-documents // CHANNELS)
    narrow = bits < np.iinfo(np.uint16).max
    dtype = "uint16" if narrow else "int32"
    lanes = min(queries, micro.pixels)
    room = -(-documents // RUN) * RUN
    each = max(1, TASK_BYTES // (CHANNELS * row_bytes))
    laid = None
    if 1 in call.constants:
        padded = np.pad(call.constants[1], ((0, blocks * CHANNELS - documents), (0, 0)))
        laid = micros.lay_out(padded, row_bytes, micro.unit)

    with function(call) as fn:
        data = fn.input(0)
        corpus = fn.input(1) if laid is None else fn.constant("corpus", laid)
        out = fn.output()
        rows = data if size == row_bytes else scratch(queries * row_bytes, "uint8")
        if rows is not data:
            with T.serial(0, queries) as i:
                copy_bytes(rows, i * row_bytes, data, i * size, size)
                copy_bytes(rows, i * row_bytes + size, None, 0, row_bytes - size)
        distances = scratch(lanes * room, dtype)
        for p in range(lanes):  # no document: farther than any
            with T.serial(documents // RUN * RUN, room) as i:
                distances.store(p * room + i, number(np.iinfo(dtype).max, dtype))

        with T.serial(0, -(-queries // lanes)) as tile:
            first = tile * lanes
            at = [(first + p if queries % lanes == 0 else tirx.min(first + p, queries - 1)) for p in range(lanes)]
            with outer_loop(-(-blocks // each), lanes * documents * bits) as task:
                share = each if blocks % each == 0 else tirx.min(each, blocks - task * each)
                own = None if laid is not None else scratch(CHANNELS * row_bytes, "uint8")
                with T.serial(0, share) as b:
                    block = T.Bind(task * each + b)
                    if own is not None:
                        _lay_out_block(own, corpus, block, documents, size, row_bytes, micro.unit)
                    place: Expr = 0 if own is not None else block * (CHANNELS * row_bytes)
                    tile_of = micros.Tile(
                        rows, [i * row_bytes for i in at], own or corpus, None, place, row_bytes
                    )  # fmt: skip
                    for p, counts in enumerate(micros.count(micro, tile_of, bits)):
                        _store_block(distances, p * room, block, documents, T.Bind(cast(counts, dtype, CHANNELS)))
            with outer_loop(lanes, lanes * documents) as p, T.If(first + p < queries), T.Then():
                select_nearest(distances, p * room, room, bits, call.attrs["k"], out, first + p)
    return fn.kernel()


def _store_block(row: Flat, start: Expr, block: Expr, documents: int, values: Expr) -> None:
    """Eight values of a block of documents; the last block may have fewer."""
    rest = documents % CHANNELS
    place = start + block * CHANNELS
    if not rest:
        row.store(place, values, CHANNELS)
        return
    with T.If(block < documents // CHANNELS):
        with T.Then():
            row.store(place, values, CHANNELS)
        with T.Else():
            for first, lanes in pieces(rest, CHANNELS):
                row.store(place + first, shuffle([values], range(first, first + lanes)), lanes)


def _lay_out_block(own: Flat, corpus: Flat, block: Expr, documents: int, size: int, row_bytes: int, step: int) -> None:
    """Eight documents in the order of ``micro.lay_out`` with steps of ``step`` bytes; those past the last repeat it, and
    nothing reads their values."""
    whole = row_bytes // step
    for c in range(CHANNELS):
        source = T.Bind(tirx.min(block * CHANNELS + c, documents - 1) * size)
        full = size // step
        if full:
            with T.serial(0, full) as s:
                own.store((s * CHANNELS + c) * step, corpus.load(source + s * step, step), step)
        if rest := size - full * step:
            half = full >= whole  # the last 8 bytes of the row are a half step
            width = step // 2 if half else step
            place = full * CHANNELS * step + c * width
            copy_bytes(own, place, corpus, source + full * step, rest)
            copy_bytes(own, place + rest, None, 0, width - rest)


@dataclass(frozen=True)
class Lookup:
    """How a machine looks up: ``width`` bytes at once, ``read`` of (table of 16 bytes in memory, place) the table as it is
    held in registers, ``pick`` of (that, numbers) the entries; ``queries`` at a time."""

    width: int
    queries: int
    read: Callable[[Flat, Expr], list[Expr]]
    pick: Callable[[list[Expr], Expr], Expr]


def _read_16(tables: Flat, place: Expr) -> list[Expr]:
    return [T.Bind(tables.load(place, 16))]


def _read_twice(tables: Flat, place: Expr) -> list[Expr]:
    once = T.Bind(tables.load(place, 16))
    return [T.Bind(shuffle([once, once], range(32)))]


def _read_halves(tables: Flat, place: Expr) -> list[Expr]:
    return [T.Bind(tables.load(place, 8)), T.Bind(tables.load(place + 8, 8))]


def lookup_of(target: Target) -> Lookup | None:
    """The look-up of a target; None where there is none, and entries are read one by one."""
    if target.arch == "aarch64":
        return Lookup(16, 4, _read_16, lambda t, i: intrinsic("uint8x16", "llvm.aarch64.neon.tbl1.v16i8", *t, i))
    if target.arch == "arm":
        return Lookup(8, 4, _read_halves, lambda t, i: intrinsic("uint8x8", "llvm.arm.neon.vtbl2", *t, i))
    if "avx2" in target.features:
        return Lookup(32, 2, _read_twice, lambda t, i: intrinsic("uint8x32", "llvm.x86.avx2.pshuf.b", *t, i))
    if "ssse3" in target.features:
        return Lookup(16, 2, _read_16, lambda t, i: intrinsic("uint8x16", "llvm.x86.ssse3.pshuf.b.128", *t, i))
    return None


def lay_out_codes(codes: np.ndarray, groups: int, width: int) -> np.ndarray:
    """Codes ``[D, ceil(M/2)]`` as ``[blocks][M][width]``: byte j holds number m of document j and, above, of ``width + j``."""
    numbers = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)[:, :groups]
    numbers = np.pad(numbers, ((0, -len(codes) % (2 * width)), (0, 0))).reshape(-1, 2, width, groups)
    return np.ascontiguousarray((numbers[:, 0] | numbers[:, 1] << 4).transpose(0, 2, 1))


def _check_range(call: KernelCall, scale: np.ndarray, groups: int) -> None:
    bias, peak = int(call.attrs["bias"]), int(call.attrs["peak"])
    largest = max(abs(bias), abs(peak * groups - bias)) * int(np.abs(scale.astype(np.int64)).max())
    if largest > np.iinfo(np.int32).max:
        raise UnsupportedError(
            call.name, call.op, f"scores may reach {largest}, more than int32 holds: lower the scale"
        )


def lookup_top_k(call: KernelCall) -> Kernel:
    """``LookupTopK``. Codes and scales must be constant: they are laid out at compile time."""
    queries, groups, _ = call.inputs[0].shape
    codes, scale = constant_input(call, 1, "the codes"), constant_input(call, 2, "the scale")
    documents, peak, bias = len(codes), int(call.attrs["peak"]), int(call.attrs["bias"])
    _check_range(call, scale, groups)
    machine = lookup_of(call.target) or Lookup(1, 1, lambda tables, place: [tables, place], _pick_one)
    width = machine.width
    block_documents = 2 * width
    blocks = -(-documents // block_documents)
    room = -(-blocks * block_documents // RUN) * RUN
    lanes = min(queries, machine.queries)
    each = max(1, TASK_BYTES // (groups * width))
    total = "uint16" if peak * groups <= np.iinfo(np.uint16).max else "uint32"
    steps = 255 // peak
    """Entries whose sum fits a byte."""

    with function(call) as fn:
        tables = fn.input(0)
        laid = fn.constant("codes", lay_out_codes(codes, groups, width))
        scales = fn.constant("scale", np.pad(scale, (0, room - documents)))
        out = fn.output()
        scores = scratch(lanes * room, "int32")
        for p in range(lanes if room > blocks * block_documents else 0):
            with T.serial(blocks * block_documents, room) as i:
                scores.store(p * room + i, number(np.iinfo(np.int32).min, "int32"))

        def add(at: list[Expr], block: Expr, group: Expr, sums: Flat) -> None:
            """The entries of one group, for each query and half, to ``sums``."""
            both = T.Bind(laid.load((block * groups + group) * width, width))
            low = T.Bind(both & number(15, "uint8", width))
            high = T.Bind(both >> number(4, "uint8", width))
            for p, query in enumerate(at):
                table = machine.read(tables, (query * groups + group) * 16)
                for half, numbers in enumerate((low, high)):
                    lane = (p * 2 + half) * width
                    entry = cast(machine.pick(table, numbers), sums.dtype, width)
                    sums.store(lane, sums.load(lane, width) + entry, width)

        def clear(sums: Flat) -> None:
            for i in range(2 * lanes):
                sums.store(i * width, number(0, sums.dtype, width), width)

        def scan(at: list[Expr], block: Expr) -> None:
            totals = scratch(2 * lanes * width, total)
            clear(totals)
            if steps < 2:
                with T.serial(0, groups) as group:
                    add(at, block, group, totals)
            else:
                part = scratch(2 * lanes * width, "uint8")
                with T.serial(0, -(-groups // steps)) as r:
                    clear(part)
                    extent = steps if groups % steps == 0 else tirx.min(steps, groups - r * steps)
                    with T.serial(0, extent) as g:
                        add(at, block, r * steps + g, part)
                    for i in range(2 * lanes):
                        wide = cast(part.load(i * width, width), total, width)
                        totals.store(i * width, totals.load(i * width, width) + wide, width)
            for half in range(2):
                for first, run in pieces(width, 8):
                    document = T.Bind(block * block_documents + half * width + first)
                    factor = T.Bind(scales.load(document, run))
                    for p in range(lanes):
                        found = cast(totals.load((p * 2 + half) * width + first, run), "int32", run)
                        scores.store(p * room + document, (found - number(bias, "int32", run)) * factor, run)

        with T.serial(0, -(-queries // lanes)) as tile:
            at = [
                (tile * lanes + p if queries % lanes == 0 else tirx.min(tile * lanes + p, queries - 1))
                for p in range(lanes)
            ]
            with outer_loop(-(-blocks // each), lanes * documents * groups * 8) as task:
                share = each if blocks % each == 0 else tirx.min(each, blocks - task * each)
                with T.serial(0, share) as b:
                    scan(at, T.Bind(task * each + b))
            with outer_loop(lanes, lanes * documents) as p:
                query = tile * lanes + p
                with T.If(query < queries), T.Then():
                    select_largest(scores, p * room, documents, call.attrs["k"], out, query, lambda i: i)
    return fn.kernel()


def _pick_one(table: list[Expr], numbers: Expr) -> Expr:
    tables, place = table
    return tables.load(place + cast(numbers, "int32"))


def rerank_top_k(call: KernelCall) -> Kernel:
    """``RerankTopK``. Σ q·(±1) = 2·Σ (q where the bit is 1) − Σ q; a document number out of range is moved into it."""
    queries, channels = call.inputs[0].shape
    count, documents = call.inputs[1].shape[1], call.inputs[2].shape[0]
    size = packed_bytes(channels)
    room = -(-count // RUN) * RUN
    with function(call) as fn:
        given, candidates = fn.input(0), fn.input(1)
        corpus = fn.input(2) if 2 not in call.constants else fn.constant("corpus", call.constants[2])
        out = fn.output()
        with outer_loop(queries, queries * count * channels) as query:
            row = scratch(8 * size, "int32")
            scores = scratch(room, "int32")
            everything = scratch(1, "int32")
            everything.store(0, number(0, "int32"))
            with T.serial(0, channels) as c:
                value = T.Bind(given.load(query * channels + c))
                row.store(c, value)
                everything.store(0, everything.load(0) + value)
            with T.serial(channels, 8 * size) as c:
                row.store(c, number(0, "int32"))

            def document_of(i: Expr, query: Expr = query) -> Expr:
                named = candidates.load((query * count + i) * 2 + 1)
                return tirx.max(tirx.min(named, documents - 1), 0)

            with T.serial(0, count) as i:
                start = T.Bind(document_of(i) * size)
                sums = scratch(8, "int32")
                sums.store(0, number(0, "int32", 8), 8)
                with T.serial(0, size) as b:
                    bits = broadcast(cast(corpus.load(start + b), "int32"), 8) & bit_weights("int32")
                    zero = number(0, "int32", 8)
                    sums.store(0, sums.load(0, 8) + tirx.Select(bits != zero, row.load(b * 8, 8), zero), 8)
                total = intrinsic("int32", "llvm.vector.reduce.add.v8i32", sums.load(0, 8))
                scores.store(i, total * 2 - everything.load(0))
            with T.serial(count, room) as i:
                scores.store(i, number(np.iinfo(np.int32).min, "int32"))
            select_largest(scores, 0, count, call.attrs["k"], out, query, document_of)
    return fn.kernel()
