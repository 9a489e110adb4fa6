"""Rows of a ranking as records: layout, estimate, and plain data parallelism beside them."""

from __future__ import annotations

from collections.abc import Sequence

from planner.estimate.record import estimate_record
from planner.estimate.running import Judged
from planner.layouts.grid import divisors
from planner.layouts.rules import broken_rules
from planner.layouts.table import Layouts
from planner.plan import Estimate, Layout, RankedPlan, Search
from planner.rank import Ranking
from planner.units import gib
from planner.workflow.request import PlanRequest


def layout_record(layouts: Layouts, row: int) -> Layout:
    """Return one layout as a plan record."""
    return Layout.model_validate(layouts.row(row))


def shown(request: PlanRequest, ranking: Ranking, row: int, number: int) -> RankedPlan:
    """Return one row of a ranking with its estimate as a row of the ranked table."""
    return ranked(request, ranking.layouts, row, number, ranking.leaders.judged.get(row))


def ranked(
    request: PlanRequest, layouts: Layouts, row: int, number: int, judged: Judged | None = None
) -> RankedPlan:
    """Return one layout with its estimate as a row of the ranked table."""
    layout = layout_record(layouts, row)
    record = estimate_record(request.context, layouts, row, judged)
    estimate = Estimate.model_validate(record)
    return RankedPlan(
        rank=number,
        layout=layout,
        estimate=estimate,
        stage_layers=record["stage_layers"],
        feasible=estimate.memory.fits(request.workload.max_memory),
    )


def baseline(
    request: PlanRequest, ranking: Ranking, plans: Sequence[RankedPlan]
) -> list[RankedPlan]:
    """Return plain data parallelism (DDP) as the last row, unless it is among `plans` already.

    Where the batch has fewer sequences than there are GPUs it uses as many GPUs as it can.
    """
    for shown in plans:
        lay = shown.layout
        if lay.tp * lay.pp * lay.cp * lay.ep == 1 and lay.zero == 0:
            return []
    batch = request.workload.global_batch
    dp = max(d for d in divisors(batch) if d <= ranking.gpus)
    widths = [d for d in divisors(batch // dp) if d <= 64]
    rows = [ranked(request, plain(dp, b, batch), 0, len(plans) + 1) for b in widths]
    fits = [row for row in rows if row.feasible]
    best = min(fits, key=lambda row: row.estimate.step_time_s) if fits else rows[0]
    if broken_rules(plain(dp, 1, batch), 0, request.context):
        return []
    used = "" if dp == ranking.gpus else f" on {dp:,} of {ranking.gpus:,} GPUs"
    memory = best.estimate.memory
    over = f": does not fit ({gib(memory.peak_bytes)} of {gib(memory.limit_bytes)})"
    note = f"plain data parallelism{used}" + ("" if best.feasible else over)
    return [best.model_copy(update={"note": note})]


def plain(dp: int, micro_batch: int, global_batch: int) -> Layouts:
    """Return plain data parallelism (DDP, everything replicated) as layouts of one row."""
    names = {"recompute": "none", "schedule": "none", "offload": "none", "dp_sync": "all-reduce"}
    ones = dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp", "dp_replicate"), 1)
    counts = {"num_microbatches": max(1, global_batch // (dp * micro_batch))}
    row = {**ones, **names, **counts, "sp": 0, "zero": 0, "dp": dp, "micro_batch": micro_batch}
    return Layouts.of([row])


def search_record(ranking: Ranking) -> Search:
    """Return how many layouts were enumerated, legal and feasible, and why the others fell out."""
    tally = ranking.tally
    rejected = dict(sorted(tally.rejected.items(), key=lambda item: (-item[1], item[0])))
    rejected["does not fit in memory"] = tally.legal - ranking.feasible
    return Search(
        enumerated=tally.enumerated,
        legal=tally.legal,
        feasible=ranking.feasible,
        rejected={name: count for name, count in rejected.items() if count},
        simulated=len(ranking.leaders.judged),
        unsettled=ranking.leaders.left,
    )
