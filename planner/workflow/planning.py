"""From a request to a placed plan: search, rank, place the best, and the baseline beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from planner.objectives import Objective
from planner.plan import Plan, RankedPlan, Request, Search
from planner.rank import Ranking
from planner.workflow.choosing import Looked, Spot, best_spots, settled
from planner.workflow.fronts import front
from planner.workflow.limits import out_of_reach
from planner.workflow.pricing import chosen_record, priced
from planner.workflow.remarks import NEAR_TIE, near_tie, on_real_stacks, remarks
from planner.workflow.request import PlanRequest, Progress, quiet
from planner.workflow.rows import baseline, layout_record, plain, ranked, shown
from planner.workflow.searching import search, usable_gpus
from planner.workflow.sensitivity import sensitivity
from planner.workflow.sizing import looked_at, sizes_told
from planner.workflow.spots import placed_layout
from planner.workflow.unused import unused

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

    Raises InfeasibleError when nothing is legal, nothing fits, nothing meets the limits or no
    placement exists, and SpecError for a field or a host that is not known.
    """
    started = time.perf_counter()
    jobs = looked_at(request, progress)
    found = settled(jobs.found, request.top)
    spots = best_spots(found, request.top)
    if not spots:
        raise out_of_reach(found)
    plans = [_row(found, spot, number) for number, spot in enumerate(spots, start=1)]
    best, won = found[spots[0].at], found[spots[0].at].request
    plans = _with_ties(plans, won)
    plans += [priced(p, won) for p in baseline(won, best.ranking, plans)]
    tradeoffs = front(found, plans)
    searched = time.perf_counter()
    progress("placing")
    placement = placed_layout(won, plans[0].layout)
    placed = time.perf_counter()
    first = best.ranking.layouts.take([spots[0].row])
    what_if = sensitivity(won, first, best.job.gpus, progress) if request.sensitivity else []
    return Plan(
        request=Request(model=won.model, cluster=won.cluster, workload=won.workload),
        search=_searches(jobs.searches, [one.ranking for one in found]),
        plans=plans,
        placement=placement,
        objective=chosen_record(request.aim, plans[0], won),
        sizes=sizes_told(jobs, found),
        pareto=tradeoffs,
        sensitivity=what_if,
        notes=[
            *request.notes,
            *best.notes,
            *remarks(best, plans, jobs),
            *on_real_stacks(won, first),
            *unused(won.workload, plans[0].layout, plans[0].stage_layers),
        ],
        timing={
            "search_s": searched - started,
            "place_s": placed - searched,
            "total_s": time.perf_counter() - started,
        },
    )


def _row(found: Sequence[Looked], spot: Spot, number: int) -> RankedPlan:
    one = found[spot.at]
    return priced(shown(one.request, one.ranking, spot.row, number), one.request)


def _with_ties(plans: Sequence[RankedPlan], request: PlanRequest) -> list[RankedPlan]:
    """Return the rows, those marked whose speed cannot be told from the first's."""
    if request.aim.objective is Objective.MEMORY:
        return list(plans)
    rest = (p.model_copy(update={"tie": near_tie(p, plans[0], request)}) for p in plans[1:])
    return [plans[0], *rest]


def _searches(searches: Sequence[Search], rankings: Sequence[Ranking]) -> Search:
    """Return the counts of all jobs together."""
    rejected: dict[str, int] = {}
    for one in searches:
        for name, number in one.rejected.items():
            rejected[name] = rejected.get(name, 0) + number
    return Search(
        enumerated=sum(s.enumerated for s in searches),
        legal=sum(s.legal for s in searches),
        feasible=sum(s.feasible for s in searches),
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        simulated=sum(len(r.leaders.judged) for r in rankings),
        unsettled=sum(s.unsettled for s in searches),
    )
