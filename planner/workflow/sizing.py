"""How many nodes, which batch: every job that was left open is searched, none is guessed away.

Only where the fewest GPUs are asked for does the search end early, because it goes up from the
smallest job; jobs whose matrix multiplies alone take too long are not searched at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from planner.errors import InfeasibleError, SpecError
from planner.estimate.flops import matmul_parameters
from planner.estimate.inputs import Inputs
from planner.estimate.kernels import WEIGHT_GRADIENT_RATE, gemm_rate
from planner.layouts.ranges import UNITS
from planner.layouts.table import Layouts
from planner.objectives import Job, Objective, allowed_step_s, value
from planner.plan import Search, Size
from planner.rank import Ranking
from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload
from planner.units import gib, seconds
from planner.workflow.choosing import Looked, aimed, envelope, hopeful, leading_rows, parted, worth
from planner.workflow.growing import grown
from planner.workflow.request import PlanRequest, Progress
from planner.workflow.rows import layout_record, search_record
from planner.workflow.searching import nothing_fits, search, with_offload
from planner.workflow.variants import options_of, variants

MOST_JOBS = 4096
"""Node counts times batches that one plan may be chosen from."""


@dataclass(frozen=True)
class Jobs:
    """All jobs that were looked at, smallest first, and what is told of each."""

    found: list[Looked]
    sizes: list[Size]
    """Empty where there was nothing to choose."""
    asked: list[PlanRequest] = field(default_factory=list)
    """Of each size, the job."""
    searches: list[Search] = field(default_factory=list)
    """What was counted, of each job that was found."""
    unseen: int = 0
    """Jobs larger than the answer, which was to be the smallest."""


def looked_at(request: PlanRequest, progress: Progress) -> Jobs:
    """Return every job that the request leaves open, searched.

    Raises InfeasibleError when in none of them any layout is legal and fits.
    """
    jobs = list(islice(open_jobs(request), MOST_JOBS + 1))
    if len(jobs) > MOST_JOBS:
        raise SpecError(
            f"--search {','.join(request.search)} makes more than the {MOST_JOBS:,} jobs that one "
            "plan is chosen from",
            hint="fewer axes, node counts or batches",
        )
    if len(jobs) == 1 and not request.nodes and not request.batches:
        ranking, notes = with_offload(request, *search(request, progress))
        if not ranking.feasible:
            raise nothing_fits(request, ranking)
        one = _looked(request, ranking, notes)
        return Jobs(
            _leading(one, request.top) if UNITS in request.search else [one], [], [], [one.search]
        )
    return _all_of(jobs, progress)


def open_jobs(request: PlanRequest) -> Iterator[PlanRequest]:
    """Yield a request for every node count, batch and variant, by GPUs and then by batch."""
    nodes = request.nodes or _own_nodes(request)
    batches = request.batches or (request.workload.global_batch,)
    if len(nodes) * len(batches) > MOST_JOBS:
        raise SpecError(
            f"{len(nodes):,} node counts with {len(batches):,} batches are more than the "
            f"{MOST_JOBS:,} jobs that one plan is chosen from",
            hint="list fewer of them: --nodes 8,16,32",
        )
    if not nodes and len(batches) == 1:
        yield from variants(replace(request, batches=(), workload=_batch_of(request, batches[0])))
        return
    for count in sorted(nodes or (0,)):
        for batch in sorted(batches):
            work = _batch_of(request, batch)
            one = replace(request, workload=work, nodes=(), batches=())
            yield from variants(_on_nodes(one, count) if count else one)


def _own_nodes(request: PlanRequest) -> tuple[int, ...]:
    """Return what `gpus` chooses from where no node counts are given: all that there are."""
    fewest = request.aim.objective is Objective.GPUS and request.gpus is None
    return tuple(range(1, request.cluster.nodes + 1)) if fewest else ()


def _batch_of(request: PlanRequest, batch: int) -> Workload:
    return request.workload.model_copy(update={"global_batch": batch})


def _on_nodes(request: PlanRequest, nodes: int) -> PlanRequest:
    """Return the request on so many nodes: of the named hosts, or of a cluster of that size."""
    cluster = request.cluster
    if cluster.names_hosts or request.unhealthy:
        return replace(request, gpus=nodes * cluster.node.gpus)
    return replace(request, cluster=resized(cluster, nodes), gpus=nodes * cluster.node.gpus)


def resized(cluster: ClusterSpec, nodes: int) -> ClusterSpec:
    """Return the cluster with another number of nodes; SpecError where it cannot have them."""
    if nodes <= cluster.nodes:
        return ClusterSpec.model_validate({**cluster.model_dump(mode="json"), "nodes": nodes})
    larger = grown(cluster, nodes * cluster.node.gpus)
    if larger is None:
        raise SpecError(f"--nodes: {cluster.name} cannot have {nodes:,} nodes")
    return larger


def _all_of(asked: list[PlanRequest], progress: Progress) -> Jobs:
    """Return the jobs searched; with states on the hosts where nothing fits otherwise."""
    jobs = _searched(asked, progress, offload=False)
    if not jobs.found:
        jobs = _searched(asked, progress, offload=True)
    if jobs.found:
        return jobs
    told = "; ".join(dict.fromkeys(s.reason for s in jobs.sizes[-3:]))
    raise InfeasibleError(
        f"none of {len(jobs.sizes):,} jobs has a layout that fits; of the largest: {told}",
        hint="more nodes, another batch, or a shorter sequence",
    )


def sizes_told(jobs: Jobs, found: Sequence[Looked]) -> list[Size]:
    """Return the jobs with the best layout of each, as they were settled."""
    best: dict[tuple[int, Workload], Looked] = {}
    for one in sorted(found, key=worth, reverse=True):
        best[_key(one.job.gpus, one.asked or one.request)] = one
    return [
        _told(size, best.get(_key(size.gpus, asked)))
        for size, asked in zip(jobs.sizes, jobs.asked, strict=True)
    ]


def _key(gpus: int, request: PlanRequest) -> tuple[int, Workload]:
    return gpus, request.workload


def _told(size: Size, one: Looked | None) -> Size:
    if one is None:
        return size
    if not one.meets:
        aim = one.request.aim
        most = seconds(allowed_step_s(aim, one.job))
        reason = f"over the limits: {seconds(one.fastest_s)} a step at best, {most} are allowed"
        return size.model_copy(update={"reason": reason})
    step_s, peak = float(one.ranking.step_s[0]), float(one.ranking.peak_bytes[0])
    return size.model_copy(
        update={
            "options": options_of(one.request),
            "within_limits": one.within,
            "value": value(one.request.aim, one.job, step_s, peak),
            "step_time_s": step_s,
            "peak_bytes": peak,
            "layout": layout_record(one.ranking.layouts, 0),
        }
    )


def _searched(jobs: list[PlanRequest], progress: Progress, *, offload: bool) -> Jobs:
    found: list[Looked] = []
    sizes: list[Size] = []
    searches: list[Search] = []
    for number, asked in enumerate(jobs):
        if _fewer_do(asked, found):
            return Jobs(found, sizes, jobs[:number], searches, len(jobs) - number)
        job = _alike(asked, found)
        one, size = _one(
            job,
            _of_job(progress, number + 1, len(jobs)),
            worth_s=_best_of_alike(job, found),
            offload=offload,
            last=number == len(jobs) - 1,
        )
        sizes.append(size)
        if one is not None:
            searches.append(one.search)
            found += _leading(one, job.top)
    return Jobs(found, sizes, jobs, searches)


def _of_job(progress: Progress, number: int, jobs: int) -> Progress:
    """Return what reports the progress of one of several jobs."""
    return lambda words: progress(f"job {number:,} of {jobs:,}: {words}")


def _leading(one: Looked, top: int) -> list[Looked]:
    """Return a job with its leading rows only, parted by the layers that recompute goes by."""
    return parted(replace(one, ranking=leading_rows(one.ranking, top)))


def _best_of_alike(job: PlanRequest, found: list[Looked]) -> float:
    """Return the time of the fastest that was found so far for as many GPUs and the same batch.

    For memory every job's own pipelines are run, since time decides nothing there.
    """
    if not job.search or job.aim.objective is Objective.MEMORY:
        return np.inf
    batch = job.workload.global_batch
    same = (one for one in found if one.request.workload.global_batch == batch)
    return min(
        (one.ranking.leaders.best_s for one in same if one.job.gpus == job.gpus), default=np.inf
    )


def _alike(job: PlanRequest, found: list[Looked]) -> PlanRequest:
    """Return a variant on as many GPUs as what it is a variant of: they are to be compared."""
    same = (
        one.job.gpus
        for one in found
        if job.search and one.request.workload.global_batch == job.workload.global_batch
    )
    return job if job.gpus is not None else replace(job, gpus=next(same, None))


def _fewer_do(job: PlanRequest, found: list[Looked]) -> bool:
    """Return whether the fewest GPUs are asked for, and fewer than this job's will do."""
    if job.aim.objective is not Objective.GPUS:
        return False
    return any(one.meets and one.job.gpus < (job.gpus or 0) for one in found)


