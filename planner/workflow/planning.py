"""From a request to a placed plan: search, rank, place the best, and the baseline beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planner.emit import emitter_named
from planner.errors import InfeasibleError, SpecError
from planner.estimate.record import estimate_record
from planner.estimate.running import Judged
from planner.estimate.uncertainty import tie
from planner.layouts.grid import divisors
from planner.layouts.ranges import MICRO_BATCHES, parse_fix
from planner.layouts.rules import Context, broken_rules
from planner.layouts.table import NAMES, Layouts
from planner.place import Clock, Rule, free_nodes
from planner.place import place as place_layout
from planner.plan import Estimate, Layout, Placement, Plan, RankedPlan, Request, Search
from planner.rank import Ranking, rank, settle
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload
from planner.units import gib, seconds
from planner.workflow.hosts import host_bound

NEAR_TIE = 0.03
"""Step times this close are within the estimate's own error: reports call them a tie."""
MOST_STEPS_DOWN = 64
REAL_STACKS = ("megatron", "torchtitan", "deepspeed")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PlanRequest:
    """What is asked; `fix` holds raw text by layout field, `gpus` all of the cluster if None."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    fix: Mapping[str, str] = field(default_factory=dict)
    top: int = 10
    unhealthy: tuple[str, ...] = ()
    gpus: int | None = None
    busy: tuple[str, ...] = ()
    """Of `unhealthy`, the hosts that are only busy with other jobs."""
    pipelines: Rule = "under-leaf"
    notes: tuple[str, ...] = ()
    """What was found out about the cluster while it was read."""

    @property
    def context(self) -> Context:
        """Return what rules and estimates look at."""
        return Context(self.model, self.cluster, self.workload)


def _quiet(_: str) -> None:
    """Report no progress."""


def plan(request: PlanRequest, *, progress: Progress = _quiet) -> Plan:
    """Return the ranked layouts, the best of them placed, plain data parallelism among them.

    Raises InfeasibleError when nothing is legal, nothing fits or no placement exists, and SpecError
    for a field or a host that is not known.
    """
    started = time.perf_counter()
    ranking, notes = with_offload(request, *search(request, progress))
    if not ranking.feasible:
        raise nothing_fits(request, ranking)
    ranking = settle(request.context, ranking, request.top)
    searched = time.perf_counter()
    rows = ranking.best_of_each_shape(request.top)
    plans = [shown(request, ranking, int(row), i + 1) for i, row in enumerate(rows)]
    plans += baseline(request, ranking, plans)
    progress("placing")
    placement = placed_layout(request, plans[0].layout)
    placed = time.perf_counter()
    return Plan(
        request=Request(model=request.model, cluster=request.cluster, workload=request.workload),
        search=search_record(ranking),
        plans=plans,
        placement=placement,
        notes=[
            *request.notes,
            *notes,
            *_remarks(ranking, plans, request.workload),
            *_on_real_stacks(request, ranking.layouts.take([0])),
        ],
        timing={
            "search_s": searched - started,
            "place_s": placed - searched,
            "total_s": placed - started,
        },
    )


def placed_layout(
    request: PlanRequest, layout: Layout, *, moved_from: Placement | None = None
) -> Placement:
    """Return the placement of a layout by the request's rule, its step time with it."""
    return place_layout(
        request.cluster,
        layout,
        unhealthy=request.unhealthy,
        busy=request.busy,
        clock=Clock(request.context, layout),
        pipelines=request.pipelines,
        moved_from=moved_from,
    )


def search(request: PlanRequest, progress: Progress) -> tuple[Ranking, list[str]]:
    """Return the ranking over all healthy GPUs, or over the most that any layout can use.

    Raises InfeasibleError when no layout is legal on any of the node counts tried.
    """
    fix = parse_fix(request.fix)
    gpus, notes = usable_gpus(request)
    progress(f"scoring layouts of {gpus:,} GPUs")
    ranking = rank(request.context, gpus, fix)
    if ranking.tally.legal or request.gpus is not None:
        return _some(request, ranking), notes
    for fewer in _fewer(gpus, request.cluster.node.gpus):
        other = rank(request.context, fewer, fix)
        if other.tally.legal:
            notes.append(
                f"no layout is legal on all {gpus:,} GPUs; this one leaves {gpus - fewer:,} idle"
            )
            return other, notes
    return _some(request, ranking), notes


def with_offload(
    request: PlanRequest, ranking: Ranking, notes: list[str]
) -> tuple[Ranking, list[str]]:
    """Return the search, or where nothing fits the one whose states may lie in host memory."""
    if ranking.feasible or "offload" in request.fix:
        return ranking, notes
    away = parse_fix({**request.fix, "offload": "|".join(NAMES["offload"][1:])})
    other = rank(request.context, ranking.gpus, away)
    if not other.feasible:
        return ranking, notes
    said = "nothing fits in the memory of the GPUs alone: states are in that of their hosts"
    return other, [*notes, said]


