"""``concat``: float32 tensors side by side, as copies of runs. TVM's asks of every element which tensor it comes from."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from ..kernel import Kernel, KernelCall
from .common import PER_ELEMENT, copy_bytes, elements, function, outer_loop


def concat(call: KernelCall) -> Kernel:
    """Any number of inputs. ``runs``: elements that each brings to one run of the output."""
    runs = [int(run) for run in call.attrs["runs"]]
    total = sum(runs)
    with function(call) as fn:
        inputs = [fn.input(i) for i in range(len(runs))]
        out = fn.output()
        with outer_loop(elements(call.output) // total, elements(call.output) * PER_ELEMENT) as index:
            start = T.Bind(index * total)
            for i, (source, run) in enumerate(zip(inputs, runs, strict=True)):
                copy_bytes(out, start + sum(runs[:i]), source, index * run, run)
    return fn.kernel()
