"""One layout opened into its terms, compared with the best, mended if it won't do."""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InfeasibleError
from planner.estimate.inputs import Inputs
from planner.estimate.opening import opened_memory, peak_points
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.record import term_values
from planner.estimate.sync import gradient_sync
from planner.explanation import BrokenRule, Explanation, MemoryTerm, SyncRow, TermValue
from planner.layouts.ranges import FIXABLE, parse_fix
from planner.layouts.rules import rules_broken
from planner.layouts.table import Layouts
from planner.workflow.comparing import compared
from planner.workflow.completing import Completed, completed
from planner.workflow.flagging import flag_mends
from planner.workflow.hosts import host_bound
from planner.workflow.mending import mends, sentences
from planner.workflow.on_map import on_map
from planner.workflow.request import PlanRequest, Progress, quiet
from planner.workflow.rows import ranked
from planner.workflow.unused import unused


def explain(
    request: PlanRequest,
    layout: Mapping[str, str],
    *,
    mapped: bool = True,
    progress: Progress = quiet,
) -> Explanation:
    """Return one layout opened into its terms, compared with the best, mended if it won't do.

    Its times are those on the links of the map that it would get, unless `mapped` is False.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    found = completed(request, layout, progress)
    if found.layout is None:
        raise InfeasibleError("; ".join(found.reasons))
    given = parse_fix(layout).choices
    assumed = {n: v for n, v in found.layouts.row(0).items() if n in FIXABLE and n not in given}
    sync = _gradient_sync(request, found.layouts) if found.legal else []
    mended, why_none = ([], []) if found.feasible else mends(request, found, progress)
    if not found.legal:
        return Explanation(
            legal=False,
            feasible=False,
            reasons=found.reasons,
            broken_rules=_broken(request, found),
            mends=[*why_none, *sentences(mended)],
            mend_layouts=mended,
            assumed=assumed,
            layout=found.layout,
            gradient_sync=sync,
            notes=found.notes,
        )
    judged, there, said = on_map(request, found.layouts) if mapped else (None, None, [])
    opened = ranked(request, found.layouts, 0, 1, judged)
    terms = [
        TermValue.model_validate(t) for t in term_values(request.context, found.layouts, 0, judged)
    ]
    memory = opened_memory(request.context, found.layouts, 0)
    lines, against = compared(
        request, opened, found.gpus, mapped=there is not None, progress=progress
    )
    flags = (
        [] if found.feasible else flag_mends(request, found.layouts, opened.estimate.step_time_s)
    )
    waits = host_bound("this layout", opened.estimate, request.workload.stack)
    return Explanation(
        legal=True,
        feasible=found.feasible,
        reasons=found.reasons,
        mends=[*why_none, *flags, *sentences(mended)],
        mend_layouts=mended,
        assumed=assumed,
        layout=found.layout,
        estimate=opened.estimate,
        on_map=there,
        stage_layers=opened.stage_layers,
        terms=terms,
        memory_terms=[MemoryTerm.model_validate(t) for t in memory],
        peak_points=peak_points(request.context, found.layouts, 0),
        compared=lines,
        against=against,
        gradient_sync=sync,
        notes=[
            *request.notes,
            *found.notes,
            *said,
            *waits,
            *unused(request.workload, opened.layout, opened.stage_layers),
        ],
    )


def _broken(request: PlanRequest, found: Completed) -> list[BrokenRule]:
    """Return the rules that an illegal layout breaks, by name; the number of GPUs is one too."""
    context, layouts = request.context, found.layouts
    rules = [
        BrokenRule(name=r.name, sentence=r.explain(layouts, 0, context), where=r.where)
        for r in rules_broken(layouts, 0, context)
    ]
    told = {rule.sentence for rule in rules}
    return [
        *(BrokenRule(name="GPUs", sentence=s) for s in found.reasons if s not in told),
        *rules,
    ]


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
