"""Why no layout meets the limits, in figures, and the smallest larger job that would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.errors import InfeasibleError
from planner.objectives import DAY_S, HOUR_S, Aim, Job, allowed_step_s, step_limits, steps_of
from planner.rank import rank
from planner.units import count, many, seconds
from planner.workflow.choosing import Looked
from planner.workflow.growing import FAR_HALVES, grown
from planner.workflow.sizing import least_step_s


def out_of_reach(found: Sequence[Looked]) -> InfeasibleError:
    """Return the error for jobs of which no layout meets the limits: the nearest, by its figures.

    The nearest is the one that misses what it may take by the least share.
    """
    near = min(found, key=lambda one: one.fastest_s / allowed_step_s(one.request.aim, one.job))
    aim, job = near.request.aim, near.job
    option, most = min(step_limits(aim, job), key=lambda limit: limit[1])
    where = f"on {many(job.gpus, 'GPU')}"
    if len(found) > 1:
        where += f", the nearest of {len(found):,} jobs"
    what = "the fastest layout takes"
    if near.on_paper_s is not None:
        what = "the fastest layout that might do takes"
        where += f", placed on this fabric ({seconds(near.on_paper_s)} on paper)"
    return InfeasibleError(
        f"{what} {seconds(near.fastest_s)} a step {where}; "
        f"{_asked(option, most, aim, job, near.fastest_s)}",
        hint=_hint(option, near, found),
    )


def _asked(option: str, most: float, aim: Aim, job: Job, fastest_s: float) -> str:
    """Return what a limit asks for, in its own unit and in seconds of a step."""
    if option == "--max-step-time" or aim.tokens is None:
        return f"--max-step-time asks for {seconds(most)}"
    steps = steps_of(aim.tokens, job)
    run_s, run = fastest_s * steps, f"{count(aim.tokens)} tokens are {steps:,} steps"
    if option == "--deadline":
        asked = f"--deadline asks for {days(aim.deadline_s or 0.0)}, {seconds(most)} a step"
        return f"{run} and take {days(run_s)}; {asked}"
    usd = run_s / HOUR_S * job.gpus * (aim.usd_per_gpu_hour or 0.0)
    return f"{run} and cost {money(usd)}; --budget allows {money(aim.budget_usd or 0.0)}"


def _hint(option: str, near: Looked, found: Sequence[Looked]) -> str:
    if option == "--budget":
        fewest = min(one.job.gpus for one in found)
        smaller = "" if fewest == 1 else ", fewer GPUs (--nodes), which idle less"
        return f"a lower --price, fewer --tokens{smaller}"
    if told := _larger(near):
        return told
    return (
        "no larger cluster of this kind that was tried would do; a larger --global-batch idles less"
    )


def _larger(near: Looked) -> str:
    """Return the first larger job that meets the limits, with its step time."""
    request, per_node = near.request, near.request.cluster.node.gpus
    for halves in FAR_HALVES:
        gpus = near.job.gpus * halves // 2
        if near.job.gpus * halves % 2 or (gpus > per_node and gpus % per_node):
            continue
        cluster = request.cluster if gpus <= request.cluster.gpus else grown(request.cluster, gpus)
        if cluster is None:
            continue
        most = allowed_step_s(request.aim, Job(gpus, near.job.tokens))
        if least_step_s(request, gpus) > most:
            continue
        ranking = rank(replace(request, cluster=cluster).context, gpus, request.choices)
        if ranking.feasible and ranking.step_s[0] <= most:
            nodes = many(-(-gpus // per_node), "node")
            return f"{nodes} would take {seconds(float(ranking.step_s[0]))} a step"
    return ""


def days(amount_s: float) -> str:
    """Return a long duration as people plan with it: '12.3 days', '5.6 hours', '40 min'."""
    if amount_s >= 2 * DAY_S:
        return f"{amount_s / DAY_S:,.1f} days"
    return (
        f"{amount_s / HOUR_S:.1f} hours" if amount_s >= 2 * HOUR_S else f"{amount_s / 60:.0f} min"
    )


def money(amount_usd: float) -> str:
    """Return dollars with a short suffix: '2.00M USD'."""
    return f"{count(amount_usd)} USD" if amount_usd >= 1000 else f"{amount_usd:.2f} USD"
