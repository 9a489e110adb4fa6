"""From a request to a placed plan: search, rank, place the best, and the baseline beside it."""

from __future__ import annotations

import time

from planner.plan import Plan, Request
from planner.rank import settle
from planner.workflow.remarks import NEAR_TIE, on_real_stacks, remarks
from planner.workflow.request import PlanRequest, Progress, quiet
from planner.workflow.rows import baseline, layout_record, plain, ranked, search_record, shown
from planner.workflow.searching import nothing_fits, search, usable_gpus, with_offload
from planner.workflow.spots import placed_layout

__all__ = [
    "NEAR_TIE",
    "PlanRequest",
    "layout_record",
    "placed_layout",
    "plain",
    "plan",
    "ranked",
    "search",
    "usable_gpus",
]


def plan(request: PlanRequest, *, progress: Progress = quiet) -> Plan:
    """Return the ranked layouts, the best of them placed, plain data parallelism among them.

    Raises InfeasibleError when nothing is legal, nothing fits or no placement exists, and SpecError
    for a field or a host that is not known.
    """
    started = time.perf_counter()
    ranking, notes = with_offload(request, *search(request, progress))
    if not ranking.feasible:
        raise nothing_fits(request, ranking)
    ranking = settle(request.context, ranking, request.top)
    searched = time.perf_counter()
    rows = ranking.best_of_each_shape(request.top)
    plans = [shown(request, ranking, int(row), i + 1) for i, row in enumerate(rows)]
    plans += baseline(request, ranking, plans)
    progress("placing")
    placement = placed_layout(request, plans[0].layout)
    placed = time.perf_counter()
    return Plan(
        request=Request(model=request.model, cluster=request.cluster, workload=request.workload),
        search=search_record(ranking),
        plans=plans,
        placement=placement,
        notes=[
            *request.notes,
            *notes,
            *remarks(ranking, plans, request.workload),
            *on_real_stacks(request, ranking.layouts.take([0])),
        ],
        timing={
            "search_s": searched - started,
            "place_s": placed - searched,
            "total_s": placed - started,
        },
    )
