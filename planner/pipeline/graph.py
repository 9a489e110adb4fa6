"""An order as flat arrays: what each action waits for, and over which link its result leaves.

Checks on the way that the order is one: every micro-batch passes every stage once, forward before
backward before weight gradient, each on the rank that holds the stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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


class OrderError(ValueError):
    """An order that no pipeline can run: a defect of the schedule, not of the user's input."""


@dataclass(frozen=True)
class Graph:
    """Actions of all ranks, rank after rank; rank r's are `first[r]` to `first[r + 1]`.

    `what` is kind * stages + stage; `waits` the action of another stage whose result must have
    arrived, or NOBODY; `link` the link that the result leaves over, 2 * rank + side, or NOBODY.
    """

    order: Order
    first: IntArray
    what: NDArray[np.int32]
    waits: IntArray
    link: NDArray[np.int32]

    @cached_property
    def table(self) -> NDArray[np.int32]:
        """Return the link that each (kind, stage) sends its result over."""
        return _links(self.order)

    @cached_property
    def lists(self) -> tuple[list[int], list[int]]:
        """Return `waits` and `link` as plain lists."""
        return self.waits.tolist(), self.link.tolist()

    def durations(self, times: StageTimes) -> FloatArray:
        """Return the seconds of every action."""
        whole = times.backward_input_s + times.backward_weight_s
        apart = [times.forward_s, whole, times.backward_input_s, times.backward_weight_s]
        table = np.stack([*apart, *apart])
        table[TOGETHER + BACKWARD] = np.maximum(whole - times.hidden_s, 0.0)
        seconds: FloatArray = table.ravel()[self.what]
        return seconds

    def messages(self, links: Links) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (latency, transfer, blocking) seconds of what each action sends; 0 if nothing."""
        table = self.table
        ahead, behind = (links_of >= 0 for links_of in (table[FORWARD], table[BACKWARD]))
        out = []
        for per_boundary in (links.latency_s, links.transfer_s, links.blocking_s):
            sent = np.zeros(table.shape)
            sent[FORWARD::TOGETHER] = np.where(ahead, per_boundary, 0.0)
            sent[BACKWARD::TOGETHER] = np.where(behind, np.roll(per_boundary, 1), 0.0)
            sent[BACKWARD_INPUT::TOGETHER] = sent[BACKWARD]
            out.append(sent.ravel()[self.what])
        return out[0], out[1], out[2]


def graph_of(order: Order) -> Graph:
    """Return the order's graph; raises OrderError when it skips or repeats a step."""
    first = np.concatenate([[0], np.cumsum([len(a) for a in order.actions])])
    kind, stage, microbatch = np.ascontiguousarray(np.concatenate(order.actions).T)
    what = kind * np.int32(order.shape.stages) + stage
    forward, backward = _places(order, first, what, microbatch)
    waits = np.full(len(what), NOBODY, dtype=np.int64)
    waits[forward[:, 1:]] = forward[:, :-1]
    waits[backward[:, :-1]] = backward[:, 1:]
    return Graph(order, first, what, waits, _links(order).ravel()[what])


def _places(
    order: Order, first: IntArray, what: NDArray[np.int32], microbatch: NDArray[np.int32]
) -> tuple[IntArray, IntArray]:
    """Return where each forward and each backward stands, shape (models, depth, micro-batches).

    Raises OrderError unless every step is there once, in its place and after those it needs.
    """
    forward = _once(order, what, microbatch, (FORWARD,))
    backward = _once(order, what, microbatch, (BACKWARD, BACKWARD_INPUT))
    weight = _once(order, what, microbatch, (BACKWARD, BACKWARD_WEIGHT))
    if not ((forward < backward) & (backward <= weight)).all():
        raise OrderError("a backward stands before its forward, or a weight gradient before both")
    rank = order.rank_of.reshape(forward.shape[:2])
    for place in (forward, backward, weight):
        inside = (place.min(axis=2) >= first[rank]) & (place.max(axis=2) < first[rank + 1])
        if not inside.all():
            raise OrderError("an action stands on a rank that does not hold its stage")
    return forward, backward


def _once(
    order: Order,
    what: NDArray[np.int32],
    microbatch: NDArray[np.int32],
    kinds: tuple[int, ...],
) -> IntArray:
    """Return the one action of the given kinds of every stage and micro-batch."""
    stages, each = order.shape.stages, order.each
    wanted = np.zeros((2 * TOGETHER, stages), dtype=np.bool_)
    for kind in kinds:
        wanted[kind::TOGETHER] = True
    found = np.flatnonzero(wanted.ravel()[what])
    at = np.full(stages * each, NOBODY, dtype=np.int64)
    named = microbatch[found]
    if len(found) != len(at) or named.min() < 0 or named.max() >= each:
        raise OrderError(f"{len(found)} actions of kind {kinds}, {len(at)} needed")
    at[what[found] % stages * each + named] = found
    if at.min() < 0:
        raise OrderError(f"a micro-batch misses a stage, and another repeats it (kind {kinds})")
    return at.reshape(-1, order.depth, each)


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
