"""One layout against the best of as many GPUs: what it takes more, in seconds and in bytes."""

from __future__ import annotations

from planner.explanation import Against
from planner.layouts.ranges import Fix
from planner.place import contended
from planner.plan import Estimate, RankedPlan, StageMemory
from planner.rank import Ranking, rank
from planner.units import GIB, count, seconds
from planner.workflow.on_fabric import on_fabric
from planner.workflow.remarks import closeness
from planner.workflow.request import PlanRequest, Progress, quiet, told_share
from planner.workflow.rows import shown

TOLD_SHARE, TOLD_BYTES = 0.002, 0.05 * GIB
"""Terms that differ by less (of the step time; in bytes) are left out of the sentences."""


def compared(
    request: PlanRequest,
    opened: RankedPlan,
    gpus: int,
    *,
    mapped: bool = False,
    progress: Progress = quiet,
) -> tuple[list[str], Against | None]:
    """Return how a layout compares with the fastest of the same GPUs, in words and as a record.

    `mapped`: both on the links of their own maps.
    """
    ranking = rank(request.context, gpus, Fix(), tell=told_share(gpus, progress))
    if not ranking.feasible:
        return [], None
    mapped = mapped and contended(request.cluster)
    if mapped:
        ranking, _ = on_fabric(request, ranking, 1)
    best = shown(request, ranking, 0, 1)
    told = _against(request, opened, best, ranking, counts=not mapped)
    if opened.feasible and told.slower <= 1e-9:
        return [f"this is the fastest of {count(ranking.feasible)} layouts that fit"], told
    return [_head(told, opened.feasible), *_terms(told), *_parts(told)], told


def _against(
    request: PlanRequest, opened: RankedPlan, best: RankedPlan, ranking: Ranking, *, counts: bool
) -> Against:
    """Return the differences; the place among the others `counts` where all are timed alike."""
    mine, theirs = opened.estimate, best.estimate
    names = dict.fromkeys((*mine.time_s, *theirs.time_s))
    ahead = int((ranking.step_s < mine.step_time_s * (1 - 1e-12)).sum())
    kept = len(ranking.layouts)  # of very many layouts not the slowest: far down the place is open
    counted = counts and (kept == ranking.feasible or ahead < kept // 2)
    slower = mine.step_time_s / theirs.step_time_s - 1
    ours, others = _fullest(mine), _fullest(theirs)
    return Against(
        best=best.layout,
        best_step_time_s=theirs.step_time_s,
        best_peak_bytes=theirs.memory.peak_bytes,
        place=ahead + 1 if opened.feasible and counted else None,
        of=ranking.feasible,
        slower_s=mine.step_time_s - theirs.step_time_s,
        slower=slower,
        larger_bytes=mine.memory.peak_bytes - theirs.memory.peak_bytes,
        tie=opened.feasible and slower <= closeness(request.workload),
        time_s={n: mine.time_s.get(n, 0.0) - theirs.time_s.get(n, 0.0) for n in names},
        memory_bytes={n: ours[n] - others[n] for n in ours},
    )


def _fullest(estimate: Estimate) -> dict[str, float]:
    stage: StageMemory = max(estimate.memory.stages, key=lambda s: s.total)
    return {name: amount for name, amount in stage.model_dump().items() if name != "total"}


def _head(told: Against, feasible: bool) -> str:
    best = f"{told.best.short()}: {seconds(told.best_step_time_s)} a step"
    if not feasible:
        return f"the best that fits is {best}"
    close = ", too close to tell" if told.tie else ""
    head = f"{told.slower:.1%} slower than the best that fits ({best})"
    if told.place:
        head += f"; number {told.place:,} of the {told.of:,} that fit, fastest first"
    return head + close


def _terms(told: Against) -> list[str]:
    """Return the terms of time that differ, largest first."""
    least = TOLD_SHARE * told.best_step_time_s
    rows = sorted(told.time_s.items(), key=lambda item: -abs(item[1]))
    return [
        f"{name}: {'+' if lost > 0 else '-'}{seconds(abs(lost))}"
        for name, lost in rows
        if abs(lost) > least
    ]


def _parts(told: Against) -> list[str]:
    """Return the peak memory and the parts of it that differ, largest first."""
    rows = sorted(told.memory_bytes.items(), key=lambda item: -abs(item[1]))
    parts = [f"{name} {amount / GIB:+.2f}" for name, amount in rows if abs(amount) > TOLD_BYTES]
    inner = f" ({', '.join(parts)})" if parts else ""
    return [f"peak memory: {told.larger_bytes / GIB:+.2f} GiB{inner}"]
