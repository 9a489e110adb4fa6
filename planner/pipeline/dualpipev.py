"""DualPipeV: two chunks a rank, there and back; a forward and a backward run as one.

Running them as one hides the experts' traffic of either behind the other's kernels.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from planner.pipeline.actions import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    TOGETHER,
    Rows,
    Shape,
    join,
    rows,
    weave,
)
from planner.pipeline.schedule import Schedule, two_chunks
from planner.sources import DUALPIPE


class Side(NamedTuple):
    """One rank's place in a pipeline that runs both ways: how many ranks there are to the turn.

    `near` is its stage on the way to the turn, `far` the one on the way back; `microbatches` pass
    each.
    """

    ranks: int
    rank: int
    microbatches: int
    near: int
    far: int


def actions(shape: Shape, rank: int) -> Rows:
    """Return the order of one rank."""
    return both_ways(Side(shape.ranks, rank, shape.microbatches, rank, shape.stages - 1 - rank))


def both_ways(side: Side) -> Rows:
    """Return the order of one rank: fill, steady pairs, then drain."""
    p, rank, m, near, far = side
    left, steady = p - rank - 1, m - 2 * p + rank + 1
    ahead = 2 * left + rank + 1  # forwards of the near stage before the pairs begin

    def some(kind: int, stage: int, first: int, count: int) -> Rows:
        return rows(kind, stage, np.arange(first, first + count))

    def pairs(forward: tuple[int, int], backward: tuple[int, int], count: int) -> tuple[Rows, Rows]:
        return (
            some(FORWARD + TOGETHER, *forward, count),
            some(BACKWARD + TOGETHER, *backward, count),
        )

    main = weave(*pairs((near, ahead), (far, left), steady), *pairs((far, p), (near, 0), steady))
    if rank == p - 1:  # at the turn the first two run apart, which shortens the wait for them
        main[:2, 0] -= TOGETHER
    return join(
        some(FORWARD, near, 0, 2 * left),
        weave(some(FORWARD, near, 2 * left, rank + 1), some(FORWARD, far, 0, rank + 1)),
        weave(
            some(BACKWARD_INPUT, far, 0, left),
            some(BACKWARD_WEIGHT, far, 0, left),
            some(FORWARD, far, rank + 1, left),
        ),
        main,
        weave(
            some(BACKWARD, far, left + steady, left),
            *pairs((far, p + steady), (near, steady), left),
        ),
        _drain(side),
    )


def _drain(side: Side) -> Rows:
    """Return the last backwards; weight gradients of the second half wait to fill the gaps."""
    p, rank, m, near, far = side
    waiting: deque[tuple[int, int]] = deque()
    out: list[tuple[int, int, int]] = []

    def backward(stage: int, microbatch: int, *, split: bool) -> None:
        out.append((BACKWARD_INPUT if split else BACKWARD, stage, microbatch))
        if split:
            waiting.append((stage, microbatch))

    def weight() -> None:
        if waiting:
            out.append((BACKWARD_WEIGHT, *waiting.popleft()))

    half = (rank + 1) // 2
    for i in range(rank + 1):
        backward(far, m - rank - 1 + i, split=i > half or (i == half and rank % 2 == 1))
        backward(near, m - p + i, split=i >= half)
    for i in range(p - rank - 1):
        weight()
        backward(near, m - p + rank + 1 + i, split=True)
    for _ in range(rank + 1):
        weight()
    return np.array(out, dtype=np.int32)


def refuses(shape: Shape) -> str:
    """Return why it cannot run at this size, if it can't."""
    if why := two_chunks(shape):
        return why
    if shape.microbatches < shape.stages:
        return f"needs {shape.stages} micro-batches or more (2 a rank), not {shape.microbatches}"
    return ""


SCHEDULE = Schedule(
    name="dualpipev",
    title="DualPipeV: two chunks a rank, forward and backward run as one",
    source=DUALPIPE,
    actions=actions,
    refuses=refuses,
    in_flight=lambda shape, rank: 2 * shape.ranks + 1,
    style="v",
    usual_chunks=2,
    splits_backward=True,
    runs_both_at_once=True,
)
