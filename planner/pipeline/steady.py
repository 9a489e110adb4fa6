"""Long pipelines from short ones: a steady phase that has begun to repeat goes on repeating.

An action starts when the latest of what it waits for is there: the action before it on its rank,
the last message over its link, and a message of the same micro-batch. In the steady phase these
stand in the same places for every micro-batch (or round of them). So once all actions of a window
of micro-batches start exactly `period` later than those one round before, and the window reaches
back as far as anything in the order does, the next round starts `period` later too, and so on by
induction until the drain, which then runs as it would have without the rounds in between. The
short run is checked for such a window; where there is none the pipeline is run whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.pipeline.actions import TOGETHER, IntArray, Shape
from planner.pipeline.graph import Graph
from planner.pipeline.simulate import run
from planner.pipeline.timeline import Timeline
from planner.pipeline.timing import FloatArray, Links, StageTimes

NEVER_STEADY = ("gpipe", "looped-bfs")
"""Schedules whose forwards are all over before the first backward: no micro-batch is like another.
"""
CLOSE = 1e-9
"""Relative difference of two shifts that rounding may make."""


@dataclass(frozen=True)
class Outcome:
    """What a pipeline takes: its makespan, and seconds of every rank."""

    makespan_s: float
    busy_s: FloatArray
    blocked_s: FloatArray

    @property
    def busiest(self) -> int:
        """Return the rank that computes and sends longest."""
        return int((self.busy_s + self.blocked_s).argmax())

    @property
    def bubble_s(self) -> float:
        """Return what that rank waits."""
        at = self.busiest
        return max(self.makespan_s - float(self.busy_s[at] + self.blocked_s[at]), 0.0)


class _Window(NamedTuple):
    """Micro-batches `begin` to `end`, whose actions stand like those one round later."""

    begin: int
    end: int


def whole(line: Timeline) -> Outcome:
    """Return what a pipeline took that was run whole."""
    return Outcome(line.makespan_s, line.busy_s, line.blocked_s)


def rounds_of(name: str, shape: Shape) -> int:
    """Return the micro-batches after which an order repeats, 0 where it is not known to."""
    if not name.startswith("interleaved"):
        return 1
    return shape.ranks if shape.microbatches % shape.ranks == 0 else 0


def laps_of(name: str) -> tuple[int, int]:
    """Return the micro-batches a rank in which a steady phase is looked for, at first and at last.

    Interleaved 1F1B warms up for so long that none shows in fewer than eight.
    """
    return (8, 12) if name == "interleaved" else (6, 12)


def shorter(name: str, shape: Shape, laps: int) -> Shape | None:
    """Return the same pipeline with some `laps` * ranks micro-batches, None if that is no less."""
    turn = rounds_of(name, shape) * (2 if name == "dualpipe" else 1)
    if not turn:
        return None
    left = (shape.microbatches - laps * shape.ranks) // turn
    return shape._replace(microbatches=shape.microbatches - left * turn) if left > 0 else None


def extended(
    graph: Graph, times: StageTimes, links: Links, *, turn: int, microbatches: int
) -> Outcome | None:
    """Return what the order takes with so many micro-batches, from a run of its short `graph`.

    None where no steady phase shows in it.
    """
    line = run(graph, times, links)
    each, more = graph.order.each, (microbatches - graph.order.shape.microbatches)
    rounds = more // (turn * (2 if graph.order.style == "both" else 1))
    table = _table(graph)
    window = _window(graph, table, turn)
    if window is None:
        return None
    now = table[:, window.begin : window.end]
    later = table[:, window.begin + turn : window.end + turn]
    shift = (line.start_s[later] - line.start_s[now])[now >= 0]
    period = float(shift.max())
    if float(shift.min()) < period * (1 - CLOSE):
        return None
    last = np.arange(window.end, window.end + turn)
    busy, blocked = (
        rounds * _of_ranks(graph, table[:, last], seconds)
        for seconds in (line.seconds[graph.what], line.sending_s)
    )
    assert each >= window.end + turn
    return Outcome(line.makespan_s + rounds * period, line.busy_s + busy, line.blocked_s + blocked)


def _table(graph: Graph) -> IntArray:
    """Return the place of every action by (kind, stage) and micro-batch, -1 where there is none."""
    order = graph.order
    stages = order.shape.stages
    microbatch = graph.microbatch
    table = np.full((TOGETHER * stages, order.each), -1, dtype=np.int64)
    table[graph.what % (TOGETHER * stages), microbatch] = np.arange(len(microbatch))
    return table[(table >= 0).any(axis=1)]


def _window(graph: Graph, table: IntArray, turn: int) -> _Window | None:
    """Return the last stretch that stands as the round after it, as long as the order looks back.

    An action stands as another where both are of a kind and follow actions of the same kind and
    stage, as many micro-batches away.
    """
    microbatch = graph.microbatch.astype(np.int64)
    away, before = _before(graph, microbatch)
    held = table >= 0
    sign = np.where(held, graph.what[table], -1)
    same = (sign[:, turn:] == sign[:, :-turn]).all(axis=0)
    for part in (away, before):
        found = np.where(held, part[table], 0)
        same &= (found[:, turn:] == found[:, :-turn]).all(axis=0)
    differ = np.flatnonzero(~same)
    edges = np.concatenate([[-1], differ, [len(same)]])
    widest = int(np.diff(edges).argmax())
    begin, end = int(edges[widest]) + 1, int(edges[widest + 1])
    far = max(_reach(graph, microbatch, begin), int(np.abs(away[microbatch >= begin]).max()))
    return _Window(end - far - turn, end) if end - far - turn >= begin else None


def _before(graph: Graph, microbatch: IntArray) -> tuple[IntArray, IntArray]:
    """Return of each action's predecessor on its rank how many micro-batches away, and its kind."""
    away, before = np.zeros_like(microbatch), np.full_like(microbatch, -1)
    away[1:] = microbatch[:-1] - microbatch[1:]
    before[1:] = graph.what[:-1]
    away[graph.first[:-1]], before[graph.first[:-1]] = 0, -1
    return away, before


def _reach(graph: Graph, microbatch: IntArray, begin: int) -> int:
    """Return the most micro-batches between two messages that follow each other on a link."""
    links = graph.link[graph.what]
    order = np.argsort(links, kind="stable")
    link, which = links[order], microbatch[order]
    follows = (link[1:] == link[:-1]) & (link[1:] >= 0) & (which[1:] >= begin)
    gaps = np.abs(np.diff(which))[follows]
    return int(gaps.max(initial=0))


def _of_ranks(graph: Graph, places: IntArray, seconds: FloatArray) -> FloatArray:
    """Return the seconds of the actions at `places`, summed over each rank."""
    at = places[places >= 0]
    rank = np.searchsorted(graph.first, at, side="right") - 1
    total = np.bincount(rank, weights=seconds[at], minlength=len(graph.first) - 1)
    return total.astype(np.float64)
