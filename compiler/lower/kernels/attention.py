"""``BinaryAttention``: for a few queries at a time, scores of all keys, the choice as bits, the sum of the values.

Both products run on the micro-kernels of ``micro``: keys and values of an image are laid out once a task, as
``pair_product`` does. Scores of a tile of queries stay in the first-level cache; only the modes that need a whole row before
they can choose keep them at all. The choice of a query is a row of bits, the left operand of the second product.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ...opset.attention import FLOOR
from ..kernel import Kernel, KernelCall
from . import micro as micros
from .common import PARALLEL_WORK, Expr, Flat, byte_of, cast, function, intrinsic, number, outer_loop, scratch, tiles
from .common import tile_start as start_of_tile
from .outputs import Finished
from .pair_product import AndOutput, Pair, copy_rows, count_ones, lay_out_rows
from .product import MOST_PIXELS, ROWS_BYTES, TASKS, pixels_of_tile, rows_of_task

CHANNELS = micros.CHANNELS


def bias_place(call: KernelCall, image: Expr) -> Expr:
    """Where the bias of an image starts; its leading axes may be broadcast."""
    *lead, _, _ = call.inputs[0].shape
    *own, rows, keys = call.inputs[3].shape
    place: Expr = 0
    step, stride = 1, rows * keys
    for size, mine in zip(reversed(lead), reversed(own), strict=True):
        if mine > 1:
            place = place + image // step % size * stride
        step, stride = step * size, stride * mine
    return place


def binary_attention(call: KernelCall) -> Kernel:
    """``BinaryAttention`` with its epilogue."""
    *lead, rows, size = call.inputs[0].shape
    keys, columns, value_bytes = call.inputs[1].shape[-2], call.inputs[2].shape[-2], call.inputs[2].shape[-1]
    images, bits = math.prod(lead), int(call.attrs["size"])
    mode, margin = int(call.attrs["mode"]), int(call.attrs["margin"])
    scored, summed = Pair(images, rows, keys, size, bits), Pair(images, rows, columns, value_bytes, keys)
    micro = micros.select(call.target)
    score_bytes, flag_bytes = (-(-n // micro.grain) * micro.grain for n in (size, value_bytes))
    in_place = score_bytes == size
    _, lanes = tiles(rows, pixels_of_tile(call, micro, rows))
    work = images * rows * keys * (bits + columns)
    most = min(MOST_PIXELS, ROWS_BYTES // score_bytes)
    if work >= PARALLEL_WORK and images < TASKS:
        most = min(most, max(2 * CHANNELS, -(-images * rows // TASKS)))
    elif in_place:
        most = rows
    each = rows_of_task(rows, lanes, most)
    row_tasks = -(-rows // each)
    if call.epilogue.channels_first and len(lead) != 2:
        raise UnsupportedError(call.name, call.op, "its result is transposed as a feature map but has not four axes")
    stored = call.inputs[0].shape[0] if call.epilogue.channels_first else images
    merged = images // stored
    key_width, key_blocks = scored.blocks * CHANNELS, scored.blocks
    bias_rows = call.inputs[3].shape[-2]
    tail = 0xFF >> (-keys % 8)

    with function(call) as fn:
        queries, key_rows, values, bias = (fn.input(i) for i in range(4))
        sums, limits = (fn.input(4), fn.input(5)) if mode == 2 else (None, None)
        output = AndOutput(fn, summed.blocks * CHANNELS, merged * rows, keys, micro.total(keys))
        with outer_loop(images * row_tasks, work) as task:
            image, row_task = T.Bind(task // row_tasks), T.Bind(task % row_tasks)
            first = row_task * each
            count = each if rows % each == 0 else tirx.min(each, rows - first)
            laid_keys = scratch(key_width * score_bytes, "uint8")
            lay_out_rows(scored, score_bytes, micro.unit, key_rows, image, laid_keys)
            laid_values = scratch(summed.blocks * CHANNELS * flag_bytes, "uint8")
            lay_out_rows(summed, flag_bytes, micro.unit, values, image, laid_values)
            output.ones = scratch(summed.blocks * CHANNELS, "int32")
            count_ones(summed, flag_bytes, micro.unit, laid_values, output.ones)
            left = queries
            if not in_place:
                left = scratch(min(each, rows) * score_bytes, "uint8")
                copy_rows(scored, score_bytes, queries, image * rows + first, count, left)
            flags = scratch(lanes * flag_bytes, "uint8")
            with T.serial(0, lanes * flag_bytes) as i:
                flags.store(i, tirx.const(0, "uint8"))
            added = scratch((lanes if bias_rows > 1 else 1) * key_width, "int32")
            start = T.Bind(bias_place(call, image))

            def read_bias(target: Expr, source: Expr, added: Flat = added) -> None:
                with T.serial(0, keys) as n:
                    added.store(target + n, bias.load(source + n))
                if key_width > keys:
                    with T.serial(keys, key_width) as n:
                        added.store(target + n, tirx.const(2 * FLOOR, "int32"))

            if bias_rows == 1:
                read_bias(0, start)
            scores = scratch(lanes * key_width, "int32") if mode else None
            largest = scratch(lanes * CHANNELS, "int32") if mode else None

            def flag(p: int, block: Expr, byte: Expr, flags: Flat = flags) -> None:
                if tail != 0xFF:
                    last = tirx.Select(block == key_blocks - 1, tirx.const(tail, "uint8"), tirx.const(0xFF, "uint8"))
                    byte = byte & last
                flags.store(p * flag_bytes + block, byte)

            with T.serial(0, (count + (lanes - 1)) // lanes) as t:
                row = T.Bind(start_of_tile(row_task * (each // lanes) + t, rows, lanes))
                base = image * rows + row if in_place else row - first
                if bias_rows > 1:
                    with T.serial(0, lanes) as p:
                        read_bias(p * key_width, start + (row + p) * keys)
                if largest is not None:
                    for p in range(lanes):
                        largest.store(p * CHANNELS, number(FLOOR, "int32", CHANNELS), CHANNELS)
                with T.serial(0, key_blocks) as block:
                    counts = _counts(micro, left, base, lanes, score_bytes, laid_keys, block, bits)
                    for p, found in enumerate(counts):
                        place = (p * key_width if bias_rows > 1 else 0) + block * CHANNELS
                        score = number(bits, "int32", 8) - number(2, "int32", 8) * cast(found, "int32", 8)
                        score = T.Bind(tirx.max(score + added.load(place, 8), number(FLOOR, "int32", 8)))
                        if scores is None or largest is None:
                            outcome = score >= number(margin, "int32", 8)
                            flag(p, block, byte_of(outcome, call.target, "uint32"))
                        else:
                            scores.store(p * key_width + block * CHANNELS, score, 8)
                            best = tirx.max(largest.load(p * CHANNELS, 8), score)
                            largest.store(p * CHANNELS, best, 8)
                if scores is not None and largest is not None:
                    for p in range(lanes):
                        top = intrinsic("int32", "llvm.vector.reduce.smax.v8i32", largest.load(p * CHANNELS, 8))
                        top = T.Bind(top)
                        if sums is None or limits is None:
                            with T.serial(0, key_blocks) as block:
                                score = scores.load(p * key_width + block * CHANNELS, 8)
                                low = T.broadcast(top - margin, 8)
                                flag(p, block, byte_of(score >= low, call.target, "uint32"))
                        else:
                            _by_share(call, scores, p * key_width, top, sums, limits, keys, p * flag_bytes, flags)
                with T.serial(0, summed.blocks) as block:
                    counts = _counts(micro, flags, 0, lanes, flag_bytes, laid_values, block, keys)
                    pixel = image % merged * rows + row
                    output.store(Finished(counts, [0] * lanes, image // merged, pixel, block))
    return fn.kernel()


def _counts(
    micro: micros.Micro, rows: Flat, base: Expr, lanes: int, row_bytes: int, columns: Flat, block: Expr, bits: int
) -> list[Expr]:
    """Differing bits of ``lanes`` rows from row ``base`` on and 8 laid-out columns."""
    counts: list[Expr] = []
    for p in range(0, lanes, micro.pixels):
        places = [(base + p + i) * row_bytes for i in range(min(micro.pixels, lanes - p))]
        tile = micros.Tile(rows, places, columns, None, block * (CHANNELS * row_bytes), row_bytes)
        counts += micros.count(micro, tile, bits)
    return counts


def _by_share(
    call: KernelCall, scores: Flat, place: Expr, top: Expr, sums: Flat, limits: Flat, keys: int, target: Expr,
    flags: Flat,
) -> None:  # fmt: skip
    """Mode 2 for one query: the sum over its row, then the bits of all keys."""
    reach = call.inputs[4].shape[0]
    total = scratch(1, "int64")

    def index(n: Expr) -> Expr:
        return tirx.min(top - scores.load(place + n), reach - 1)

    total.store(0, tirx.const(0, "int64"))
    with T.serial(0, keys) as n:
        total.store(0, total.load(0) + sums.load(index(n)))
    with T.serial(0, -(-keys // 8)) as byte:
        flags.store(target + byte, tirx.const(0, "uint8"))
    with T.serial(0, keys) as n:
        chosen = tirx.Select(limits.load(index(n)) > total.load(0), tirx.const(1, "uint8"), tirx.const(0, "uint8"))
        at = target + n // 8
        flags.store(at, flags.load(at) | (chosen << cast(n % 8, "uint8")))
