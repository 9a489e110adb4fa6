"""What else a plan may choose, beside the layout: each choice is a job of its own.

`--search` opens axes. `offload` and `schedule` are fields of a layout, and widen the search itself.
The others belong to the workload: what a variant of it changes is searched as one more job, and the
rows of all jobs are ranked together. How many layers full recompute goes by is searched as an axis
of the layouts (`planner.layouts.units`), and told as the workload's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np

from planner.errors import SpecError, did_you_mean
from planner.estimate.inputs import Inputs
from planner.estimate.modules import recomputed_modules
from planner.layouts.ranges import OPENED, UNITS
from planner.layouts.table import NAMES, Layouts
from planner.layouts.units import TOLD_NOTHING, layers_of
from planner.specs.model import ModelSpec
from planner.specs.stack import overlaps_of, stack_named
from planner.specs.workload import RECOMPUTABLE
from planner.workflow.request import PlanRequest

MODULES = "recompute-modules"
FIELDS: dict[str, tuple[str, ...]] = {
    "precision": ("precision",),
    "overlap": ("stack",),
    MODULES: ("recompute_modules",),
    UNITS: ("recompute_method", "recompute_layers"),
}
"""Axis -> the fields of the workload that it chooses."""
AXES = (*OPENED, *FIELDS)

Changes = dict[str, Any]


class Variant(NamedTuple):
    """Fields of the workload with other values, and the only kind of recompute that they change."""

    changes: Changes
    recompute: str


def axes_named(words: Sequence[str]) -> tuple[str, ...]:
    """Return the axes of --search in their own order; 'all' is every one.

    Raises SpecError for one that there is not.
    """
    for word in filter(None, words):
        if word not in (*AXES, "all"):
            raise SpecError(
                f"--search: {word[:80]!r} is no axis; axes: {', '.join(AXES)}, all",
                hint=did_you_mean(word, AXES),
            )
    return tuple(axis for axis in AXES if axis in words or "all" in words)


def refuse_twice(request: PlanRequest) -> None:
    """Raise SpecError where an axis is searched that was also given, or that changes nothing."""
    axes, work = request.search, request.workload
    lists = [axis for axis in (MODULES, UNITS) if axis in axes]
    own = (work.recompute_modules, work.recompute_method, work.recompute_layers)
    given = own != (None, "uniform", 1)
    if lists and given:
        raise SpecError(
            f"--search {','.join(lists)} does not go with --recompute-modules or "
            "--recompute-layers: it tries all of them",
            hint="leave one of them out",
        )
    for axis in OPENED:
        if axis in axes and axis in request.fix:
            raise SpecError(f"--search {axis} does not go with --fix {axis}=...")


def choices_of(request: PlanRequest) -> int:
    """Return how many searches the axes that are open make of one."""
    return sum(1 for _ in variants(request))


def variants(request: PlanRequest) -> Iterator[PlanRequest]:
    """Yield the request itself, then one with each other choice of the axes that are open."""
    for outer in _outer(request):
        yield outer
        for inner in _recomputed(outer):
            if request.choices.allows("recompute", NAMES["recompute"].index(inner.recompute)):
                fix = {**request.fix, "recompute": inner.recompute}
                yield replace(_changed(outer, inner.changes), fix=fix)


def _changed(request: PlanRequest, changes: Changes) -> PlanRequest:
    return replace(request, workload=request.workload.model_copy(update=changes))


def _outer(request: PlanRequest) -> Iterator[PlanRequest]:
    """Yield the request with every precision and every overlap that its axes open."""
    axes, work = request.search, request.workload
    formats = _precisions(request) if "precision" in axes else [work.precision]
    flags = overlaps_of(work.stack, experts=request.model.experts is not None)
    for precision in formats:
        for some in _subsets(flags if "overlap" in axes else ()):
            stack = "+".join([work.stack, *some])
            yield _changed(request, {"precision": precision, "stack": stack})


def _subsets(items: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(items, n) for n in range(len(items) + 1))


def _precisions(request: PlanRequest) -> list[Any]:
    """Return the workload's own, and 8 or 16 bit beside it; fp16 takes what bf16 does."""
    own = request.workload.precision
    if own == "fp8":
        return [own, type(own)("bf16")]
    has_fp8 = request.cluster.accelerator.gemm_fp8 is not None
    return [own, *([type(own)("fp8")] if has_fp8 else [])]


def _recomputed(request: PlanRequest) -> Iterator[Variant]:
    """Yield every other list of modules for selective recompute."""
    if stack_named(request.workload.stack).rules in TOLD_NOTHING:
        return
    if MODULES in request.search:
        for modules in module_lists(request):
            yield Variant({"recompute_modules": modules}, "selective")


def with_unit(request: PlanRequest, unit: int) -> PlanRequest:
    """Return a request with the layers that a choice of `recompute_units` stands for."""
    if not unit:
        return request
    (layers,), (block,) = layers_of(np.array([unit]))
    method = "block" if block else "uniform"
    return _changed(request, {"recompute_method": method, "recompute_layers": int(layers)})


def module_lists(request: PlanRequest) -> list[tuple[str, ...]]:
    """Return the lists of modules that differ in what they run again, without the stack's own.

    `moe` covers what is inside the experts.
    """
    has = modules_of(request.model)
    usual = recomputed_modules(Inputs(*request.context, Layouts.empty())) & {*has}
    inside = {"moe_act", "shared_experts"}
    lists = (some for some in _subsets(has) if some and {*some} != usual)
    return [some for some in lists if "moe" not in some or not inside & {*some}]


def modules_of(model: ModelSpec) -> tuple[str, ...]:
    """Return the modules that a model has, of those that can be recomputed."""
    experts = model.experts
    has = {
        "mlp": not all(model.moe_layers),
        "moe": experts is not None,
        "moe_act": experts is not None,
        "shared_experts": bool(experts and experts.shared_ffn),
        "mla_up_proj": model.mla is not None,
    }
    return tuple(name for name in RECOMPUTABLE if has.get(name, True))


def options_of(request: PlanRequest) -> Changes:
    """Return what a job has chosen of the axes that are open, by field of the workload."""
    fields = [name for axis, names in FIELDS.items() if axis in request.search for name in names]
    return request.workload.model_dump(mode="json", include={*fields}) if fields else {}
