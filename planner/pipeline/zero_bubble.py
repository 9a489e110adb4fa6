"""Zero bubble 1 (ZB-H1, and its interleaved form): weight gradients wait to fill the drain."""

from __future__ import annotations

from planner.pipeline.actions import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    Rows,
    Shape,
    group_of,
    one_forward_one_backward,
    rounds,
    rows,
)
from planner.pipeline.schedule import Schedule, one_chunk, whole_rounds
from planner.sources import ZERO_BUBBLE_2023


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank; its weight gradients lag by as many backwards as its rank."""
    microbatch, forward, backward = rounds(shape, group_of(shape), rank)
    warm = (shape.chunks - 1) * group_of(shape) + shape.ranks - 1 - rank
    return one_forward_one_backward(
        rows(FORWARD, forward, microbatch),
        rows(BACKWARD_INPUT, backward, microbatch),
        warm=min(warm, len(microbatch)),
        weight=rows(BACKWARD_WEIGHT, backward, microbatch),
        weight_lag=rank,
    )


def in_flight(shape: Shape, rank: int) -> int:
    """Return the chunks held at the peak: the first rank's 1F1B, on every rank."""
    held = (shape.chunks - 1) * group_of(shape) + shape.ranks
    return min(shape.microbatches * shape.chunks, held)


FLAT = Schedule(
    name="zb-h1",
    title="zero bubble H1: weight gradients fill the drain",
    source=ZERO_BUBBLE_2023,
    actions=actions,
    refuses=lambda shape: one_chunk(shape) or whole_rounds(shape),
    in_flight=in_flight,
    splits_backward=True,
)
INTERLEAVED = Schedule(
    name="interleaved-zb",
    title="interleaved zero bubble: ZB-H1 with several chunks a rank",
    source=ZERO_BUBBLE_2023,
    actions=actions,
    refuses=whole_rounds,
    in_flight=in_flight,
    usual_chunks=2,
    splits_backward=True,
)
