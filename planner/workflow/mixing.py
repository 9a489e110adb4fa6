"""Clusters of several node types: the best type alone, or on request one job over all of them.

By default a job stays on one type: each is asked, and the best answers. A mixed job runs at the
pace of the slowest type (`planner.specs.mixing`); what that gains or loses is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from planner.errors import InfeasibleError
from planner.explanation import Explanation
from planner.objectives import Objective
from planner.place import free_nodes
from planner.plan import Placed, Placement, Plan
from planner.specs.cluster import ClusterSpec
from planner.units import many, seconds
from planner.workflow import explaining, placing, planning
from planner.workflow.request import PlanRequest, Progress, quiet

T = TypeVar("T")


def plan(request: PlanRequest, *, progress: Progress = quiet) -> Plan:
    """Return the ranked layouts, the best of them placed, plain data parallelism among them.

    Raises InfeasibleError when nothing is legal, nothing fits, nothing meets the limits or no
    placement exists, and SpecError for a field or a host that is not known.
    """
    if not request.cluster.mix:
        return planning.plan(request, progress=progress)
    found, refused = _asked(one_type(request), lambda one: planning.plan(one, progress=progress))
    found = sorted(found, key=lambda pair: _worth(pair[1]))
    if not request.mixed:
        (own, best), *others = _some(found, refused)
        told = [_alone(own.cluster), *(_beside(one, other) for one, other in others), *refused]
        return _with_notes(best, [f"{'; '.join(told)}; {_offer(request.cluster)}"])
    try:
        whole = planning.plan(mixed(request), progress=progress)
    except InfeasibleError as error:
        raise InfeasibleError(error.message, hint=_instead(found) or error.hint) from error
    return _with_notes(whole, [_pace(request.cluster), _gain(whole, found)])


def place(
    request: PlanRequest, layout: Mapping[str, str], *, moved_from: Placement | None = None
) -> Placed:
    """Return the placement of one layout; fields left out take the best legal value.

    With `moved_from`, the one that moves the fewest ranks of that earlier placement.

    Raises InfeasibleError when the layout is illegal or there is no room for it.
    """
    cluster = request.cluster
    if not cluster.mix:
        return placing.place(request, layout, moved_from=moved_from)
    if request.mixed:
        whole = placing.place(mixed(request), layout, moved_from=moved_from)
        notes = [_pace(cluster), *whole.notes]
        return whole.model_copy(update={"notes": notes})
    found, refused = _asked(
        one_type(request), lambda one: placing.place(one, layout, moved_from=moved_from)
    )
    own, best = _some(sorted(found, key=lambda pair: pair[1].step_time_s or 0.0), refused)[0]
    told = "; ".join([_alone(own.cluster), *refused, _offer(cluster)])
    return best.model_copy(update={"notes": [told, *best.notes]})


def explain(
    request: PlanRequest, layout: Mapping[str, str], *, progress: Progress = quiet
) -> Explanation:
    """Return one layout opened into its terms, compared with the best, mended if it won't do.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    cluster = request.cluster
    if not cluster.mix:
        return explaining.explain(request, layout, progress=progress)
    if request.mixed:
        whole = explaining.explain(mixed(request), layout, progress=progress)
        return whole.model_copy(update={"notes": [_pace(cluster), *whole.notes]})
    found, refused = _asked(
        one_type(request), lambda one: explaining.explain(one, layout, progress=progress)
    )
    own, best = _some(sorted(found, key=lambda pair: _reach(pair[1])), refused)[0]
    told = "; ".join([_alone(own.cluster), *refused, _offer(cluster)])
    return best.model_copy(update={"notes": [told, *best.notes]})


def one_type(request: PlanRequest) -> list[PlanRequest]:
    """Return the request for every node type on its own, with what is said of its hosts.

    Raises SpecError for a host to avoid that no type has.
    """
    free_nodes(request.cluster, mixed(request).unhealthy)
    aims = request.type_aims or (request.aim,) * len(request.cluster.mix)
    out = []
    for part, aim in zip(request.cluster.mix, aims, strict=True):
        hosts = frozenset(part.host(node) for node in range(part.nodes))
        own = replace(
            request,
            unhealthy=_words_of(request.unhealthy, hosts),
            busy=_words_of(request.busy, hosts),
            slow=_words_of(request.slow, hosts),
        )
        out.append(replace(own, cluster=part, aim=aim, type_aims=()))
    return out


def mixed(request: PlanRequest) -> PlanRequest:
    """Return the request over all types; GPUs that a node has beyond the others' idle anyway."""
    gpus = request.cluster.node.gpus
    used = tuple(w for w in request.unhealthy if _gpu_of(w) < gpus)
    slow = tuple(w for w in request.slow if _gpu_of(w) < gpus)
    return replace(request, unhealthy=used, slow=slow)


