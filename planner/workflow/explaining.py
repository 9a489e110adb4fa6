"""One layout opened into its terms, compared with the best, mended if it won't do."""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InfeasibleError
from planner.estimate.inputs import Inputs
from planner.estimate.opening import opened_memory, peak_points
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.record import term_values
from planner.estimate.sync import gradient_sync, two_terabytes
from planner.explanation import Explanation, MemoryTerm, SyncRow, TermValue
from planner.layouts.ranges import FIXABLE, Fix, parse_fix
from planner.layouts.table import Layouts
from planner.plan import RankedPlan
from planner.rank import rank
from planner.specs.parameters import count_parameters
from planner.units import count, seconds
from planner.workflow.completing import completed
from planner.workflow.hosts import host_bound
from planner.workflow.mending import mends, sentences
from planner.workflow.planning import PlanRequest, ranked


def explain(request: PlanRequest, layout: Mapping[str, str]) -> Explanation:
    """Return one layout opened into its terms, compared with the best, mended if it won't do.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    found = completed(request, layout)
    if found.layout is None:
        raise InfeasibleError("; ".join(found.reasons))
    given = parse_fix(layout).choices
    assumed = {n: v for n, v in found.layouts.row(0).items() if n in FIXABLE and n not in given}
    sync = _gradient_sync(request, found.layouts) if found.legal else []
    mended, why_none = ([], []) if found.feasible else mends(request, found)
    if not found.legal:
        return Explanation(
            legal=False,
            feasible=False,
            reasons=found.reasons,
            mends=[*why_none, *sentences(mended)],
            mend_layouts=mended,
            assumed=assumed,
            layout=found.layout,
            gradient_sync=sync,
            notes=found.notes,
        )
    opened = ranked(request, found.layouts, 0, 1)
    terms = [TermValue.model_validate(t) for t in term_values(request.context, found.layouts, 0)]
    memory = opened_memory(request.context, found.layouts, 0)
    parameters = count_parameters(request.model).total
    waits = host_bound("this layout", opened.estimate, request.workload.stack)
    return Explanation(
        legal=True,
        feasible=found.feasible,
        reasons=found.reasons,
        mends=[*why_none, *sentences(mended)],
        mend_layouts=mended,
        assumed=assumed,
        layout=found.layout,
        estimate=opened.estimate,
        stage_layers=opened.stage_layers,
        terms=terms,
        memory_terms=[MemoryTerm.model_validate(t) for t in memory],
        peak_points=peak_points(request.context, found.layouts, 0),
        compared=_compared(request, opened, found.gpus),
        gradient_sync=sync,
        notes=[*found.notes, *waits, two_terabytes(parameters, 2.0)],
    )


def _gradient_sync(request: PlanRequest, layouts: Layouts) -> list[SyncRow]:
    """Return what one synchronisation of the parameters that a GPU holds moves, by scheme.

    The heaviest stage over its dp * cp replicas, in the width the stack reduces gradients in. An
    expert's own, smaller group is taken for the dense one: an upper bound.
    """
    replicas = int(layouts.dp[0] * layouts.cp[0])
    if replicas == 1:
        return []
    x = Inputs(*request.context, layouts)
    held = float((stage_dense_parameters(x) + stage_expert_parameters(x)).max())
    rows = gradient_sync(held, replicas, x.stack.gradient_reduce_bytes)
    return [SyncRow.model_validate({**r._asdict(), "source": str(r.source)}) for r in rows]


def _compared(request: PlanRequest, opened: RankedPlan, gpus: int) -> list[str]:
    """Return how the layout compares with the fastest of the same number of GPUs, by part."""
    ranking = rank(request.context, gpus, Fix())
    if not ranking.feasible:
        return []
    best = ranked(request, ranking.layouts, 0, 1)
    mine, theirs = opened.estimate, best.estimate
    slower = mine.step_time_s / theirs.step_time_s - 1
    place = int((ranking.step_s < mine.step_time_s * (1 - 1e-12)).sum()) + 1
    if opened.feasible and slower <= 1e-9:
        return [f"this is the fastest of {count(ranking.feasible)} layouts that fit"]
    lines = [
        f"{slower:.1%} slower than the best that fits ({best.layout.short()}: "
        f"{seconds(theirs.step_time_s)} a step); {place:,} of {ranking.feasible:,}"
        if opened.feasible
        else f"the best that fits is {best.layout.short()}: {seconds(theirs.step_time_s)} a step"
    ]
    parts = {n: mine.time_s[n] - theirs.time_s.get(n, 0.0) for n in mine.time_s}
    for name, lost in sorted(parts.items(), key=lambda item: -abs(item[1])):
        if abs(lost) > 0.002 * theirs.step_time_s:
            lines.append(f"{name}: {'+' if lost > 0 else '-'}{seconds(abs(lost))}")
    return lines
