"""The simulator against an event queue, which knows nothing of its loops, and closed forms."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.pipeline.actions import TOGETHER, Order, Shape
from planner.pipeline.closed_form import (
    gpipe_makespan_s,
    lower_bound_s,
    makespan_s,
    zero_bubble_makespan_s,
)
from planner.pipeline.graph import graph_of
from planner.pipeline.registry import SCHEDULES
from planner.pipeline.simulate import Costs, lockstep, one_by_one, simulate
from planner.pipeline.timing import Links, StageTimes

F, B, INPUT, W = range(4)
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 24)).map(
    lambda t: Shape(*t)
)


def runnable(name: str, shape: Shape) -> bool:
    return not SCHEDULES[name].refuses(shape)


def by_event_queue(order: Order, times: StageTimes, links: Links) -> dict[tuple, tuple]:
    """Return (start, end) by (stage, kind, micro-batch): clock, ranks, links and a heap."""
    at, last = [0] * order.shape.ranks, order.depth - 1
    busy, inbox, free, ran = defaultdict(float), {}, defaultdict(float), {}
    rank_of, ranks = order.rank_of, order.shape.ranks
    events = [(0.0, rank) for rank in range(ranks)]
    while events:
        now, rank = heapq.heappop(events)
        if at[rank] == len(order.actions[rank]) or now < busy[rank]:
            continue
        raw, stage, mb = order.actions[rank][at[rank]].tolist()
        kind, part = raw % TOGETHER, stage % order.depth
        needs = {F: (F, stage - 1), B: (B, stage + 1), INPUT: (B, stage + 1)}.get(kind)
        if needs and (part > 0 if kind == F else part < last):
            ready = inbox.get((*needs, mb))
            if ready is None:
                continue  # the message wakes this rank when it comes
            if ready > now:
                heapq.heappush(events, (ready, rank))
                continue
        cost = {
            F: times.forward_s[stage],
            B: times.backward_input_s[stage] + times.backward_weight_s[stage],
            INPUT: times.backward_input_s[stage],
            W: times.backward_weight_s[stage],
        }[kind]
        if raw == B + TOGETHER:
            cost = max(0.0, cost - times.hidden_s[stage])
        end = now + cost
        ran[stage, kind, mb] = (now, end)
        target = {F: stage + 1, B: stage - 1, INPUT: stage - 1}.get(kind)
        sends = target is not None and (part < last if kind == F else part > 0)
        wait = end
        if sends:
            there, key = int(rank_of[target]), (B if kind == INPUT else kind, stage, mb)
            if there == rank:
                inbox[key] = end
            else:
                edge = min(stage, target)
                side = (there - rank) % ranks == 1
                leaves = max(end, free[rank, side]) + links.transfer_s[edge]
                free[rank, side] = leaves
                inbox[key] = leaves + links.latency_s[edge]
                wait = end + links.blocking_s[edge]
                heapq.heappush(events, (inbox[key], there))
        at[rank] += 1
        busy[rank] = wait
        heapq.heappush(events, (wait, rank))
    return ran


def drawn(data, shape: Shape) -> tuple[StageTimes, Links]:
    """Return stage times and links of whole milliseconds (sums are then exact)."""
    seed = data.draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    whole = [rng.integers(0, 9, shape.stages).astype(float) for _ in range(7)]
    return StageTimes(*whole[:4]), Links(*whole[4:])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@settings(max_examples=40)
@given(shape=SHAPES, data=st.data())
def test_every_action_runs_when_an_event_queue_runs_it(name, shape, data):
    if not runnable(name, shape):
        shape = Shape(4, SCHEDULES[name].usual_chunks, 8)
    order = SCHEDULES[name].order(shape)
    times, links = drawn(data, shape)
    line = simulate(order, times, links)
    slow = by_event_queue(order, times, links)
    assert len(slow) == len(line.start_s)
    for rank, actions in enumerate(order.actions):
        span = line.of(rank)
        for (kind, stage, mb), start, end in zip(
            actions.tolist(), line.start_s[span], line.end_s[span], strict=True
        ):
            assert slow[stage, kind % TOGETHER, mb] == (start, end)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@settings(max_examples=40)
@given(shape=SHAPES, data=st.data())
def test_lockstep_and_one_by_one_agree(name, shape, data):
    if not runnable(name, shape):
        shape = Shape(6, SCHEDULES[name].usual_chunks, 12)
    order = SCHEDULES[name].order(shape)
    graph = graph_of(order)
    times, links = drawn(data, shape)
    costs = Costs(graph.durations(times), *graph.messages(links))
    np.testing.assert_array_equal(lockstep(graph, costs), one_by_one(graph, costs))


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved", "looped-bfs"])
@given(
    size=st.tuples(st.integers(1, 12), st.integers(2, 5), st.integers(1, 5)),
    forward=st.integers(1, 50),
    backward=st.integers(0, 90),
)
def test_equal_chunks_take_the_closed_form_exactly(name, size, forward, backward):
    ranks, chunks, turns = size
    shape = Shape(ranks, chunks if SCHEDULES[name].usual_chunks == 2 else 1, ranks * turns)
    times = StageTimes.of(shape.stages, forward, backward / 2, backward / 2)
    line = simulate(SCHEDULES[name].order(shape), times)
    told = makespan_s(shape, np.full(ranks, shape.chunks * (forward + backward)))
    assert line.makespan_s == pytest.approx(told, rel=1e-12)
    busy = shape.microbatches * shape.chunks * (forward + backward)
    assert line.idle_fraction == pytest.approx(1 - busy / told, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "chunks"), [("zb-h1", 1), ("interleaved-zb", 2), ("interleaved-zb", 3)]
)
@given(
    ranks=st.integers(1, 8),
    turns=st.integers(1, 5),
    times=st.tuples(*(st.integers(1, 30) for _ in range(3))),
)
def test_zero_bubble_of_equal_chunks_takes_the_closed_form_exactly(
    name, chunks, ranks, turns, times
):
    shape = Shape(ranks, chunks, ranks * turns)
    line = simulate(SCHEDULES[name].order(shape), StageTimes.of(shape.stages, *times))
    assert line.makespan_s == pytest.approx(zero_bubble_makespan_s(shape, *times), rel=1e-12)


@given(data=st.data(), ranks=st.integers(1, 10), microbatches=st.integers(1, 24))
def test_gpipe_of_uneven_stages_takes_its_closed_form_exactly(data, ranks, microbatches):
    shape = Shape(ranks, 1, microbatches)
    times, _ = drawn(data, shape)
    line = simulate(SCHEDULES["gpipe"].order(shape), times)
    assert line.makespan_s == pytest.approx(gpipe_makespan_s(shape, times), rel=1e-12)


@given(
    ranks=st.integers(2, 10),
    more=st.integers(0, 4),
    times=st.lists(st.integers(1, 30), min_size=3, max_size=3),
)
def test_zero_bubble_h1_waits_as_long_as_its_authors_say(ranks, more, times):
    """Qi et al. 2023, table 1: (p - 1)(F + B - W), with W no longer than F and B."""
    weight, one, other = sorted(times)
    shape = Shape(ranks, 1, ranks * (2 + more))
    line = simulate(SCHEDULES["zb-h1"].order(shape), StageTimes.of(ranks, one, other, weight))
    bubble = line.makespan_s - shape.microbatches * sum(times)
    assert bubble >= (ranks - 1) * (one + other - weight)
    if one == other == weight:
        assert bubble == (ranks - 1) * weight


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved", "looped-bfs"])
@given(data=st.data(), ranks=st.integers(1, 8), turns=st.integers(1, 4))
def test_uneven_stages_with_sends_never_beat_the_lower_bound(name, data, ranks, turns):
    shape = Shape(ranks, SCHEDULES[name].usual_chunks, ranks * turns)
    times, links = drawn(data, shape)
    bound = lower_bound_s(shape, times)
    order = SCHEDULES[name].order(shape)
    assert simulate(order, times).makespan_s >= bound
    assert simulate(order, times, links).makespan_s >= bound


@given(ranks=st.integers(1, 8), turns=st.integers(1, 4), slow=st.integers(0, 7))
def test_one_slow_stage_of_1f1b_reaches_the_lower_bound(ranks, turns, slow):
    shape = Shape(ranks, 1, ranks * turns)
    factors = np.ones(ranks)
    factors[slow % ranks] = 100.0
    times = StageTimes.of(ranks, 1, 1, 1).slowed(factors)
    made = simulate(SCHEDULES["1f1b"].order(shape), times).makespan_s
    assert lower_bound_s(shape, times) <= made <= lower_bound_s(shape, times) + 3 * ranks
