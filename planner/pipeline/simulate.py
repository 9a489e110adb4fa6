"""Event simulation of any order of actions, in one pass over its dependencies.

Ranks run their actions in order; each waits at most for one message. So the events need no queue:
any rank that can go on may go on, and every time is final when it is written. Two loops do that,
with the same result: few ranks run one at a time, in plain Python, each as far as it gets; many
ranks run in lockstep, one action of every rank that can act at a time, in numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.pipeline.actions import IntArray, Order
from planner.pipeline.graph import APART, NOBODY, Graph, OrderError, graph_of
from planner.pipeline.timeline import Timeline
from planner.pipeline.timing import FloatArray, Links, StageTimes

LOCKSTEP_RANKS = 24
"""From here on lockstep is the faster loop (measured by benchmarks/simulate.py)."""


class Costs(NamedTuple):
    """Seconds of every kind of action on every stage, and of the message that it sends."""

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
    return Timeline(graph.order, graph, loop(graph, costs), costs.seconds, costs.blocking)


def one_by_one(graph: Graph, costs: Costs) -> FloatArray:
    """Return the start of every action, ranks taken one at a time as far as they get."""
    slots, (slot, waits, link) = graph.slots, graph.lists
    seconds, latency, transfer, blocking = (part[graph.what].tolist() for part in costs)
    position, last = graph.first[:-1].tolist(), graph.first[1:].tolist()
    clock, free = [0.0] * len(last), [0.0] * (2 * len(last))
    start, arrival = [0.0] * len(waits), [-1.0] * slots.size
    waiter = [NOBODY] * slots.size
    arrival[slots.free] = [0.0] * graph.order.each
    runnable = list(range(len(last)))
    while runnable:
        rank = runnable.pop()
        now, i, end = clock[rank], position[rank], last[rank]
        while i < end:
            ready = arrival[waits[i]]
            if ready < 0.0:
                waiter[waits[i]] = rank
                break
            if ready > now:  # noqa: PLR1730  a call of max() would double the loop's time
                now = ready
            start[i] = now
            now += seconds[i]
            over = link[i]
            if over < 0:
                arrival[slot[i]] = now
            else:
                sent = free[over]
                if sent < now:  # noqa: PLR1730
                    sent = now
                free[over] = sent = sent + transfer[i]
                arrival[slot[i]] = sent + latency[i]
                now += blocking[i]
                if waiter[slot[i]] >= 0:
                    runnable.append(waiter[slot[i]])
            i += 1
        clock[rank], position[rank] = now, i
    _refuse_ring(np.array(position), graph)
    return np.array(start)


def lockstep(graph: Graph, costs: Costs) -> FloatArray:
    """Return the start of every action, one action at a time of every rank that can act.

    All ranks are taken along: what one that has to wait would do is written as infinity, and
    written over in its turn. A rank that is through waits for what never comes.
    """
    ranks, slots = len(graph.first) - 1, graph.slots
    amounts = np.append(np.stack(costs), np.zeros((4, 1)), axis=1)
    ways = np.stack([slots.result, slots.needed, _with_own(graph)])
    ways = np.append(ways, [[slots.never], [slots.never], [3 * ranks]], axis=1)
    arrival = np.full(slots.size, np.inf)
    arrival[slots.free] = 0.0
    silent = not (costs.transfer.any() or costs.blocking.any())
    first, packed, bits = _packed(graph)
    position, clock = first.copy(), np.zeros(ranks)
    free, start = np.zeros(3 * ranks + 1), np.empty(len(packed))
    while True:
        coming = packed.take(position)
        doing = np.right_shift(coming, bits, dtype=np.int64)
        coming &= (1 << bits) - 1
        result, needed, link = ways.take(doing, axis=1)
        needed += coming
        now = arrival.take(needed)
        go = now < np.inf
        if not go.any():
            break
        np.maximum(clock, now, out=now)
        start[position] = now
        seconds, latency, transfer, blocking = amounts.take(doing, axis=1)
        now += seconds
        result += coming
        if silent:
            arrival[result] = now + latency
        else:
            before = free.take(link)
            sent = np.maximum(now, before)
            sent += transfer
            free[link] = np.where(go, sent, before)
            sent += latency
            arrival[result] = sent
            now += blocking
        np.copyto(clock, now, where=go)
        position += go
    _refuse_ring(position - first + graph.first[:-1], graph)
    ends = first + np.diff(graph.first)
    return np.concatenate([start[a:b] for a, b in zip(first, ends, strict=True)])


def _packed(graph: Graph) -> tuple[IntArray, NDArray[np.signedinteger], int]:
    """Return where each rank begins, and (what, micro-batch) of every action in one number.

    The micro-batch is in the lowest bits, whose number comes last. Behind a rank's actions there
    are some that are none: the one after all that there are, which never begins.
    """
    bits, nothing = graph.order.each.bit_length(), len(graph.link)
    first = graph.first[:-1] + APART * np.arange(len(graph.first) - 1)
    count = len(graph.what) + APART * len(first)
    sort = np.dtype(np.int32 if nothing < (1 << 31 - bits) else np.int64)
    out: NDArray[np.signedinteger] = np.full(count, nothing << bits, dtype=sort)
    numbers = (graph.what.astype(sort) << bits) | graph.microbatch
    for a, b, at in zip(graph.first, graph.first[1:], first, strict=False):
        out[at : at + b - a] = numbers[a:b]
    return first, out, bits


def _with_own(graph: Graph) -> IntArray:
    """Return every link, and one of the rank's own for what it sends to nobody."""
    ranks = len(graph.first) - 1
    own = np.tile(2 * ranks + graph.order.rank_of, len(graph.link) // graph.order.shape.stages)
    return np.where(graph.link == NOBODY, own, graph.link)


def _refuse_ring(position: np.ndarray, graph: Graph) -> None:
    """Raise OrderError unless every rank has come to its end."""
    stuck = np.flatnonzero(position != graph.first[1:])
    if len(stuck):
        raise OrderError(f"deadlock: ranks {stuck.tolist()} wait for each other")
