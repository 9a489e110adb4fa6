"""1F1B: as few forwards ahead as keep the pipeline full, then one forward, one backward."""

from __future__ import annotations

from planner.pipeline.actions import (
    BACKWARD,
    FORWARD,
    Rows,
    Shape,
    one_forward_one_backward,
    rows,
)
from planner.pipeline.schedule import Schedule, one_chunk
from planner.sources import MEGATRON_2021


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank."""
    every = range(shape.microbatches)
    return one_forward_one_backward(
        rows(FORWARD, rank, every),
        rows(BACKWARD, rank, every),
        warm=min(shape.ranks - 1 - rank, shape.microbatches),
    )


SCHEDULE = Schedule(
    name="1f1b",
    title="1F1B: one forward, one backward",
    source=MEGATRON_2021,
    actions=actions,
    refuses=one_chunk,
    in_flight=lambda shape, rank: min(shape.microbatches, shape.ranks - rank),
)
