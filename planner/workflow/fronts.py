"""The trade-offs of a plan: layouts that no other beats in time, memory and GPUs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from planner.objectives import allowed_step_s, pareto
from planner.plan import FrontPoint, Layout, RankedPlan
from planner.workflow.choosing import Looked
from planner.workflow.rows import layout_record
from planner.workflow.variants import options_of

_Options = dict[str, Any]
_Key = tuple[str, int | None, Layout]


class _Point(NamedTuple):
    options: _Options
    layout: Layout
    global_batch: int
    gpus: int
    nodes: int
    tokens: int
    step_s: float
    peak_bytes: float
    simulated: bool


def front(found: Sequence[Looked], plans: Sequence[RankedPlan]) -> list[FrontPoint]:
    """Return the front over all jobs that were searched; rows of the table with what they show.

    Time is that of a token, so that batches compare. What misses a limit on time is none of it.
    """
    best = {
        _key(p.options, p.global_batch, p.layout): p for p in plans if p.feasible and not p.note
    }
    points = list(_distinct(found, best))
    columns = (
        np.array([p.step_s / p.tokens for p in points]),
        np.array([p.peak_bytes for p in points]),
        np.array([p.gpus for p in points], dtype=np.float64),
    )
    return [_record(points[row], best) for row in pareto(columns).tolist()]


def _distinct(found: Sequence[Looked], plans: dict[_Key, RankedPlan]) -> Iterator[_Point]:
    """Yield every job's own front, and the rows of the table, which may be run since."""
    for plan in plans.values():
        batch, layout = plan.global_batch, plan.layout
        cost, nodes = plan.estimate, plan.nodes or 1
        tokens = round(cost.tokens_per_s * cost.step_time_s)
        amounts = (cost.step_time_s, cost.memory.peak_bytes, cost.simulated)
        yield _Point(plan.options, layout, batch or 0, layout.gpus, nodes, tokens, *amounts)
    for one in found:
        work, judged = one.request.workload, one.front.leaders.judged
        options = options_of(one.request)
        nodes = -(-one.job.gpus // one.request.cluster.node.gpus)
        allowed_s = allowed_step_s(one.request.aim, one.job)
        for row in range(len(one.front.layouts)):
            layout = layout_record(one.front.layouts, row)
            if _key(options, work.global_batch, layout) in plans:
                continue
            step_s, peak = float(one.front.step_s[row]), float(one.front.peak_bytes[row])
            if step_s > allowed_s:
                continue
            amounts = (step_s, peak, row in judged)
            sizes = (work.global_batch, one.job.gpus, nodes, work.tokens)
            yield _Point(options, layout, *sizes, *amounts)


def _key(options: _Options, batch: int | None, layout: Layout) -> _Key:
    return str(options), batch, layout


def _record(p: _Point, plans: dict[_Key, RankedPlan]) -> FrontPoint:
    shown = plans.get(_key(p.options, p.global_batch, p.layout))
    return FrontPoint(
        rank=shown.rank if shown else None,
        nodes=p.nodes,
        gpus=p.gpus,
        global_batch=p.global_batch,
        options=p.options,
        layout=p.layout,
        step_time_s=p.step_s,
        tokens_per_s=p.tokens / p.step_s,
        peak_bytes=p.peak_bytes,
        simulated=p.simulated,
    )
