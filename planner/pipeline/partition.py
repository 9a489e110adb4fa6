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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.pipeline.timing import FloatArray

IntArray = NDArray[np.int64]
CLOSE = 1e-13
"""How near, as a share, the bound on the slowest stage is closed in on."""
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
    layers = len(costs.layer_s)
    until = np.concatenate([[0.0], np.cumsum(costs.layer_s)])
    windows = [_window(costs, stage) for stage in range(len(costs.fixed_s))]
    best = _slowest_at_best(costs, until, windows)
    if best is None:
        raise InfeasibleError(
            f"no cut of {layers} layers into {len(windows)} stages fits",
            hint="more stages, or less zero",
        )
    return _evenest(costs, until, windows, best * SAME)


class _Window(NamedTuple):
    """Where a stage may begin that ends before layer j: from `first[j]` to `last[j]`, or nowhere.

    That is one run of layers: a stage takes as many layers as it must, and as fit into its memory.
    """

    first: IntArray
    last: IntArray


def _window(costs: StageCosts, stage: int) -> _Window:
    at = np.arange(len(costs.layer_s) + 1)
    first = np.zeros_like(at)
    if costs.layer_bytes is not None:
        held = np.concatenate([[0.0], np.cumsum(costs.layer_bytes[stage])])
        fixed = 0.0 if costs.fixed_bytes is None else float(costs.fixed_bytes[stage])
        first = _first_within(held, costs.limit_bytes, fixed)
    return _Window(first, at - costs.least(stage))


def _first_within(until: FloatArray, most: float, fixed: float = 0.0) -> IntArray:
    """Return, for each j, the least i with until[j] - until[i] + fixed <= most."""
    at = np.arange(len(until))
    first = np.searchsorted(until, until + fixed - most)
    for _ in range(2):  # rounding may be off by a layer, either way
        before = np.maximum(first - 1, 0)
        first = np.where(until - until[before] + fixed <= most, before, first)
    for _ in range(2):
        here = np.minimum(first, len(until) - 1)
        first = np.where((until - until[here] + fixed > most) & (first <= at), first + 1, first)
    return first


def _slowest_at_best(costs: StageCosts, until: FloatArray, windows: list[_Window]) -> float | None:
    """Return the time of the slowest stage of the best cut; None where there is no cut.

    Whether any cut stays below a bound is a sweep over the stages, so the bound is halved in on;
    what the cut found there takes is the answer, exactly.
    """
    high = float(until[-1] + costs.fixed_s.max())
    found = _below(costs, until, windows, high)
    if found is None:
        return None
    low, best = 0.0, slowest_s(costs, found)
    while best - low > CLOSE * best:
        middle = (low + best) / 2
        better = _below(costs, until, windows, middle)
        if better is None:
            low = middle
        else:
            best = slowest_s(costs, better)
    return best


def _below(
    costs: StageCosts, until: FloatArray, windows: list[_Window], most: float
) -> list[int] | None:
    """Return a cut none of whose stages takes longer; None where there is none."""
    free = {fixed: _first_within(until, most, fixed) for fixed in set(costs.fixed_s.tolist())}
    reached = [np.arange(len(until)) == 0]
    firsts = []
    for fixed, window in zip(costs.fixed_s.tolist(), windows, strict=True):
        first = np.maximum(window.first, free[fixed])
        some = np.concatenate([[0], np.cumsum(reached[-1])])
        last = np.maximum(window.last, -1)
        reached.append(some[last + 1] > some[np.minimum(first, last + 1)])
        firsts.append(first)
    if not reached[-1][-1]:
        return None
    counts, end = [], len(until) - 1
    for first, window, begins in zip(firsts[::-1], windows[::-1], reached[-2::-1], strict=True):
        begin = int(first[end]) + int(begins[first[end] : window.last[end] + 1].argmax())
        counts.append(end - begin)
        end = begin
    return counts[::-1]


def _evenest(
    costs: StageCosts, until: FloatArray, windows: list[_Window], most: float
) -> list[int]:
    """Return the cut with the least sum of squares among those with no stage above `most`."""
    at = np.arange(len(until))
    reach = np.where(at == 0, 0.0, np.inf)
    chosen = []
    for fixed, window in zip(costs.fixed_s.tolist(), windows, strict=True):
        first = np.maximum(window.first, _first_within(until, most, fixed))
        width = int(max(1, (window.last - first).max() + 1))
        begin = first[:, None] + np.arange(width)  # a band: no stage takes many times its share
        inside = begin <= window.last[:, None]
        begin = np.minimum(begin, len(until) - 1)
        total = reach[begin] + (until[:, None] - until[begin] + fixed) ** 2
        total[~inside] = np.inf
        best = total.argmin(axis=1)
        chosen.append(first + best)
        reach = total[at, best]
    counts, end = [], len(until) - 1
    for begins in reversed(chosen):
        begin_at = int(begins[end])
        counts.append(end - begin_at)
        end = begin_at
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
