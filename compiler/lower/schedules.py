"""The default CPU schedule of kernels that come from TVM's operator library: correct, vectorised, not yet tuned.

Kernels of our own arrive scheduled (attribute ``xnorc.scheduled``) and are left alone. Per-core schedules of the float
operators have their place here.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import s_tir, tirx

from ..targets import Target
from .kernels import float_calls
from .program import Program
from .templates import Choices

PARALLEL_WORK = 1 << 18
"""Inner iterations from which on the outermost loop is worth a thread pool."""

WHOLE = 4
"""Elements that a loop beside a broadcast one must be a multiple of, to be made of vectors of its own."""


def schedule_all(program: Program, target: Target, tuned: Choices) -> None:
    """Write the float kernels that were asked for, and schedule every function that is not scheduled yet."""
    done = {}
    mod = program.kernels
    for variable, func in mod.functions.items():
        name = variable.name_hint
        if float_calls.asked(func):
            template = program.templates[name] = float_calls.template(func, name, target).with_choices(tuned)
            done[name] = float_calls.write(template)
        else:
            scheduled = func.attrs and "xnorc.scheduled" in func.attrs
            done[name] = func if scheduled else schedule_default(func, target)
    program.kernels = tvm.IRModule(done)


def schedule_default(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Inline elementwise producers with one reader; vectorise and spread the outer loop of what remains."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}), debug_mask="none")
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        if schedule.get_consumers(block) and _is_spatial(schedule, block) and len(schedule.get_consumers(block)) == 1:
            try:
                schedule.compute_inline(block)
            except s_tir.ScheduleError:
                continue
    for block in schedule.get_child_blocks(root):
        _schedule_block(schedule, block, target.vector_bytes)
    return schedule.mod["main"]


def _is_spatial(schedule: s_tir.Schedule, block: Any) -> bool:
    return all(var.iter_type == tirx.IterVar.DataPar for var in schedule.get(block).iter_vars)


def _schedule_block(schedule: s_tir.Schedule, block: Any, vector_bytes: int) -> None:
    node = schedule.get(block)
    loops = schedule.get_loops(block)
    kinds = [var.iter_type for var in node.iter_vars]
    if len(kinds) != len(loops) or not loops or not all(isinstance(schedule.get(x).extent, tirx.IntImm) for x in loops):
        return
    extents = [int(schedule.get(loop).extent) for loop in loops]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.CommReduce]
    if not spatial or len(spatial) + len(reduction) != len(loops):
        return
    size = math.prod(extents)
    try:
        if reduction:
            _schedule_reduction(schedule, spatial, size)
        else:
            _vectorize(schedule, _fused(schedule, node, spatial), vector_bytes // 4, size)
    except s_tir.ScheduleError:
        return


def _fused(schedule: s_tir.Schedule, block: Any, loops: list[Any]) -> list[Any]:
    """The loops as one; as two where an operand is broadcast, if whole vectors fit into the inner one: each vector's elements
    then lie side by side, or are all the same."""
    rank, inner = len(loops), len(loops)
    extents = [int(schedule.get(loop).extent) for loop in loops]
    for read in block.reads:
        shape = [int(size) for size in read.source.shape]
        shape = [1] * (rank - len(shape)) + shape
        if len(shape) != rank or shape == extents:
            continue
        same = 1  # trailing axes that are either all read or all broadcast
        while same < rank and all((size == 1) == (shape[-1] == 1) for size in shape[-same - 1 :]):
            same += 1
        inner = min(inner, same)
    width = math.prod(extents[rank - inner :])
    if inner == rank or width % WHOLE:
        return [schedule.fuse(*loops)]
    return [schedule.fuse(*loops[: rank - inner]), schedule.fuse(*loops[rank - inner :])]


def _vectorize(schedule: s_tir.Schedule, loops: list[Any], lanes: int, size: int) -> None:
    width = int(schedule.get(loops[-1]).extent)
    while len(loops) > 1 and width % lanes:
        lanes //= 2
    if size < lanes:
        return
    outer, inner = schedule.split(loops[-1], [None, lanes])
    schedule.vectorize(inner)
    if size >= PARALLEL_WORK:
        schedule.parallel(outer if len(loops) == 1 else loops[0])


def _schedule_reduction(schedule: s_tir.Schedule, spatial: list[Any], size: int) -> None:
    """Keep the order of the sum (it is part of the result); spread the outermost loop."""
    outer = [loop for loop in spatial if int(schedule.get(loop).extent) > 1]
    if size >= PARALLEL_WORK and outer:
        schedule.parallel(outer[0])
