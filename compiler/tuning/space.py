"""A template's choices as a space of TVM's MetaSchedule.

MetaSchedule schedules a stand-in of one block: every knob that the template asks for becomes a ``sample_categorical`` and an
annotation of the block, by which the candidate says what was chosen. The template itself is thus the generator of its
space, and a knob may depend on the answer to an earlier one. The strategy that draws every candidate anew (``replay-func``)
runs the generator; most candidates are neighbours of the best so far: one knob drawn anew, the others kept. MetaSchedule's
other strategies and its JSON database copy modules by way of JSON, which ends the process in TVM 0.27 with the version of
``tvm-ffi`` that pip chooses for it; a space of tens of points has no need of a learned cost model.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..lower.knobs import Knobs
from ..lower.templates import Template
from ..lower.tir import tvm_target

_PREFIX = "xnorc."
_BLOCK = "template"
_NEIGHBOUR = 0.6
"""Share of the candidates that are neighbours of the best."""
_MISSES = 40
"""Draws in a row that give nothing new: then the space is taken to be exhausted."""

Point = dict[str, int]
"""A candidate: the answer to every question that the template asked."""


def _stand_in(key: str) -> tvm.IRModule:
    """A function of one block with nothing in it, told from others by its layer's key."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True, "xnorc.layer": key})
        out = T.arg("out", T.buffer((1,), "int32"))
        with T.serial(0, 1) as i, T.sblock(_BLOCK):
            at = T.axis.spatial(1, i)
            T.buffer_store(out, tirx.const(0, "int32"), [at])
    return tvm.IRModule({"main": builder.get()})


def _context(mod: tvm.IRModule, target: tvm.target.Target, space: Any, seed: int) -> Any:
    """A ``TuneContext``. Its own constructor first parses every tensor intrinsic of TVM, which takes half a minute."""
    made = meta_schedule.TuneContext.__new__(meta_schedule.TuneContext)
    strategy = meta_schedule.search_strategy.ReplayFunc()
    log = get_logging_func(logging.getLogger(__name__))
    made.__init_handle_by_constructor__(_ffi_api.TuneContext, mod, target, space, strategy, "layer", 1, seed, log)
    _ffi_api.TuneContextInitialize(made)
    return made


class Space:
    """Draws candidates for one layer, and remembers which was best. ``shipped`` is the point that ships."""

    def __init__(self, template: Template, trials: int, seed: int = 1) -> None:
        self.template = template
        self.shipped = self._ask(Knobs(template.call.knobs.choices))
        self._random = random.Random(seed)
        self._seen = {self._name(self.shipped)}
        self._database = meta_schedule.database.MemoryDatabase()
        mod = _stand_in(template.key)
        self._workload = self._database.commit_workload(mod)
        self._target = tvm_target(template.call.target)
        space = meta_schedule.space_generator.ScheduleFn(self._draw, sch_rules=[], postprocs=[], mutator_probs={})
        self._context = _context(mod, self._target, space, seed)
        most = (trials + 1) * (_MISSES + 1)
        self._context.pre_tuning(most, 1, self._context.generate_design_space(), self._database, None)

    def _ask(self, knobs: Knobs) -> Point:
        self.template.make(self.template.call.name, knobs)
        return dict(knobs.values)

    def _draw(self, schedule: s_tir.Schedule) -> s_tir.Schedule:
        block = schedule.get_sblock(_BLOCK)
        kept: Point = {}
        best = self.best()
        if best and self._random.random() < _NEIGHBOUR:
            changed = self._random.choice(sorted(best))
            kept = {name: value for name, value in best.items() if name != changed}

        def pick(name: str, candidates: tuple[int, ...]) -> int:
            decision = candidates.index(kept[name]) if kept.get(name) in candidates else None
            chances = [1 / len(candidates)] * len(candidates)
            variable = schedule.sample_categorical(list(candidates), chances, decision)
            schedule.annotate(block, _PREFIX + name, variable)
            return int(schedule.get(variable))

        self._ask(Knobs(pick=pick))
        return schedule

    def _point(self, candidate: Any) -> Point:
        schedule = candidate.sch
        notes = schedule.get(schedule.get_sblock(_BLOCK)).annotations
        return {str(key)[len(_PREFIX) :]: int(value) for key, value in notes.items() if str(key).startswith(_PREFIX)}

    @staticmethod
    def _name(point: Point) -> str:
        return repr(sorted(point.items()))

    def candidates(self, count: int) -> list[tuple[Point, Any]]:
        """Up to ``count`` points that were not drawn before, with MetaSchedule's candidates; none when there are no more."""
        found: list[tuple[Point, Any]] = []
        misses = 0
        while len(found) < count and misses < _MISSES:
            drawn = self._context.generate_measure_candidates()
            if not drawn:
                break
            for candidate in drawn:
                point = self._point(candidate)
                if self._name(point) in self._seen:
                    misses += 1
                    continue
                self._seen.add(self._name(point))
                found.append((point, candidate))
                misses = 0
        return found

    def measured(self, candidate: Any, seconds: float) -> None:
        """Remember a candidate's time (of those that compute the right thing)."""
        record = meta_schedule.database.TuningRecord(candidate.sch.trace, self._workload, [seconds], self._target, [])
        self._database.commit_tuning_record(record)

    def best(self) -> Point | None:
        """The fastest point that was measured; None before any."""
        found = self._database.get_top_k(self._workload, 1) if hasattr(self, "_workload") else []
        if not found:
            return None
        schedule = s_tir.Schedule(self._workload.mod, debug_mask="none")
        found[0].trace.apply_to_schedule(schedule, remove_postproc=False)
        notes = schedule.get(schedule.get_sblock(_BLOCK)).annotations
        return {str(key)[len(_PREFIX) :]: int(value) for key, value in notes.items() if str(key).startswith(_PREFIX)}
