"""What a row of the table costs: its nodes and batch, money and energy, and the whole run."""

from __future__ import annotations

import numpy as np

from planner.objectives import (
    FORMULAS,
    HOUR_S,
    JOULES_PER_MWH,
    Aim,
    Job,
    mwh_per_trillion,
    steps_of,
    usd_per_trillion,
    value,
)
from planner.plan import Chosen, RankedPlan, Run
from planner.workflow.request import PlanRequest
from planner.workflow.variants import options_of


def priced(plan: RankedPlan, request: PlanRequest) -> RankedPlan:
    """Return a row with its nodes, its batch, and what it costs where the rates are known."""
    aim, time = request.aim, np.array([plan.estimate.step_time_s])
    job = Job(plan.layout.gpus, request.workload.tokens)
    usd, watts = aim.usd_per_gpu_hour, aim.watts_per_gpu
    return plan.model_copy(
        update={
            "nodes": -(-job.gpus // request.cluster.node.gpus),
            "global_batch": request.workload.global_batch,
            "options": options_of(request),
            "usd_per_trillion_tokens": usd and float(usd_per_trillion(time, job, usd)[0]),
            "mwh_per_trillion_tokens": watts and float(mwh_per_trillion(time, job, watts)[0]),
            "run": _run(aim, job, plan.estimate.step_time_s),
        }
    )


def _run(aim: Aim, job: Job, step_s: float) -> Run | None:
    if aim.tokens is None:
        return None
    steps = steps_of(aim.tokens, job)
    gpu_s = steps * step_s * job.gpus
    return Run(
        tokens=aim.tokens,
        steps=steps,
        seconds=steps * step_s,
        usd=aim.usd_per_gpu_hour and gpu_s / HOUR_S * aim.usd_per_gpu_hour,
        mwh=aim.watts_per_gpu and gpu_s * aim.watts_per_gpu / JOULES_PER_MWH,
    )


def chosen_record(aim: Aim, best: RankedPlan, request: PlanRequest) -> Chosen:
    """Return what the first row was chosen for, its value, and the limits kept."""
    formula = FORMULAS[aim.objective]
    job, cost = Job(best.layout.gpus, request.workload.tokens), best.estimate
    return Chosen(
        name=aim.objective.value,
        unit=formula.unit,
        value=value(aim, job, cost.step_time_s, cost.memory.peak_bytes),
        formula=formula.text,
        source=str(formula.source) if formula.source else "",
        usd_per_gpu_hour=aim.usd_per_gpu_hour,
        usd_source=aim.usd_source,
        watts_per_gpu=aim.watts_per_gpu,
        watts_source=aim.watts_source,
        tokens=aim.tokens,
        deadline_s=aim.deadline_s,
        budget_usd=aim.budget_usd,
        max_step_time_s=aim.max_step_s,
    )
