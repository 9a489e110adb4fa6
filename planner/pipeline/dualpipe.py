"""DualPipe: two copies of the model, so that micro-batches enter the pipeline at both ends."""

from __future__ import annotations

from planner.pipeline.actions import Rows, Shape
from planner.pipeline.dualpipev import Side, both_ways
from planner.pipeline.schedule import Schedule, two_chunks
from planner.sources import DUALPIPE


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank.

    Either half of the ranks acts as DualPipeV's would, the other model's end being its way back.
    """
    mirror = shape.ranks - 1 - rank
    first, second = rank, shape.ranks + mirror  # this rank's stage of the one copy and the other
    near, far = (first, second) if rank < mirror else (second, first)
    half = (shape.ranks // 2, min(rank, mirror), shape.microbatches // 2)
    return both_ways(Side(*half, near, far))


def refuses(shape: Shape) -> str:
    """Return why it cannot run at this size, if it can't."""
    if why := two_chunks(shape):
        return why
    if shape.ranks % 2 or shape.microbatches % 2:
        return f"needs even ranks and micro-batches, not {shape.ranks} and {shape.microbatches}"
    if shape.microbatches < 2 * shape.ranks:
        return f"needs {2 * shape.ranks} micro-batches or more (2 a rank), not {shape.microbatches}"
    return ""


SCHEDULE = Schedule(
    name="dualpipe",
    title="DualPipe: two copies of the model, micro-batches from both ends",
    source=DUALPIPE,
    actions=actions,
    refuses=refuses,
    in_flight=lambda shape, rank: shape.ranks + 1,
    style="both",
    usual_chunks=2,
    model_copies=2,
    splits_backward=True,
    runs_both_at_once=True,
)
