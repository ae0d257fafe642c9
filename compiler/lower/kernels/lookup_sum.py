"""``LookupSum``: table entries by codes of a byte.

A task takes some documents of a query. The codes lie so that those of ``TOGETHER`` documents for one table are neighbours:
one load gives their places, and their sums, which do not wait for each other, stay in registers.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ...errors import UnsupportedError
from ..kernel import Kernel, KernelCall
from .common import cast, constant_input, function, number, outer_loop, scratch

TOGETHER = 8
"""Documents whose sums run side by side."""
TASK = 64
"""Blocks of documents of a task."""


def lookup_sum(call: KernelCall) -> Kernel:
    """``LookupSum``. Codes must be constant: they are laid out at compile time, and none may be past its table."""
    queries, groups, entries = call.inputs[0].shape
    codes = constant_input(call, 1, "the codes")
    documents = len(codes)
    if codes.size and int(codes.max()) >= entries:
        raise UnsupportedError(call.name, call.op, f"a code is {codes.max()}, but a table has {entries} entries")
    blocks = -(-documents // TOGETHER)
    padded = np.pad(codes, ((0, -documents % TOGETHER), (0, 0)))
    laid = np.ascontiguousarray(padded.reshape(blocks, TOGETHER, groups).transpose(0, 2, 1))
    shares = -(-blocks // TASK)
    with function(call) as fn:
        tables, numbers = fn.input(0), fn.constant("codes", laid)
        out = fn.output()
        with outer_loop(queries * shares, queries * documents * groups * 8) as task:
            query, share = T.Bind(task // shares), T.Bind(task % shares)
            with T.serial(0, tirx.min(TASK, blocks - share * TASK)) as b:
                block = T.Bind(share * TASK + b)
                sums = scratch(TOGETHER, "float32")
                sums.store(0, number(0, "float32", TOGETHER), TOGETHER)
                with T.serial(0, groups) as m:
                    start = T.Bind((query * groups + m) * entries)
                    for i in range(TOGETHER):
                        place = cast(numbers.load((block * groups + m) * TOGETHER + i), "int32")
                        sums.store(i, sums.load(i) + tables.load(start + place))
                with T.serial(0, tirx.min(TOGETHER, documents - block * TOGETHER)) as i:
                    out.store(query * documents + block * TOGETHER + i, sums.load(i))
    return fn.kernel()
