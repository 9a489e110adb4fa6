"""Breadth-first: every micro-batch through a chunk before the next chunk's turn."""

from __future__ import annotations

import numpy as np

from planner.pipeline.actions import BACKWARD, FORWARD, Rows, Shape, join, rows
from planner.pipeline.schedule import Schedule
from planner.sources import BREADTH_FIRST_2022


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank; backward runs the forward's order the other way round."""
    every = np.arange(shape.microbatches)
    stages = range(rank, shape.stages, shape.ranks)
    ahead = [rows(FORWARD, stage, every) for stage in stages]
    back = [rows(BACKWARD, stage, every[::-1]) for stage in reversed(stages)]
    return join(*ahead, *back)


SCHEDULE = Schedule(
    name="looped-bfs",
    title="breadth-first: all micro-batches through a chunk before the next",
    source=BREADTH_FIRST_2022,
    actions=actions,
    refuses=lambda shape: "",
    in_flight=lambda shape, rank: shape.microbatches * shape.chunks,
    usual_chunks=2,
)
