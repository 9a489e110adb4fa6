"""From a layout, given in part or in full, to the host and GPU of each of its ranks."""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InfeasibleError
from planner.place import place as place_layout
from planner.plan import Placement
from planner.workflow.explaining import completed
from planner.workflow.planning import PlanRequest


def place(request: PlanRequest, layout: Mapping[str, str]) -> Placement:
    """Return the placement of one layout; fields left out take the best legal value.

    Raises InfeasibleError when the layout is illegal or there is no room for it.
    """
    found = completed(request, layout)
    if found.layout is None or not found.legal:
        raise InfeasibleError(
            f"this layout is not legal: {'; '.join(found.reasons)}", hint="; ".join(found.mends[:1])
        )
    return place_layout(request.cluster, found.layout, unhealthy=request.unhealthy)
