"""One layout on the map that it would get: its estimate on the links that this map loads."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import InfeasibleError
from planner.estimate.running import Judged, judge, loaded
from planner.explanation import OnMap
from planner.layouts.table import Layouts
from planner.place import Clock, Tree, flows_of, free_nodes, loads_of
from planner.plan import Placement
from planner.units import many, seconds
from planner.workflow.request import PlanRequest
from planner.workflow.rows import layout_record
from planner.workflow.spots import placed_layout

SAID = 0.0005
"""A relative difference in step time that is worth a sentence."""


def on_map(request: PlanRequest, layouts: Layouts) -> tuple[Judged, OnMap | None, list[str]]:
    """Return how a layout of one row runs where it would be placed, that place, and what to say.

    Where it finds no room, how it runs on paper: pipelines under one leaf, rings leaving it.
    """
    layout = layout_record(layouts, 0)
    paper = judge(request.context, layouts)[0]
    try:
        placement = placed_layout(request, layout)
        clock = Clock(request.context, layout)
        best = _timed(request, layouts, paper, clock)
    except InfeasibleError as error:
        why = f"cannot be placed: {error.message}; times are those of pipelines under one leaf"
        return paper, None, [why]
    record = OnMap(
        pipelines=request.pipelines,
        step_time_s=best.step_s,
        on_paper_s=paper.step_s,
        splits=placement.splits,
        tiers=placement.tiers,
    )
    return best, record, _said(record, placement, clock)


def _timed(request: PlanRequest, layouts: Layouts, paper: Judged, clock: Clock) -> Judged:
    """Return the layout on the best of its maps; InfeasibleError where there is no room."""
    if not clock.contended:  # every map takes the same: that of paper, to the last digit
        return replace(paper, flows=None)
    free, tree = free_nodes(request.cluster, request.unhealthy), Tree.of(request.cluster)
    loads = loads_of(free, tree, clock, pipelines=request.pipelines)
    rows = layouts.take([0] * len(loads))
    timed = loaded(request.context, rows, [paper] * len(loads), flows_of(loads))
    return min(timed, key=lambda one: one.step_s)


def _said(record: OnMap, placement: Placement, clock: Clock) -> list[str]:
    crossed = ", ".join(filter(None, (_widest(k, t) for k, t in placement.tiers.items())))
    splits = many(record.splits, "pipeline edge") if record.splits else "no pipeline edge"
    where = f"{splits} between leafs" + (f"; {crossed}" if crossed else "")
    leafs = len({rank.leaf for rank in placement.ranks})
    if leafs == 1 or not clock.contended:
        return []
    slower = record.step_time_s / record.on_paper_s - 1
    same = "as long as" if abs(slower) < SAID else f"{slower:+.1%} against"
    return [
        f"timed where --pipelines {record.pipelines} places it on this {clock.fabric()} fabric "
        f"({where}): {seconds(record.step_time_s)}, {same} the "
        f"{seconds(record.on_paper_s)} on paper (pipelines under one leaf, every ring leaving it)"
    ]


def _widest(kind: str, counts: dict[str, int]) -> str:
    """Return how many groups of a kind leave a leaf, in words; empty where none does."""
    out = sum(count for tier, count in counts.items() if tier in ("pod", "across"))
    return f"{many(out, f'{kind} group')} across leafs" if out and kind != "pp" else ""
