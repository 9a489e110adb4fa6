"""Timeline: when every action ran, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from planner.pipeline.actions import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    TOGETHER,
    IntArray,
    Order,
    Rows,
)
from planner.pipeline.graph import Graph
from planner.pipeline.timing import FloatArray

Release = Literal["weight", "input"]


@dataclass(frozen=True)
class Timeline:
    """Start of every action, rank after rank; the rest follows from what each kind takes.

    `seconds` and `blocking` are those of every `graph.what`: computing, and waiting for a send.
    """

    order: Order
    graph: Graph
    start_s: FloatArray
    seconds: FloatArray
    blocking: FloatArray

    def of(self, rank: int) -> slice:
        """Return where a rank's actions stand."""
        return slice(int(self.graph.first[rank]), int(self.graph.first[rank + 1]))

    @cached_property
    def end_s(self) -> FloatArray:
        """Return the end of every action."""
        return self.start_s + self.seconds[self.graph.what]

    @cached_property
    def sending_s(self) -> FloatArray:
        """Return what the sender of each action's result waited for the send."""
        return self.blocking[self.graph.what]

    @cached_property
    def makespan_s(self) -> float:
        """Return the seconds from the first forward to the last gradient."""
        return float(self._last_end_s.max())

    @cached_property
    def busy_s(self) -> FloatArray:
        """Return the seconds that each rank computes."""
        return self._per_rank(self.seconds)

    @cached_property
    def blocked_s(self) -> FloatArray:
        """Return the seconds that each rank spends on sends and can do nothing else.

        A send that ends after the last action of all counts up to there: only a rank's last can.
        """
        last = self.blocking[self.graph.what[self.graph.first[1:] - 1]]
        late = np.maximum(self._last_end_s + last - self.makespan_s, 0.0)
        return self._per_rank(self.blocking) - np.minimum(late, last)

    @cached_property
    def idle_s(self) -> FloatArray:
        """Return the seconds that each rank waits, out of the makespan."""
        return np.maximum(self.makespan_s - self.busy_s - self.blocked_s, 0.0)

    @cached_property
    def busiest(self) -> int:
        """Return the rank that computes and sends longest: the one that sets the pace."""
        return int((self.busy_s + self.blocked_s).argmax())

    @property
    def bubble_s(self) -> float:
        """Return what the busiest rank waits: all of a makespan that is not its own work."""
        return float(self.idle_s[self.busiest])

    @property
    def idle_fraction(self) -> float:
        """Return the share of all ranks' time that is waiting."""
        return float(self.idle_s.mean()) / self.makespan_s if self.makespan_s else 0.0

    @cached_property
    def _last_end_s(self) -> FloatArray:
        """Return the end of each rank's last action."""
        last = self.graph.first[1:] - 1
        return self.start_s[last] + self.seconds[self.graph.what[last]]

    @cached_property
    def _counts(self) -> IntArray:
        """Return how many actions there are of each kind and stage."""
        return np.bincount(self.graph.what, minlength=len(self.seconds))

    def _per_rank(self, each: FloatArray) -> FloatArray:
        """Return what all actions of each rank take, one of every kind and stage taking `each`."""
        order = self.order
        stages = (self._counts * each).reshape(-1, order.shape.stages).sum(axis=0)
        ranks: FloatArray = np.zeros(order.shape.ranks)
        np.add.at(ranks, order.rank_of, stages)
        return ranks

    def in_flight(self, rank: int) -> tuple[FloatArray, IntArray]:
        """Return (time, chunks of activations held from then on) at each change of a rank.

        A chunk's activations are held from the start of its forward to the end of its backward
        (of its weight gradient where that is apart).
        """
        at = self.of(rank)
        change = change_held(self.order.actions[rank])
        when = np.where(change > 0, self.start_s[at], self.end_s[at])[change != 0]
        return when, np.cumsum(change[change != 0])


def change_held(actions: Rows, release: Release = "weight") -> IntArray:
    """Return +1 for each action that makes activations, -1 for each that lets them go."""
    kind = actions[:, 0] % TOGETHER
    freed = BACKWARD_WEIGHT if release == "weight" else BACKWARD_INPUT
    drops = (kind == BACKWARD) | (kind == freed)
    change: IntArray = (kind == FORWARD).astype(np.int64) - drops
    return change


def peak_in_flight(order: Order, release: Release = "weight") -> IntArray:
    """Return the most chunks of activations that each rank holds at once, at any stage times.

    `release` says what lets go of them: the weight gradient, or already the input gradient (where
    a framework keeps only what weight gradients need).
    """
    peaks = [int(np.cumsum(change_held(a, release)).max()) for a in order.actions]
    return np.array(peaks, dtype=np.int64)


def peak_held_bytes(order: Order, chunk_bytes: FloatArray) -> FloatArray:
    """Return each rank's peak of activations where stage s's take `chunk_bytes[s]` a chunk."""
    return np.array(
        [
            float(np.cumsum(change_held(actions) * chunk_bytes[actions[:, 1]]).max())
            for actions in order.actions
        ]
    )
