"""What a plan says of itself beside its figures: how sure it is, what it would cost to be safer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from planner.estimate.uncertainty import tie
from planner.layouts.rules import broken_rules
from planner.layouts.table import Layouts
from planner.objectives import Job, Objective, score
from planner.plan import Estimate, RankedPlan
from planner.rank import Ranking
from planner.specs.stack import stack_named
from planner.specs.workload import Workload
from planner.units import seconds
from planner.workflow.choosing import Looked
from planner.workflow.hosts import host_bound
from planner.workflow.request import PlanRequest
from planner.workflow.rows import layout_record, ranked
from planner.workflow.sizing import Jobs

NEAR_TIE = 0.03
"""Step times this close are within the estimate's own error: reports call them a tie."""
REAL_STACKS = ("megatron", "torchtitan", "deepspeed")


def closeness(workload: Workload) -> float:
    """Return the relative difference of step times below which two layouts are a tie."""
    return max(NEAR_TIE, tie(workload))


def near_tie(row: RankedPlan, first: RankedPlan, request: PlanRequest) -> bool:
    """Return whether a row cannot be told from the first by the objective, as sure as times are."""
    ours, theirs = (_score(p, request) for p in (first, row))
    if request.aim.objective is Objective.GPUS and ours == theirs:
        ours, theirs = (p.estimate.step_time_s for p in (first, row))
    return theirs <= ours * (1 + closeness(request.workload))


def _score(plan: RankedPlan, request: PlanRequest) -> float:
    batch = plan.global_batch or request.workload.global_batch
    job = Job(plan.layout.gpus, batch * request.workload.seq_tokens)
    cost = plan.estimate
    time, peak = np.array([cost.step_time_s]), np.array([cost.memory.peak_bytes])
    return float(score(request.aim, job, time, peak)[0])


def remarks(best: Looked, plans: Sequence[RankedPlan], jobs: Jobs) -> list[str]:
    """Return how the rows were chosen, how sure their order is, and what the first one risks."""
    request, ranking, first = best.request, best.ranking, plans[0].estimate
    work = request.workload
    notes = [*_aim(best), *_jobs(jobs)]
    notes.append(
        "each row is the best found of its (tp, pp, cp, ep, etp, dp); --fix shows its variants"
    )
    notes += _ran(ranking, request.aim.objective)
    if first.memory.at_risk:
        notes.append(_calmer(ranking, first, work.risk_memory))
    close = closeness(work)
    ties = int((ranking.step_s <= first.step_time_s * (1 + close)).sum())
    if ties > 1 and request.aim.objective is not Objective.MEMORY:
        notes.append(f"{ties:,} layouts are within {close:.0%}, less than the estimate's error")
    notes += host_bound("the first plan", first, work.stack)
    if plans[0].layout.tp > 1 and stack_named(work.stack).rules == "deepspeed":
        notes.append("no published run of DeepSpeed's AutoTP is known: its step time is unmeasured")
    return notes


def _aim(best: Looked) -> list[str]:
    """Return what rates the objective stands on, and how many layouts meet the limits."""
    aim, told = best.request.aim, []
    if aim.usd_per_gpu_hour is not None:
        told.append(f"{aim.usd_per_gpu_hour:g} USD a GPU-hour: {aim.usd_source}")
    if aim.watts_per_gpu is not None and aim.objective is Objective.ENERGY:
        told.append(
            f"{aim.watts_per_gpu:.0f} W a GPU: {aim.watts_source}; the same at every layout, so "
            "that energy follows GPU-seconds; without hosts, network and cooling"
        )
    if aim.limited and not best.request.nodes:
        told.append(
            f"{best.within:,} of {best.search.feasible:,} layouts that fit meet the limits; those "
            "whose pipeline was not run are held to them by their closed form"
        )
    return told


def _jobs(jobs: Jobs) -> list[str]:
    """Return which node counts and batches were looked at."""
    if not jobs.sizes:
        return []
    nodes, batches = (
        _runs(sorted({getattr(s, name) for s in jobs.sizes})) for name in ("nodes", "global_batch")
    )
    told = f"looked at {nodes} nodes with batch {batches}"
    if choices := len({str(s.options) for s in jobs.sizes}) - 1:
        told += f", with {choices + 1:,} choices of {_listed(jobs.sizes[0].options)}"
    if jobs.unseen:
        told += f"; {jobs.unseen:,} larger jobs were not, because fewer GPUs do"
    skipped = sum(s.reason.startswith("not searched") for s in jobs.sizes)
    if skipped:
        told += f"; {skipped:,} of them not in full, because their multiplies alone take too long"
    return [told]


def _listed(options: Mapping[str, object]) -> str:
    """Return the names of what was chosen, such as 'precision and stack'."""
    *some, last = (name.replace("_", " ") for name in options)
    return f"{', '.join(some)} and {last}" if some else last


def _runs(values: Sequence[int]) -> str:
    """Return '8 to 128' for neighbours, and what stands alone beside it."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    told = [f"{r[0]:,} to {r[-1]:,}" if len(r) > 1 else f"{r[0]:,}" for r in runs]
    return ", ".join(told)


def _ran(ranking: Ranking, objective: Objective) -> list[str]:
    """Return how many pipelines were run, and why the fastest cannot be among the others."""
    told = ranking.leaders
    if not told.pipelines:
        return []
    ran = f"{len(told.judged):,} of {told.pipelines:,} pipelines were run action by action"
    if objective is Objective.MEMORY:
        return [f"{ran}, the rows shown among them"]
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
