"""From a layout, given in part or in full, to the host and GPU of each of its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.errors import InfeasibleError
from planner.place.moving import moves_said
from planner.plan import Layout, Placed, Placement, Request
from planner.workflow.completing import completed
from planner.workflow.mending import mends, sentences
from planner.workflow.request import PlanRequest
from planner.workflow.searching import usable_gpus
from planner.workflow.spots import placed_layout


def place(
    request: PlanRequest, layout: Mapping[str, str], *, moved_from: Placement | None = None
) -> Placed:
    """Return the placement of one layout; fields left out take the best legal value.

    With `moved_from`, the one that moves the fewest ranks of that earlier placement.

    Raises InfeasibleError when the layout is illegal or there is no room for it.
    """
    found = completed(request, layout)
    if found.layout is None or not found.legal:
        _refuse_for_room(request, found.layout)
        mended, why_none = mends(request, found)
        hint = [*sentences(mended), *why_none]
        raise InfeasibleError(
            f"this layout is not legal: {'; '.join(found.reasons)}", hint="; ".join(hint[:1])
        )
    placement = placed_layout(request, found.layout, moved_from=moved_from)
    moves = moves_said(moved_from, placement) if moved_from else []
    asked = Request(model=request.model, cluster=request.cluster, workload=request.workload)
    whole = Placed.of(asked, found.layout, placement)
    return whole.model_copy(update={"notes": [*request.notes, *moves, *placement.notes]})


def _refuse_for_room(request: PlanRequest, layout: Layout | None) -> None:
    """Raise InfeasibleError with the arithmetic, where nothing but missing nodes is wrong.

    The layout fits the cluster as built, and not what is healthy and free of it.
    """
    if layout is None or layout.gpus > request.cluster.gpus:
        return
    if layout.gpus > usable_gpus(replace(request, gpus=None))[0]:
        placed_layout(request, layout)