def on_type_of(request: PlanRequest, cluster: ClusterSpec) -> PlanRequest:
    """Return the request on the cluster that answered: one of its types, or all of them."""
    if not request.cluster.mix:
        return request
    alone = (one for one in one_type(request) if one.cluster == cluster)
    return next(alone, mixed(request))


def _words_of(words: Sequence[str], hosts: frozenset[str]) -> tuple[str, ...]:
    return tuple(w for w in words if w in hosts or w.rpartition(":")[0] in hosts)


def _gpu_of(word: str) -> int:
    """Return the GPU of 'host:gpu'; -1 for a host as a whole."""
    gpu = word.rpartition(":")[2] if ":" in word else ""
    return int(gpu) if gpu.isascii() and gpu.isdigit() else -1


def _asked(
    requests: Sequence[PlanRequest], ask: Callable[[PlanRequest], T]
) -> tuple[list[tuple[PlanRequest, T]], list[str]]:
    """Return the answers of the types that have one, and why the others have none."""
    found, refused = [], []
    for one in requests:
        try:
            found.append((one, ask(one)))
        except InfeasibleError as error:
            refused.append(f"{one.cluster.name}: {error.message}")
    return found, refused


def _some(found: list[tuple[PlanRequest, T]], refused: list[str]) -> list[tuple[PlanRequest, T]]:
    if not found:
        raise InfeasibleError(
            "no node type will do alone: " + "; ".join(refused), hint="--mixed tries all together"
        )
    return found


def _worth(found: Plan) -> float:
    """Return what plans of different types are compared by; the least is the best."""
    chosen = found.objective
    if chosen is None or chosen.value is None or chosen.name == Objective.STEP_TIME:
        return -found.best.estimate.tokens_per_s
    return -chosen.value if chosen.name == Objective.TOKENS_PER_GPU else chosen.value


def _reach(told: Explanation) -> tuple[bool, bool, float]:
    time = told.estimate.step_time_s if told.estimate else 0.0
    return (not told.legal, not told.feasible, time)


def _with_notes(found: Plan, notes: Sequence[str]) -> Plan:
    return found.model_copy(update={"notes": [*notes, *found.notes]})


def _alone(part: ClusterSpec) -> str:
    return f"of the node types {part.name} alone is used ({_nodes(part)})"


def _beside(one: PlanRequest, other: Plan) -> str:
    cost = other.best.estimate
    return f"{one.cluster.name} ({_nodes(one.cluster)}) takes {seconds(cost.step_time_s)} a step"


def _nodes(part: ClusterSpec) -> str:
    gpu = part.accelerator
    return f"{many(part.nodes, 'node')} of {part.node.gpus} {gpu.name}, {gpu.memory_gib:g} GiB"


def _offer(cluster: ClusterSpec) -> str:
    return f"--mixed tries one job over all {cluster.nodes:,} nodes"


def _pace(cluster: ClusterSpec) -> str:
    """Return what a mixed job is priced by."""
    gpu, node = cluster.accelerator, cluster.node
    idle = [part for part in cluster.mix if part.node.gpus > node.gpus]
    said = (
        f"one job over {len(cluster.mix)} node types: every rank has an equal share, so the step "
        f"waits for the slowest GPU and link ({gpu.peak_flops_per_s('bf16') / 1e12:g} TFLOP/s, "
        f"{node.nic_gbit_per_s * node.nics / node.gpus:g} Gbit/s), and {gpu.memory_gib:g} GiB are "
        "the least memory"
    )
    for part in idle:
        said += f"; {part.node.gpus - node.gpus} of {part.node.gpus} GPUs of {part.name} idle"
    return said


def _gain(whole: Plan, alone: Sequence[tuple[PlanRequest, Plan]]) -> str:
    """Return what mixing gains over the best type alone, in tokens a second."""
    if not alone:
        return "no node type will do alone: only together they hold this job"
    request, best = alone[0]
    mine, theirs = whole.best.estimate, best.best.estimate
    ratio = mine.tokens_per_s / theirs.tokens_per_s
    beside = f"{request.cluster.name} alone ({_nodes(request.cluster)})"
    times = f"{seconds(mine.step_time_s)} a step against {seconds(theirs.step_time_s)}"
    if ratio >= 1:
        return f"mixing is {ratio - 1:.1%} faster than {beside}: {times}"
    return f"mixing is {1 / ratio - 1:.1%} slower than {beside}: {times}; leave --mixed out"


def _instead(alone: Sequence[tuple[PlanRequest, Plan]]) -> str:
    if not alone:
        return ""
    request, best = alone[0]
    took = seconds(best.best.estimate.step_time_s)
    return f"leave --mixed out: {request.cluster.name} alone takes {took} a step"
