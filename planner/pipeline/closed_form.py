"""Closed forms of a pipeline's makespan: what ranking uses, and where it is exact."""

from __future__ import annotations

import numpy as np

from planner.pipeline.actions import Shape
from planner.pipeline.timing import FloatArray, StageTimes


def makespan_s(shape: Shape, rank_s: FloatArray) -> float:
    """Return m * slowest + (sum of all - slowest) / chunks.

    `rank_s` is the time of one micro-batch, forward and backward, through all chunks of each rank.
    Exact for GPipe, 1F1B, interleaved 1F1B and breadth-first where all chunks are equal, sends
    take no time and there are at least as many micro-batches as ranks.
    """
    slowest = float(rank_s.max())
    return shape.microbatches * slowest + (float(rank_s.sum()) - slowest) / shape.chunks


def gpipe_makespan_s(shape: Shape, times: StageTimes) -> float:
    """Return all forwards' time, then all backwards': exact for GPipe of any stages, free sends."""
    backward = times.backward_input_s + times.backward_weight_s
    return sum(
        float(one.sum() + (shape.microbatches - 1) * one.max())
        for one in (times.forward_s, backward)
    )


def zero_bubble_makespan_s(
    shape: Shape, forward_s: float, backward_input_s: float, backward_weight_s: float
) -> float:
    """Return the time of ZB-H1 and of its interleaved form, equal chunks and free sends.

    `(p - 1) max(F, I, F + I - W)` stays empty; exact with as many micro-batches as ranks.
    """
    both = forward_s + backward_input_s
    left = max(forward_s, backward_input_s, both - backward_weight_s)
    work = shape.microbatches * shape.chunks * (both + backward_weight_s)
    return work + (shape.ranks - 1) * left


def lower_bound_s(shape: Shape, times: StageTimes) -> float:
    """Return a makespan that no GPipe, 1F1B, interleaved or breadth-first order can beat.

    Before a rank begins, one micro-batch has to come forward through the stages before it; after
    its last backward that one has to go back through them; in between it has all its own work. With
    it, a search may stop simulating once the next candidate's bound is above the best simulated.
    """
    backward = times.backward_input_s + times.backward_weight_s
    stage = times.forward_s + backward
    own = shape.microbatches * stage.reshape(shape.chunks, shape.ranks).sum(axis=0)
    before = np.concatenate([[0.0], np.cumsum(stage[: shape.ranks - 1])])
    return float((before + own).max())
