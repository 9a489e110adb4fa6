"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from planner.pipeline.actions import BACKWARD, FORWARD, Rows, Shape, join, rows
from planner.pipeline.schedule import Schedule, one_chunk
from planner.sources import GPIPE_2019


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank."""
    every = range(shape.microbatches)
    return join(rows(FORWARD, rank, every), rows(BACKWARD, rank, every))


SCHEDULE = Schedule(
    name="gpipe",
    title="GPipe: all forwards, then all backwards",
    source=GPIPE_2019,
    actions=actions,
    refuses=one_chunk,
    in_flight=lambda shape, rank: shape.microbatches,
)
