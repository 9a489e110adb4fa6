"""Closed forms of a pipeline's makespan: what ranking uses, and where it is exact."""

from __future__ import annotations

from planner.pipeline.actions import Shape
from planner.pipeline.timing import FloatArray


def makespan_s(shape: Shape, rank_s: FloatArray) -> float:
    """Return m * slowest + (sum of all - slowest) / chunks.

    `rank_s` is the time of one micro-batch, forward and backward, through all chunks of each rank.
    Exact for GPipe, 1F1B, interleaved 1F1B and breadth-first where all chunks are equal, sends
    take no time and there are at least as many micro-batches as ranks.
    """
    slowest = float(rank_s.max())
    return shape.microbatches * slowest + (float(rank_s.sum()) - slowest) / shape.chunks
