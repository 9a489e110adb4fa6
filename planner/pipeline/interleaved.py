"""Interleaved 1F1B: several chunks a rank, so that filling the pipeline costs less."""

from __future__ import annotations

from planner.pipeline.actions import (
    BACKWARD,
    FORWARD,
    Rows,
    Shape,
    group_of,
    one_forward_one_backward,
    rounds,
    rows,
)
from planner.pipeline.schedule import Schedule, whole_rounds
from planner.sources import MEGATRON_2021


def warm_up(shape: Shape, rank: int) -> int:
    """Return the forwards before the first backward's own."""
    warm = (shape.chunks - 1) * group_of(shape) + 2 * (shape.ranks - 1 - rank)
    return min(warm, shape.microbatches * shape.chunks)


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank."""
    microbatch, forward, backward = rounds(shape, group_of(shape), rank)
    return one_forward_one_backward(
        rows(FORWARD, forward, microbatch),
        rows(BACKWARD, backward, microbatch),
        warm=warm_up(shape, rank),
    )


def in_flight(shape: Shape, rank: int) -> int:
    """Return the chunks held at the peak: the warm-up and one more."""
    return min(shape.microbatches * shape.chunks, warm_up(shape, rank) + 1)


SCHEDULE = Schedule(
    name="interleaved",
    title="interleaved 1F1B: several chunks a rank",
    source=MEGATRON_2021,
    actions=actions,
    refuses=whole_rounds,
    in_flight=in_flight,
    usual_chunks=2,
)
