"""The placement of one layout by the rule of its request."""

from __future__ import annotations

from planner.place import Clock
from planner.place import place as place_layout
from planner.plan import Layout, Placement
from planner.workflow.request import PlanRequest


def placed_layout(
    request: PlanRequest, layout: Layout, *, moved_from: Placement | None = None
) -> Placement:
    """Return the placement of a layout by the request's rule, its step time with it."""
    return place_layout(
        request.cluster,
        layout,
        unhealthy=request.unhealthy,
        busy=request.busy,
        slow=request.slow,
        told=(*request.busy, *request.down),
        clock=Clock(request.context, layout),
        pipelines=request.pipelines,
        moved_from=moved_from,
    )