def _one(
    job: PlanRequest, progress: Progress, *, worth_s: float, offload: bool, last: bool
) -> tuple[Looked | None, Size]:
    """Return one job searched, where any of its layouts fits, and what is told of it.

    The last one always is, so that there is something to tell where none will do.
    """
    per_node = job.cluster.node.gpus
    gpus = job.gpus or job.cluster.gpus
    size = Size(
        nodes=-(-gpus // per_node),
        gpus=gpus,
        global_batch=job.workload.global_batch,
        options=options_of(job),
    )
    if not last and (said := _hopeless(job, gpus)):
        return None, size.model_copy(update={"reason": said})
    try:
        ranking, notes = search(job, progress, worth_s=worth_s)
        if offload:
            ranking, notes = with_offload(job, ranking, notes)
    except InfeasibleError as error:
        return None, size.model_copy(update={"reason": error.message})
    counted = _counted(size, job, ranking)
    return (_looked(job, ranking, notes), counted) if ranking.feasible else (None, counted)


def _counted(size: Size, job: PlanRequest, ranking: Ranking) -> Size:
    tally = ranking.tally
    reason = ""
    if not ranking.feasible:
        light = layout_record(ranking.lightest, 0).short()
        reason = f"nothing fits: {light} needs {gib(ranking.lightest_bytes)} per GPU"
    counts = {"enumerated": tally.enumerated, "legal": tally.legal, "feasible": ranking.feasible}
    used = {"gpus": ranking.gpus, "nodes": -(-ranking.gpus // job.cluster.node.gpus)}
    return size.model_copy(update={**used, **counts, "reason": reason})


def _looked(request: PlanRequest, ranking: Ranking, notes: list[str]) -> Looked:
    job = Job(ranking.gpus, request.workload.tokens)
    best = aimed(ranking, request.aim, job)
    return Looked(
        request,
        hopeful(request, ranking) if request.aim.limited else best,
        search_record(ranking),
        fastest_s=float(ranking.step_s[0]),
        front=envelope(ranking),
        notes=tuple(notes),
        within=len(best.layouts) if request.aim.limited else ranking.feasible,
    )


def _hopeless(job: PlanRequest, gpus: int) -> str:
    """Return why a job cannot be the answer to 'fewest GPUs', without a search; empty if it may."""
    if job.aim.objective is not Objective.GPUS:
        return ""
    least, most = least_step_s(job, gpus), allowed_step_s(job.aim, Job(gpus, job.workload.tokens))
    if least <= most:
        return ""
    return (
        f"not searched: its matrix multiplies alone take {seconds(least)}, "
        f"{seconds(most)} are allowed"
    )


def least_step_s(request: PlanRequest, gpus: int) -> float:
    """Return seconds that no layout of so many GPUs can beat: its weights' multiplies, evenly cut.

    At the rate of endless shapes, without attention. With an expert capacity tokens are dropped,
    and nothing is promised.
    """
    if request.workload.capacity_factor is not None:
        return 0.0
    x = Inputs(*request.context, Layouts.empty())
    rate = max(gemm_rate(x)[1], gemm_rate(x, low_precision=False)[1]) * max(WEIGHT_GRADIENT_RATE, 1)
    flops = 3 * 2.0 * matmul_parameters(request.model) * request.workload.tokens
    return flops / (gpus * rate)