def _fewer(gpus: int, per_node: int) -> list[int]:
    """Return GPU counts to try below `gpus`: whole nodes, then parts of one node."""
    nodes = range(gpus // per_node - 1, 0, -1)
    whole = [n * per_node for n in nodes][:MOST_STEPS_DOWN]
    return whole + list(range(min(gpus, per_node) - 1, 0, -1))


def usable_gpus(request: PlanRequest) -> tuple[int, list[str]]:
    """Return the GPUs to plan for: those asked for, or all on nodes that are wholly healthy."""
    cluster = request.cluster
    notes = _sequence_notes(request)
    free = free_nodes(cluster, request.unhealthy)
    whole = len(free.with_gpus(cluster.node.gpus)) * cluster.node.gpus
    healthy = max(whole, int(free.healthy.sum()) if cluster.nodes == 1 else 0)
    if request.gpus is not None:
        if request.gpus > healthy:
            raise InfeasibleError(
                f"{request.gpus} GPUs asked for; {cluster.name} has {healthy} on healthy nodes"
            )
        return request.gpus, notes
    if healthy == 0:
        raise InfeasibleError(f"{cluster.name} has no healthy node left")
    lost = cluster.gpus - healthy
    if lost:
        notes.append(f"{lost} of {cluster.gpus} GPUs are on unhealthy nodes and left out")
    return healthy, notes


def _sequence_notes(request: PlanRequest) -> list[str]:
    """Return what to say of a sequence longer than the model was published with.

    Raises SpecError where the model's learned position table has no rows for it.
    """
    seq, model = request.workload.seq_tokens, request.model
    if model.learned_positions and seq > model.learned_positions:
        raise SpecError(
            f"--seq: {model.name} has learned positions for {model.learned_positions} tokens, "
            f"not {seq}",
            hint=f"--seq {model.max_seq_tokens}, or another model",
        )
    if seq > model.max_seq_tokens:
        published = f"{model.name} was published for {model.max_seq_tokens:,} tokens"
        return [f"{published}, fewer than {seq:,}"]
    return []


def _some(request: PlanRequest, ranking: Ranking) -> Ranking:
    if ranking.tally.legal:
        return ranking
    if not ranking.tally.enumerated:
        raise InfeasibleError(
            f"no layout of {ranking.gpus} GPUs has the fixed fields "
            f"({', '.join(f'{k}={v}' for k, v in request.fix.items())})",
            hint="tp * cp * pp * dp must equal the number of GPUs",
        )
    reasons = ranking.tally.rejected.most_common(3)
    raise InfeasibleError(
        f"none of {ranking.tally.enumerated:,} layouts on {ranking.gpus} GPUs is legal: "
        + "; ".join(f"{name} ({count:,})" for name, count in reasons),
        hint="change the global batch, the sequence length or the fixed fields",
    )


def nothing_fits(request: PlanRequest, ranking: Ranking) -> InfeasibleError:
    """Return the error for a search whose every legal layout runs out of memory, with figures."""
    light = layout_record(ranking.lightest, 0)
    if ranking.lightest_bytes <= ranking.budget_bytes:
        return _host_full(request, ranking, light)
    return InfeasibleError(
        f"nothing fits: the lightest of {ranking.tally.legal:,} legal layouts needs "
        f"{gib(ranking.lightest_bytes)} per GPU ({light.short()}); {gib(ranking.budget_bytes)} may "
        f"be used, {request.workload.max_memory:.0%} of {gib(ranking.limit_bytes)}",
        hint=f"more nodes, GPUs with more memory, or a shorter sequence than "
        f"{request.workload.seq_tokens}",
    )


def _host_full(request: PlanRequest, ranking: Ranking, light: Layout) -> InfeasibleError:
    """Return the error where the GPUs have room and their hosts have none."""
    memory = Estimate.model_validate(estimate_record(request.context, ranking.lightest, 0)).memory
    return InfeasibleError(
        f"nothing fits: {light.short()} needs {gib(memory.host_bytes)} of a node's own memory; "
        f"it has {gib(memory.host_limit_bytes or 0.0)}",
        hint="more nodes, or more of the states on the GPUs (offload=none)",
    )


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
    widths = [d for d in divisors(batch // dp) if d <= max(MICRO_BATCHES)]
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


def _remarks(ranking: Ranking, plans: Sequence[RankedPlan], workload: Workload) -> list[str]:
    notes = ["each row is the best of its (tp, pp, cp, ep, etp, dp); --fix shows its variants"]
    best = plans[0].estimate
    notes += _ran(ranking)
    if best.memory.at_risk:
        notes.append(_calmer(ranking, best, workload.risk_memory))
    close = max(NEAR_TIE, tie(workload))
    ties = int((ranking.step_s <= best.step_time_s * (1 + close)).sum())
    if ties > 1:
        notes.append(f"{ties:,} layouts are within {close:.0%}, less than the estimate's error")
    return notes + host_bound("the first plan", best, workload.stack)


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


def _on_real_stacks(request: PlanRequest, best: Layouts) -> list[str]:
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


def plan_for_target(request: PlanRequest, target: str) -> Plan:
    """Return the best plan that a launch target can express, under the rules of its own stack.

    Raises InfeasibleError naming what the target cannot express when none of the leading layouts
    will do.
    """
    emitter = emitter_named(target)
    workload = request.workload.model_copy(update={"stack": emitter.stack})
    own = replace(request, workload=workload)
    ranking, notes = with_offload(own, *search(own, _quiet))
    why: list[str] = []
    for row in _varied(ranking):
        first = shown(own, ranking, row, 1)
        draft = Plan(
            request=Request(model=own.model, cluster=own.cluster, workload=workload),
            search=search_record(ranking),
            plans=[first],
            notes=notes,
        )
        why = emitter.unsupported(draft)
        if not why:
            placement = placed_layout(own, first.layout)
            return draft.model_copy(update={"placement": placement})
    if not ranking.feasible:
        raise nothing_fits(own, ranking)
    raise InfeasibleError(f"{target} cannot express any layout that fits: {'; '.join(why)}")


def _varied(ranking: Ranking) -> list[int]:
    """Return leading rows, one for each combination that an emitter may refuse, best first."""
    lay = ranking.layouts
    names = ["pp", "vpp", "cp", "ep", "etp", "zero", "dp_replicate", "recompute", "schedule", "tp"]
    names += ["dp_sync", "sp", "offload"]
    key = np.stack([getattr(lay, name) for name in names], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    return [int(row) for row in np.sort(first)]
