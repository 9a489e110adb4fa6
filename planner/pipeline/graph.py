"""An order as flat arrays: what each action is, where its result arrives and what it waits for.

What differs only by kind and stage (seconds, links, places) stays in small tables. Checks on the
way that the order is one: every micro-batch passes every stage once, forward before backward before
weight gradient, each on the rank that holds the stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.pipeline.actions import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    TOGETHER,
    IntArray,
    Order,
)
from planner.pipeline.timing import FloatArray, Links, StageTimes

NOBODY = -1
APART = 16
"""Places left out between two rows of a table, so that powers of two do not share cache lines."""


class OrderError(ValueError):
    """An order that no pipeline can run: a defect of the schedule, not of the user's input."""


class Slots(NamedTuple):
    """Where results arrive, one row of micro-batches after the other; where each `what` finds them.

    Rows are the forwards of all stages, their backwards and weight gradients of their own; then one
    that is there from the start, and one that never comes.
    """

    result: IntArray
    """By `what`: where the result of micro-batch 0 arrives."""
    needed: IntArray
    """By `what`: where what micro-batch 0 waits for arrives."""
    free: slice
    never: int
    size: int


@dataclass(frozen=True)
class Graph:
    """Actions of all ranks, rank after rank; rank r's are `first[r]` to `first[r + 1]`.

    `what` is kind * stages + stage: all but the micro-batch.
    """

    order: Order
    first: IntArray
    what: NDArray[np.int32]
    microbatch: NDArray[np.int32]

    @cached_property
    def slots(self) -> Slots:
        """Return where results arrive."""
        order, stages, each = self.order, self.order.shape.stages, self.order.each
        row = np.arange(3 * stages).reshape(3, stages)
        free, part = 3 * stages, order.model_part
        result, needed = np.zeros((2, 2 * TOGETHER, stages), dtype=np.int64)
        for kind, group in ((FORWARD, 0), (BACKWARD, 1), (BACKWARD_INPUT, 1), (BACKWARD_WEIGHT, 2)):
            result[kind::TOGETHER] = row[group]
        needed[FORWARD::TOGETHER] = np.where(part > 0, row[0] - 1, free)
        needed[BACKWARD::TOGETHER] = np.where(part < order.depth - 1, row[1] + 1, free)
        needed[BACKWARD_INPUT::TOGETHER] = needed[BACKWARD]
        needed[BACKWARD_WEIGHT::TOGETHER] = free
        wide = each + APART
        none = slice(free * wide, free * wide + each)
        return Slots(
            result.ravel() * wide,
            needed.ravel() * wide,
            none,
            never=(free + 1) * wide,
            size=(free + 2) * wide,
        )

    @cached_property
    def link(self) -> NDArray[np.int32]:
        """Return the link that each `what` sends its result over, 2 * rank + side, or NOBODY."""
        return _links(self.order).ravel()

    @cached_property
    def lists(self) -> tuple[list[int], list[int], list[int]]:
        """Return of each action where its result arrives, what it waits for, and its link."""
        slot, waits = (row[self.what] + self.microbatch for row in self.slots[:2])
        return slot.tolist(), waits.tolist(), self.link[self.what].tolist()

    def durations(self, times: StageTimes) -> FloatArray:
        """Return the seconds of every `what`."""
        whole = times.backward_input_s + times.backward_weight_s
        apart = [times.forward_s, whole, times.backward_input_s, times.backward_weight_s]
        table = np.stack([*apart, *apart])
        table[TOGETHER + BACKWARD] = np.maximum(whole - times.hidden_s, 0.0)
        seconds: FloatArray = table.ravel()
        return seconds

    def messages(self, links: Links) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (latency, transfer, blocking) seconds of what each `what` sends; 0 if nothing."""
        table = self.link.reshape(2 * TOGETHER, -1)
        ahead, behind = (links_of >= 0 for links_of in (table[FORWARD], table[BACKWARD]))
        out = []
        for per_boundary in (links.latency_s, links.transfer_s, links.blocking_s):
            sent = np.zeros(table.shape)
            sent[FORWARD::TOGETHER] = np.where(ahead, per_boundary, 0.0)
            sent[BACKWARD::TOGETHER] = np.where(behind, np.roll(per_boundary, 1), 0.0)
            sent[BACKWARD_INPUT::TOGETHER] = sent[BACKWARD]
            out.append(sent.ravel())
        return out[0], out[1], out[2]


def graph_of(order: Order) -> Graph:
    """Return the order's graph; raises OrderError when it skips or repeats a step."""
    first = np.concatenate([[0], np.cumsum([len(a) for a in order.actions])])
    kind, stage, microbatch = (
        np.concatenate([a[:, column] for a in order.actions]) for column in range(3)
    )
    kind *= np.int32(order.shape.stages)
    graph = Graph(order, first, np.add(kind, stage, out=kind), microbatch)
    _refuse_gaps(graph)
    return graph


def _refuse_gaps(graph: Graph) -> None:
    """Raise OrderError unless every step is there once, in its place and after those it needs."""
    order, first, count = graph.order, graph.first, len(graph.what)
    stages, each = order.shape.stages, order.each
    if count < 2 * stages * each or graph.microbatch.min() < 0 or graph.microbatch.max() >= each:
        raise OrderError(f"{count} actions; 2 of {stages} stages and {each} micro-batches needed")
    place = np.full((3, stages, each + APART), NOBODY, dtype=np.int32)
    at = graph.slots.result.astype(np.int32)[graph.what]
    at += graph.microbatch
    place.ravel()[at] = np.arange(count, dtype=np.int32)
    forward, backward, weight = place[:, :, :each]
    if forward.min() < 0 or backward.min() < 0:
        raise OrderError("a micro-batch misses a stage, and another repeats it")
    steps = [forward, backward]
    if weight.max() >= 0:
        apart = (graph.what // stages % TOGETHER == BACKWARD_INPUT)[backward]
        if (apart != (weight >= 0)).any():
            raise OrderError("weight gradients that are apart are needed once, and no others")
        count -= int(apart.sum())
        steps.append(np.where(apart, weight, backward))
    if count != 2 * stages * each:
        raise OrderError("an action repeats another")
    if any((later < sooner).any() for sooner, later in pairwise(steps)):
        raise OrderError("a backward stands before its forward, or a weight gradient before both")
    begin, end = first[order.rank_of], first[order.rank_of + 1]
    if any((s.min(axis=1) < begin).any() or (s.max(axis=1) >= end).any() for s in steps):
        raise OrderError("an action stands on a rank that does not hold its stage")


def _links(order: Order) -> NDArray[np.int32]:
    """Return the link that each (kind, stage) sends its result over, NOBODY where it sends none."""
    stages, ranks, rank_of = order.shape.stages, order.shape.ranks, order.rank_of
    at = np.arange(stages)
    part = order.model_part
    table = np.full((2 * TOGETHER, stages), NOBODY, dtype=np.int32)
    for kinds, step, has in (
        ((FORWARD,), 1, part < order.depth - 1),
        ((BACKWARD, BACKWARD_INPUT), -1, part > 0),
    ):
        there = rank_of[np.where(has, at + step, at)]
        side = np.where((there - rank_of) % ranks == 1, 0, 1)
        link = np.where(there != rank_of, 2 * rank_of + side, NOBODY)
        for kind in kinds:
            table[kind::TOGETHER] = link
    return table
