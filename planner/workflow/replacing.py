"""A saved plan on another map of its ranks, such as the one after a failure."""

from __future__ import annotations

from planner.errors import SpecError
from planner.place.check import PlacementError, check_placement
from planner.plan import Placement, Plan
from planner.units import seconds


def replaced(plan: Plan, placement: Placement) -> Plan:
    """Return the plan with the ranks of its first layout where `placement` has them.

    Raises SpecError where it places another layout, or on hosts that the plan's cluster lacks.
    """
    layout = plan.best.layout
    try:
        check_placement(plan.request.cluster, layout, placement)
    except PlacementError as error:
        raise SpecError(
            f"--placement: not of this plan: {error}",
            hint="place its own layout on its own cluster, spare nodes included: meshwright place "
            f"MODEL CLUSTER --layout {layout.short()} --moved-from PLAN.json --json",
        ) from error
    return plan.model_copy(
        update={"placement": placement, "notes": [*plan.notes, _told(plan, placement)]}
    )


def _told(plan: Plan, placement: Placement) -> str:
    moved = placement.moved_ranks
    words = "ranks stand where another placement has them"
    if moved is not None:
        words += f", {moved:,} of them elsewhere than before"
    if placement.step_time_s is None:
        return words
    was = seconds(plan.best.estimate.step_time_s)
    return f"{words}: {seconds(placement.step_time_s)} a step there, {was} as planned"
