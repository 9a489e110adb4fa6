"""A job that exists against the best: its layout explained, what one change each would gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.errors import InfeasibleError
from planner.explanation import Audit, Explanation, Switch
from planner.specs.stack import FLAGS, stack_named
from planner.workflow.completing import completed
from planner.workflow.explaining import explain
from planner.workflow.mending import better
from planner.workflow.planning import PlanRequest, ranked

SWITCHES = {
    "no-dp-overlap": "let gradients travel while the backward pass computes",
    "eager": "compile the model",
}
"""Flags of a stack that a job has by leaving something out -> what to do about it."""


def audit(request: PlanRequest, layout: Mapping[str, str]) -> Audit:
    """Return the layout of a job explained, with single changes that would make it faster.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    answer = explain(request, layout, mapped=False)  # the changes below are timed on paper too
    if not answer.feasible:
        return Audit(explanation=answer)
    found = completed(request, layout)
    switches = _switches(request, answer)
    return Audit(explanation=answer, better=better(request, found), switches=switches)


def _switches(request: PlanRequest, answer: Explanation) -> list[Switch]:
    """Return what each flag costs that the job's stack has by leaving something out."""
    profile, *flags = request.workload.stack.split("+")
    out = []
    for flag, advice in SWITCHES.items():
        if flag not in flags or answer.layout is None or answer.estimate is None:
            continue
        stack = "+".join((profile, *(f for f in flags if f != flag)))
        work = request.workload.model_copy(update={"stack": stack_named(stack).name})
        other = replace(request, workload=work)
        try:
            there = completed(other, _fields(answer)).layouts
        except InfeasibleError:
            continue
        took = ranked(other, there, 0, 1).estimate.step_time_s
        slower = took / answer.estimate.step_time_s - 1
        name = f"{flag} ({FLAGS[flag][0]})"
        out.append(Switch(flag=name, advice=advice, step_time_s=took, slower=slower))
    return [s for s in out if s.slower < 0]


def _fields(answer: Explanation) -> dict[str, str]:
    """Return every field of the layout as text."""
    if answer.layout is None:
        return {}
    held = answer.layout.model_dump(mode="json", exclude={"num_microbatches"})
    return {n: str(int(v) if isinstance(v, bool) else v) for n, v in held.items()}
