"""Exact cuts of a model into stages: the slowest stage as fast as it can be, within memory.

With one chunk a rank the layers may differ (dense, experts) and each stage has a length, a fixed
time (embedding, head) and a memory of its own: a dynamic programme over (stage, layers so far).
With several chunks a rank a stage is several stretches of the model; for layers that are all alike
only their number counts, and dealing them one by one to the rank that they hurt least is exact.
`planner.pipeline.behind` does it for models whose first few layers differ.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.pipeline.timing import FloatArray

SAME = 1 + 1e-12
"""Times this close are equal: rounding must not cost a tie its second look."""


@dataclass(frozen=True)
class StageCosts:
    """What a cut is judged by; one row a stage where it differs by stage.

    A layer on a stage takes `layer_bytes[stage, layer]`: its states and as many micro-batches of
    activations as that stage holds.
    """

    layer_s: FloatArray
    """Shape (layers,): one micro-batch, forward and backward."""
    fixed_s: FloatArray
    """Shape (stages,): embedding, head, sends."""
    layer_bytes: FloatArray | None = None
    """Shape (stages, layers)."""
    fixed_bytes: FloatArray | None = None
    """Shape (stages,)."""
    limit_bytes: float = np.inf
    fewest: tuple[int, ...] | int = 1
    """Layers that a stage holds at least."""

    def least(self, stage: int) -> int:
        """Return the fewest layers of a stage."""
        return self.fewest if isinstance(self.fewest, int) else self.fewest[stage]


def slowest_s(costs: StageCosts, counts: list[int]) -> float:
    """Return the time of the slowest stage of a cut into stages of so many layers."""
    edges = np.concatenate([[0], np.cumsum(counts)])
    until = np.concatenate([[0.0], np.cumsum(costs.layer_s)])
    return float((until[edges[1:]] - until[edges[:-1]] + costs.fixed_s).max())


def cut(costs: StageCosts) -> list[int]:
    """Return the layers of each stage: least slowest stage, and of those cuts the evenest.

    The evenest has the least sum of squared stage times. Raises InfeasibleError where no cut fits.
    """
    stages, layers = len(costs.fixed_s), len(costs.layer_s)
    times = [_times(costs, stage) for stage in range(stages)]
    reach = _start(layers)
    for table in times:
        reach = np.maximum(reach[:, None], table).min(axis=0)
    best = float(reach[layers])
    if not np.isfinite(best):
        raise InfeasibleError(
            f"no cut of {layers} layers into {stages} stages fits", hint="more stages, or less zero"
        )
    return _evenest([np.where(t <= best * SAME, t, np.inf) for t in times], layers)


def _start(layers: int) -> FloatArray:
    reach = np.full(layers + 1, np.inf)
    reach[0] = 0.0
    return reach


def _times(costs: StageCosts, stage: int) -> FloatArray:
    """Return the stage's time with layers i to j (excluded), shape (i, j); inf where it may not."""
    layers = len(costs.layer_s)
    until = np.concatenate([[0.0], np.cumsum(costs.layer_s)])
    at = np.arange(layers + 1)
    allowed: NDArray[np.bool_] = at[None, :] - at[:, None] >= costs.least(stage)
    if costs.layer_bytes is not None:
        held = np.concatenate([[0.0], np.cumsum(costs.layer_bytes[stage])])
        fixed = 0.0 if costs.fixed_bytes is None else costs.fixed_bytes[stage]
        allowed &= held[None, :] - held[:, None] + fixed <= costs.limit_bytes
    return np.where(allowed, until[None, :] - until[:, None] + costs.fixed_s[stage], np.inf)


def _evenest(times: list[FloatArray], layers: int) -> list[int]:
    """Return the cut with the least sum of squares among those whose times are finite."""
    reach, chosen = _start(layers), []
    for table in times:
        total = reach[:, None] + table**2
        chosen.append(total.argmin(axis=0))
        reach = total.min(axis=0)
    counts, end = [], layers
    for begins in reversed(chosen):
        begin = int(begins[end])
        counts.append(end - begin)
        end = begin
    return counts[::-1]


def deal(
    layers: int,
    *,
    layer_s: float,
    fixed_s: FloatArray,
    chunks: int,
    most: NDArray[np.int64] | None = None,
    back: bool = False,
) -> list[list[int]]:
    """Return the layers of each [rank][chunk] for layers that are all alike.

    The slowest rank is as fast as it can be; `most` is what a rank's memory takes (in layers). A
    chunk holds one layer or more, only the first of the model (beside the embedding) and the last
    (beside the head) may hold none. Within a rank the larger chunks are those of the same laps on
    every rank: ranks that are in different laps of a size wait for each other. With `back` the last
    chunk of the model is the first rank's, else the last one's. Raises InfeasibleError where they
    do not fit.
    """
    ranks = len(fixed_s)
    least = _least(ranks, chunks, back=back)
    counts = dealt_to_ranks(layers, least, layer_s, fixed_s, most)
    return [
        _laps(int(count), chunks, int(first), int(last))
        for count, first, last in zip(counts, *ends(ranks, chunks, back=back), strict=True)
    ]


def _least(ranks: int, chunks: int, *, back: bool) -> NDArray[np.int64]:
    """Return the fewest layers of each rank."""
    least: NDArray[np.int64] = np.maximum(chunks - ends(ranks, chunks, back=back).sum(axis=0), 1)
    return least


def dealt_to_ranks(
    layers: int,
    least: NDArray[np.int64],
    layer_s: float,
    fixed_s: FloatArray,
    most: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Return the layers of each rank, dealt one by one to the rank that they hurt least."""
    ranks = len(fixed_s)
    room = np.full(ranks, layers) if most is None else most
    counts = np.minimum(least, room)
    if (room < least).any() or least.sum() > layers or room.sum() < layers:
        raise InfeasibleError(
            f"{layers} layers do not fit {ranks} ranks",
            hint="fewer chunks, or more ranks",
        )
    heap = [
        (fixed + (count + 1) * layer_s, -rank, rank)
        for rank, (fixed, count) in enumerate(zip(fixed_s.tolist(), counts.tolist(), strict=True))
        if count < room[rank]
    ]
    heapq.heapify(heap)
    for _ in range(layers - int(counts.sum())):
        would, tie, rank = heapq.heappop(heap)
        counts[rank] += 1
        if counts[rank] < room[rank]:
            heapq.heappush(heap, (would + layer_s, tie, rank))
    return counts


def ends(ranks: int, chunks: int, *, back: bool) -> NDArray[np.int64]:
    """Return which ranks hold the first and the last chunk, which may be empty: (2, ranks)."""
    ends = np.zeros((2, ranks), dtype=np.int64)
    if chunks > 1:
        ends[0, 0] = ends[1, 0 if back else -1] = 1
    return ends


def _laps(count: int, chunks: int, first: int, last: int) -> list[int]:
    """Return a rank's layers per chunk: the larger ones last, but one less at the model's ends."""
    base, extra = divmod(count + first + last, chunks)
    out = [base + (lap >= chunks - extra) for lap in range(chunks)]
    out[0] -= first
    out[-1] -= last
    return out
