"""Event simulation of any order of actions, in one pass over its dependencies.

Ranks run their actions in order; each waits at most for one message. So the events need no queue:
any rank that can go on may go on, and every time is final when it is written. Two loops do that,
with the same result: few ranks run one at a time, in plain Python, each as far as it gets; many
ranks run in lockstep, one action of every rank that can act at a time, in numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.pipeline.actions import Order
from planner.pipeline.graph import NOBODY, Graph, OrderError, graph_of
from planner.pipeline.timeline import Timeline
from planner.pipeline.timing import FloatArray, Links, StageTimes

LOCKSTEP_RANKS = 24
"""From here on lockstep is the faster loop (measured by benchmarks/simulate.py)."""


class Costs(NamedTuple):
    """Seconds of every action, and of the message that it sends."""

    seconds: FloatArray
    latency: FloatArray
    transfer: FloatArray
    blocking: FloatArray


def simulate(order: Order, times: StageTimes, links: Links | None = None) -> Timeline:
    """Return when every action runs; without `links` messages take no time.

    Raises OrderError when ranks wait for each other in a ring.
    """
    return run(graph_of(order), times, Links.of(order.shape.stages) if links is None else links)


def run(graph: Graph, times: StageTimes, links: Links) -> Timeline:
    """Return the same of an order whose graph is made already."""
    costs = Costs(graph.durations(times), *graph.messages(links))
    loop = lockstep if graph.order.shape.ranks >= LOCKSTEP_RANKS else one_by_one
    start = loop(graph, costs)
    return Timeline(graph.order, graph, start, start + costs.seconds, costs.blocking)


def one_by_one(graph: Graph, costs: Costs) -> FloatArray:
    """Return the start of every action, ranks taken one at a time as far as they get."""
    waits, link = graph.lists
    seconds, latency, transfer, blocking = (part.tolist() for part in costs)
    position, last = graph.first[:-1].tolist(), graph.first[1:].tolist()
    clock, free = [0.0] * len(last), [0.0] * (2 * len(last))
    start, arrival = [0.0] * len(waits), [-1.0] * len(waits)
    waiter = [NOBODY] * len(waits)
    runnable = list(range(len(last)))
    while runnable:
        rank = runnable.pop()
        now, i, end = clock[rank], position[rank], last[rank]
        while i < end:
            wait = waits[i]
            if wait >= 0:
                ready = arrival[wait]
                if ready < 0.0:
                    waiter[wait] = rank
                    break
                if ready > now:  # noqa: PLR1730  a call of max() would double the loop's time
                    now = ready
            start[i] = now
            now += seconds[i]
            over = link[i]
            if over < 0:
                arrival[i] = now
            else:
                sent = free[over]
                if sent < now:  # noqa: PLR1730
                    sent = now
                free[over] = sent = sent + transfer[i]
                arrival[i] = sent + latency[i]
                now += blocking[i]
                if waiter[i] >= 0:
                    runnable.append(waiter[i])
            i += 1
        clock[rank], position[rank] = now, i
    _refuse_ring(np.array(position), graph)
    return np.array(start)


def lockstep(graph: Graph, costs: Costs) -> FloatArray:
    """Return the start of every action, one action at a time of every rank that can act."""
    seconds, latency, transfer, blocking = costs
    ranks, actions = len(graph.first) - 1, len(graph.what)
    # one slot more, that never comes: an idle rank waits for it, and nobody sends to it
    waits = np.append(graph.waits, actions + 1)
    waits[waits == NOBODY] = actions
    arrival = np.full(actions + 2, np.inf)
    arrival[actions] = 0.0
    link = np.where(graph.link == NOBODY, 2 * ranks, graph.link)
    silent = not (transfer.any() or blocking.any())
    position, last = graph.first[:-1].copy(), graph.first[1:]
    clock, free = np.zeros(ranks), np.zeros(2 * ranks + 1)
    start = np.zeros(actions)
    while True:
        ready = arrival[waits[position]]
        go = np.flatnonzero(ready < np.inf)
        if not len(go):
            break
        at = position[go]
        now = np.maximum(clock[go], ready[go])
        start[at] = now
        now += seconds[at]
        if silent:
            arrival[at] = now + latency[at]
        else:
            over = link[at]
            free[-1] = 0.0
            sent = np.maximum(now, free[over]) + transfer[at]
            free[over] = sent
            arrival[at] = sent + latency[at]
            now += blocking[at]
        clock[go] = now
        at += 1
        position[go] = np.where(at == last[go], actions, at)
    _refuse_ring(np.where(position == actions, last, position), graph)
    return start


def _refuse_ring(position: np.ndarray, graph: Graph) -> None:
    """Raise OrderError unless every rank has come to its end."""
    stuck = np.flatnonzero(position != graph.first[1:])
    if len(stuck):
        raise OrderError(f"deadlock: ranks {stuck.tolist()} wait for each other")
