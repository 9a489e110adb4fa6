"""A job that exists against the best: its layout explained, what one change each would gain."""

from __future__ import annotations

from collections.abc import Mapping

from planner.explanation import Audit
from planner.workflow.completing import completed
from planner.workflow.explaining import explain
from planner.workflow.mending import better
from planner.workflow.planning import PlanRequest
from planner.workflow.switching import switches


def audit(request: PlanRequest, layout: Mapping[str, str]) -> Audit:
    """Return the layout of a job explained, with single changes that would make it faster.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    answer = explain(request, layout, mapped=False)  # the changes below are timed on paper too
    if not answer.feasible or answer.layout is None or answer.estimate is None:
        return Audit(explanation=answer)
    return Audit(
        explanation=answer,
        better=better(request, completed(request, layout)),
        switches=switches(request, answer.layout, answer.estimate.step_time_s),
    )
