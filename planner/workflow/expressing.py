"""What a launch target cannot express, and the nearest layout that it can."""

from __future__ import annotations

from collections.abc import Iterator

from planner.emit import emitter_named
from planner.emit.capabilities import Capabilities, layout_refusals, word
from planner.emit.wrapped import payload
from planner.errors import PlannerError, SpecError
from planner.layouts.ranges import FIXABLE
from planner.layouts.table import Layouts
from planner.plan import Layout, Plan, Request
from planner.rank import Ranking, nearest
from planner.specs.workload import Workload
from planner.units import seconds
from planner.workflow.completing import completed
from planner.workflow.request import PlanRequest, quiet
from planner.workflow.rows import layout_record, ranked, search_record, shown
from planner.workflow.searching import search, with_offload
from planner.workflow.targets import stack_of

FIELDS = (
    *("tp", "sp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate", "zero", "micro_batch"),
    *("recompute", "schedule", "offload", "dp_sync"),
)
LOOKED_AT = 4096
"""Nearest layouts that are held against the target's table of what it can express."""
DRAFTED = 64
"""Of those, the ones whose every rule is asked, for which their layers must be dealt."""


def nearest_layout(plan: Plan, target: str) -> Layout | None:
    """Return the layout nearest to the plan's best that `target` can run, or None.

    Nearest in the fields changed, then in how far they change, then in step time. It fits in memory
    and obeys the rules of the target's own stack; model, cluster, batch and GPUs are the plan's.
    """
    emitter = emitter_named(target)
    workload = plan.request.workload
    request = PlanRequest(
        plan.request.model,
        plan.request.cluster,
        workload.model_copy(update={"stack": stack_of(target, workload.stack)}),
        gpus=plan.best.layout.gpus,
    )
    try:
        ranking, _ = with_offload(request, *search(request, quiet))
    except PlannerError:
        return None
    can = payload(target, workload.stack).can
    for draft in _drafts(request, ranking, plan.best.layout, can):
        if not emitter.unsupported(draft):
            return draft.best.layout
    return None


def refuse(plan: Plan, target: str) -> None:
    """Raise SpecError when `target` cannot run the plan: why, and the nearest layout that it can.

    Raises SpecError for a target that does not exist, too.
    """
    emitter = emitter_named(target)
    if not (problems := emitter.unsupported(plan)):
        return
    near = nearest_layout(plan, target)
    raise SpecError(
        f"{target} cannot run {plan.best.layout.short()}: " + " ".join(problems),
        hint=f"the nearest layout that it can run is {near.short()}: meshwright plan ... "
        f"--fix {near.short()} --target {target} -o DIR"
        if near
        else f"no layout of these {plan.best.layout.gpus} GPUs runs under {target}",
    )


def whose_figures(plan: Plan, target: str) -> str:
    """Return what to say where the plan's figures are for no stack, and the target's are others.

    Nothing where the plan is for a stack.
    """
    work, layout = plan.request.workload, plan.best.layout
    if work.stack != "any":
        return ""
    stack = stack_of(target, work.stack)
    own = work.model_copy(update={"stack": stack})
    request = PlanRequest(plan.request.model, plan.request.cluster, own, gpus=layout.gpus)
    found = completed(request, {name: word(getattr(layout, name)) for name in FIXABLE})
    start = f"the plan is for no stack in particular, {target} trains under {stack}, by whose "
    best = f"for its best layout: meshwright plan ... --target {target}"
    if not (found.legal and found.layouts):
        return f"{start}rules this layout is not a choice ({'; '.join(found.reasons)}); {best}"
    theirs = ranked(request, found.layouts, 0, 1).estimate
    told = [seconds(e.step_time_s) for e in (theirs, plan.best.estimate)]
    fits = "" if theirs.memory.fits(own.max_memory) else " and does not fit in memory"
    return f"{start}figures this layout takes {told[0]} a step{fits}, not {told[1]}; {best}"


def _drafts(
    request: PlanRequest, ranking: Ranking, wanted: Layout, can: Capabilities
) -> Iterator[Plan]:
    """Yield plans of the nearest layouts that the target's table holds, the nearest first."""
    if not ranking.feasible:
        return
    row = Layouts.of([wanted.model_dump()])
    near = nearest(
        ranking, {name: int(getattr(row, name)[0]) for name in FIELDS}, FIELDS, LOOKED_AT
    )
    held = (int(r) for r in near if _holds(ranking, int(r), request.workload, can))
    for _, index in zip(range(DRAFTED), held, strict=False):
        yield Plan(
            request=Request(
                model=request.model, cluster=request.cluster, workload=request.workload
            ),
            search=search_record(ranking),
            plans=[shown(request, ranking, index, 1)],
        )


def _holds(ranking: Ranking, row: int, workload: Workload, can: Capabilities) -> bool:
    layout = layout_record(ranking.layouts, row)
    return not any(layout_refusals(layout, workload, can))
