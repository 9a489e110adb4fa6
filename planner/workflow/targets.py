"""The best plan that a launch target can express, by the rules of its own stack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.emit import emitter_named
from planner.emit.capabilities import layout_refusals
from planner.emit.wrapped import BY_STACK, payload
from planner.errors import InfeasibleError
from planner.layouts.ranges import OPENED
from planner.objectives import Job
from planner.plan import Plan, Request
from planner.rank import Ranking
from planner.specs.stack import stack_named
from planner.units import seconds
from planner.workflow.choosing import aimed
from planner.workflow.mixing import on_type_of
from planner.workflow.on_fabric import on_fabric
from planner.workflow.pricing import priced
from planner.workflow.request import PlanRequest, quiet
from planner.workflow.rows import layout_record, search_record, shown
from planner.workflow.searching import nothing_fits, search, with_offload
from planner.workflow.spots import placed_layout

LIKE = 16
"""So many layouts that are refused as the unsplit model is: it is the model, or the job."""
OWN_PROFILE = ("nanotron",)
"""Frameworks that follow another's rules but run by themselves, at a speed of their own."""


def stack_of(target: str, asked: str) -> str:
    """Return the stack that a target runs: the one asked for, where that is the target's kind.

    A scheduler's is that of the framework that it starts. What the target's files switch on is
    switched on either way.
    """
    own = payload(target, asked).stack
    if asked == "any" or _kind(asked) != _kind(own):
        return own
    flags = [flag for flag in own.split("+")[1:] if flag not in asked.split("+")]
    return "+".join([asked, *flags])


def _kind(stack: str) -> str:
    profile = stack.partition("+")[0]
    return profile if profile in OWN_PROFILE else stack_named(stack).rules


def plan_for_target(request: PlanRequest, target: str) -> Plan:
    """Return the best plan that a launch target can express, under the rules of its own stack.

    Raises InfeasibleError naming what the target cannot express when none of the leading layouts
    will do, and for a scheduler what it starts.
    """
    asked = request.workload.stack
    starts = payload(target, asked).name
    try:
        return _planned(request, target)
    except InfeasibleError as error:
        if starts == target or asked != "any":
            raise
        others = ", ".join(name for name in BY_STACK if name not in stack_of(target, asked))
        more = f"{target} starts {starts} here; --stack {others} start others"
        raise InfeasibleError(error.message, hint=f"{error.hint}; {more}".lstrip("; ")) from error


def _planned(request: PlanRequest, target: str) -> Plan:
    emitter = emitter_named(target)
    stack = stack_of(target, request.workload.stack)
    workload = request.workload.model_copy(update={"stack": stack})
    own = replace(request, workload=workload)
    whole, notes = with_offload(own, *search(own, quiet))
    whole, _ = on_fabric(own, whole, 1)
    ranking = aimed(whole, own.aim, Job(whole.gpus, workload.tokens))
    why: list[str] = []
    same: set[str] | None = None
    drafted = 0
    can = payload(target, request.workload.stack).can
    for row in _varied(ranking):
        told = list(layout_refusals(layout_record(ranking.layouts, row), workload, can))
        if told:  # asked first: a target that can do little would have thousands of rows dealt
            why = why or told
            continue
        first = shown(own, ranking, row, 1)
        draft = Plan(
            request=Request(model=own.model, cluster=own.cluster, workload=workload),
            search=search_record(whole),
            plans=[priced(first, own)],
            notes=notes,
        )
        why = emitter.unsupported(draft)
        same = set(why) & (set(emitter.unsupported(_unsplit(draft))) if same is None else same)
        drafted += 1
        if not why:
            placement = placed_layout(own, first.layout)
            return draft.model_copy(update={"placement": placement})
        if same and drafted == LIKE:
            why = [sentence for sentence in why if sentence in same]
            break
    if not whole.feasible:
        raise nothing_fits(own, whole)
    if not len(ranking.layouts):
        raise InfeasibleError(
            f"no layout for {target} meets the limits; its fastest takes "
            f"{seconds(float(whole.step_s[0]))} a step"
        )
    raise InfeasibleError(f"{target} cannot express any layout that fits: {' '.join(why)}")


def narrowed(request: PlanRequest, found: Plan) -> PlanRequest:
    """Return the request with nothing left open: the nodes and the batch that a plan has chosen."""
    own = found.request
    request = on_type_of(request, own.cluster)
    if not found.sizes:
        return request
    return replace(
        request,
        cluster=own.cluster,
        workload=own.workload,
        gpus=found.best.layout.gpus,
        nodes=(),
        batches=(),
        search=tuple(axis for axis in request.search if axis in OPENED),
    )


def _unsplit(draft: Plan) -> Plan:
    """Return the plan with its model whole on every GPU, to tell what no layout would mend."""
    best = draft.best
    ones = dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp", "dp_replicate"), 1)
    whole = ones | {"dp": best.layout.gpus, "sp": False, "zero": 0, "schedule": "none"}
    layout = best.layout.model_copy(update=whole | {"recompute": "none", "offload": "none"})
    held = [[sum(map(sum, best.stage_layers))]]
    plain = best.model_copy(update={"layout": layout, "stage_layers": held})
    return draft.model_copy(update={"plans": [plain]})


def _varied(ranking: Ranking) -> list[int]:
    """Return leading rows, one for each combination that an emitter may refuse, best first."""
    lay = ranking.layouts
    names = ["pp", "vpp", "cp", "ep", "etp", "zero", "dp_replicate", "recompute", "schedule", "tp"]
    names += ["dp_sync", "sp", "offload"]
    key = np.stack([getattr(lay, name) for name in names], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    return [int(row) for row in np.sort(first)]
