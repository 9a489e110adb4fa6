"""ZB-V: two chunks a rank, there and back, so that the last stage stands beside the first."""

from __future__ import annotations

import numpy as np

from planner.pipeline.actions import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    Rows,
    Shape,
    join,
    rows,
    weave,
)
from planner.pipeline.schedule import Schedule, two_chunks
from planner.sources import ZERO_BUBBLE_2023


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank.

    Laid out for at least 2 * ranks - 1 micro-batches; those that do not exist are then left out.
    """
    p, n = shape.ranks, max(2 * shape.ranks - 1, shape.microbatches)
    stages = (rank, shape.stages - 1 - rank)
    ahead = 2 * p - 1 - rank  # forwards of the first chunk when the steady phase begins
    steady, left = n - ahead, p - 1 - rank
    done = p - rank + n - p  # backwards of the second chunk when the drain begins

    def some(kind: int, chunk: int, first: int, count: int) -> Rows:
        return rows(kind, stages[chunk], np.arange(first, first + count))

    def whole(chunk: int, first: int, count: int) -> tuple[Rows, Rows]:
        kinds = (BACKWARD_INPUT, BACKWARD_WEIGHT)
        return some(kinds[0], chunk, first, count), some(kinds[1], chunk, first, count)

    order = join(
        some(FORWARD, 0, 0, 2 * (p - rank) - 1),
        weave(some(FORWARD, 1, 0, rank), some(FORWARD, 0, 2 * (p - rank) - 1, rank)),
        weave(some(FORWARD, 1, rank, p - rank), *whole(1, 0, p - rank)),
        weave(
            some(FORWARD, 0, ahead, steady),
            *whole(0, 0, steady),
            some(FORWARD, 1, p, steady),
            *whole(1, p - rank, steady),
        ),
        weave(
            *whole(0, steady, left),
            some(FORWARD, 1, p + steady, left),
            *whole(1, p - rank + steady, left),
        ),
        weave(some(BACKWARD_INPUT, 0, n - p, rank), some(BACKWARD_INPUT, 1, done, rank)),
        weave(
            some(BACKWARD_INPUT, 0, n - p + rank, p - rank),
            some(BACKWARD_WEIGHT, 0, n - p, p - rank),
        ),
        some(BACKWARD_WEIGHT, 1, done, rank),
        some(BACKWARD_WEIGHT, 0, n - rank, rank),
    )
    return order[order[:, 2] < shape.microbatches]


def in_flight(shape: Shape, rank: int) -> int | None:
    """Return the chunks held at the peak: what rank 0 of 1F1B holds, on every rank."""
    return 2 * shape.ranks if shape.microbatches >= 2 * shape.ranks else None


SCHEDULE = Schedule(
    name="zbv",
    title="ZB-V: zero bubble over two chunks a rank, there and back",
    source=ZERO_BUBBLE_2023,
    actions=actions,
    refuses=two_chunks,
    in_flight=in_flight,
    style="v",
    usual_chunks=2,
    splits_backward=True,
)
