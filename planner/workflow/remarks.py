"""What a plan says of itself beside its figures: how sure it is, what it would cost to be safer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.estimate.uncertainty import tie
from planner.layouts.rules import broken_rules
from planner.layouts.table import Layouts
from planner.plan import Estimate, RankedPlan
from planner.rank import Ranking
from planner.specs.workload import Workload
from planner.units import seconds
from planner.workflow.request import PlanRequest
from planner.workflow.rows import layout_record, ranked

NEAR_TIE = 0.03
"""Step times this close are within the estimate's own error: reports call them a tie."""
REAL_STACKS = ("megatron", "torchtitan", "deepspeed")


def remarks(ranking: Ranking, plans: Sequence[RankedPlan], workload: Workload) -> list[str]:
    """Return how the rows were chosen, how sure their order is, and what the first one risks."""
    notes = ["each row is the best of its (tp, pp, cp, ep, etp, dp); --fix shows its variants"]
    best = plans[0].estimate
    notes += _ran(ranking)
    if best.memory.at_risk:
        notes.append(_calmer(ranking, best, workload.risk_memory))
    close = max(NEAR_TIE, tie(workload))
    ties = int((ranking.step_s <= best.step_time_s * (1 + close)).sum())
    if ties > 1:
        notes.append(f"{ties:,} layouts are within {close:.0%}, less than the estimate's error")
    if best.time_s.get("host", 0) > 0.1 * best.step_time_s:
        notes.append("the first plan is host-bound: try a larger micro-batch or CUDA graphs")
    return notes


def _ran(ranking: Ranking) -> list[str]:
    """Return how many pipelines were run, and why the fastest cannot be among the others."""
    told = ranking.leaders
    if not told.pipelines:
        return []
    ran = f"{len(told.judged):,} of {told.pipelines:,} pipelines were run action by action"
    if told.left:
        short = 1 - told.next_s / told.best_s
        return [
            f"{ran}; {told.left:,} more, too large to run here, might be up to {short:.1%} faster "
            "than the best of them, by their lower bounds"
        ]
    return [f"{ran}, with their own stage times; the lower bound of every other is above the best"]


def on_real_stacks(request: PlanRequest, best: Layouts) -> list[str]:
    """Return how the first plan would run on the stacks that exist, when none was asked for."""
    if request.workload.stack != "any":
        return []
    told = []
    for stack in REAL_STACKS:
        workload = request.workload.model_copy(update={"stack": stack})
        own = replace(request, workload=workload)
        if broken := broken_rules(best, 0, own.context):
            told.append(f"{stack} cannot run it ({broken[0]})")
            continue
        there = ranked(own, best, 0, 1)
        over = "" if there.feasible else ", out of memory"
        told.append(f"{seconds(there.estimate.step_time_s)} on {stack}{over}")
    return [
        "stack any is the mean of the stacks measured, and no one's limits; the first plan takes "
        + "; ".join(told)
        + ". --stack NAME ranks for one"
    ]


def _calmer(ranking: Ranking, best: Estimate, share_at_risk: float) -> str:
    """Return what the fastest layout away from the memory limit would cost."""
    share = best.memory.peak_bytes / best.memory.limit_bytes
    risk = f"the first plan takes {share:.0%} of a GPU's memory, where allocators may thrash"
    calm = np.flatnonzero(ranking.peak_bytes <= share_at_risk * ranking.limit_bytes)
    if not len(calm):
        return f"{risk}; no layout stays below {share_at_risk:.0%}"
    slower = ranking.step_s[calm[0]] / best.step_time_s - 1
    other = layout_record(ranking.layouts, int(calm[0])).short()
    return f"{risk}; --max-memory {share_at_risk:g} would give {other}, {slower:.1%} slower"
