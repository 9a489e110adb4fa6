"""The search over all layouts of the GPUs there are, and the errors where it finds none."""

from __future__ import annotations

import numpy as np

from planner.errors import InfeasibleError, SpecError
from planner.estimate.record import estimate_record
from planner.layouts.grid import divisors
from planner.layouts.ranges import Fix, most_cp, parse_fix
from planner.layouts.rules import Context
from planner.layouts.table import NAMES, IntArray
from planner.place import FreeNodes, free_nodes, kinds_of, left_out
from planner.plan import Estimate, Layout
from planner.rank import Ranking, rank
from planner.units import gib
from planner.workflow.rejecting import nothing_legal
from planner.workflow.request import PlanRequest, Progress, told_share
from planner.workflow.rows import layout_record

MOST_STEPS_DOWN = 64


def search(
    request: PlanRequest, progress: Progress, *, worth_s: float = np.inf
) -> tuple[Ranking, list[str]]:
    """Return the ranking over all healthy GPUs, or over the most that any layout can use.

    Pipelines that cannot be faster than `worth_s` are not run.

    Raises InfeasibleError when no layout is legal on any of the node counts tried.
    """
    fix = request.choices
    gpus, notes = usable_gpus(request)
    progress(f"scoring layouts of {gpus:,} GPUs")
    ranking = rank(request.context, gpus, fix, worth_s=worth_s, tell=told_share(gpus, progress))
    if ranking.tally.legal or request.gpus is not None:
        return _some(request, ranking), notes
    other = _on_fewer(request, gpus, progress)
    if other is None:
        return _some(request, ranking), notes
    idle = f"this one leaves {gpus - other.gpus:,} idle"
    if other.gpus >= request.cluster.node.gpus:
        idle += ", as few as a layout that fits can"
    return other, [*notes, f"no layout is legal on all {gpus:,} GPUs; {idle}"]


def _on_fewer(request: PlanRequest, gpus: int, progress: Progress) -> Ranking | None:
    """Return the search over the most GPUs below `gpus` that a layout fits on.

    Where none fits, over the most that one is legal on; None where there is none either.
    """
    first = None
    for fewer in fewer_gpus(request.context, gpus, request.choices):
        progress(f"none is legal there: scoring layouts of {fewer:,} GPUs")
        other = rank(request.context, fewer, request.choices)
        if other.feasible:
            return other
        if other.tally.legal:
            first = first or other
    return first


def with_offload(
    request: PlanRequest, ranking: Ranking, notes: list[str]
) -> tuple[Ranking, list[str]]:
    """Return the search, or where nothing fits the one whose states may lie in host memory."""
    if ranking.feasible or "offload" in request.fix or "offload" in request.search:
        return ranking, notes
    every = "|".join(NAMES["offload"][1:])
    away = parse_fix({**request.fix, "offload": every}, request.search)
    other = rank(request.context, ranking.gpus, away)
    if not other.feasible:
        return ranking, notes
    said = "nothing fits in the memory of the GPUs alone: states are in that of their hosts"
    return other, [*notes, said]


def fewer_gpus(context: Context, gpus: int, fix: Fix) -> list[int]:
    """Return GPU counts to try below `gpus`, most first: whole nodes, then parts of one node.

    They are products of degrees that the model, the sequence and the batch take; of whole nodes the
    largest MOST_STEPS_DOWN.
    """
    model, work, per_node = context.model, context.workload, context.cluster.node.gpus
    heads = [d for d in divisors(model.heads) if d <= max(16, context.cluster.domain_gpus)]
    halves = divisors(max(work.seq_tokens // 2, 1))
    degrees = {
        "tp": heads,
        "cp": [d for d in halves if d <= most_cp(work.seq_tokens)],
        "pp": range(1, model.layers + 3),
        "dp": divisors(work.global_batch),
    }
    found: IntArray = np.ones(1, dtype=np.int64)
    for name, declared in degrees.items():
        values = [v for v in fix.pick(name, declared) if v < gpus]
        found = np.unique(np.outer(found, np.array(values, dtype=np.int64)))
        found = found[found < gpus]
    whole = found[found % per_node == 0][::-1][:MOST_STEPS_DOWN]
    return [*whole.tolist(), *found[found < min(gpus, per_node)][::-1].tolist()]


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
        why = _where_lost(request, free)
        hint = "leave --slow out" if "slow" in why else ""
        raise InfeasibleError(f"{cluster.name} has no node to use: all are {why}", hint=hint)
    lost = cluster.gpus - healthy
    if lost:
        where = _where_lost(request, free)
        notes.append(f"{lost} of {cluster.gpus} GPUs are on {where} nodes and left out")
    return healthy, notes


def _where_lost(request: PlanRequest, free: FreeNodes) -> str:
    """Return what is the matter with the nodes that are not used: 'unhealthy', 'slow and busy'."""
    kinds = kinds_of(request.cluster, request.unhealthy, request.busy, request.slow)
    return " and ".join(left_out(free, request.cluster.node.gpus, kinds)) or "unhealthy"


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
    raise nothing_legal(request, ranking)


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
