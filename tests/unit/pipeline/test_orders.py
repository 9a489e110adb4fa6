"""What an order is, what is refused, and what a timeline tells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InfeasibleError, SpecError
from planner.pipeline.actions import BACKWARD, FORWARD, Order, Shape, join, rows
from planner.pipeline.graph import OrderError, graph_of
from planner.pipeline.registry import SCHEDULES, schedule_named
from planner.pipeline.simulate import LOCKSTEP_RANKS, simulate
from planner.pipeline.timeline import peak_held_bytes, peak_in_flight
from planner.pipeline.timing import Links, StageTimes


def order_of(*ranks: str, microbatches: int = 1) -> Order:
    """Return an order written as torch prints it, one text a rank."""
    actions = []
    for words in ranks:
        rank = [(["F", "B", "I", "W"].index(w[1]), int(w[0]), int(w[2])) for w in words.split()]
        actions.append(np.array(rank, dtype=np.int32).reshape(-1, 3))
    return Order(Shape(len(ranks), 1, microbatches), "loop", tuple(actions))


def test_1f1b_reads_as_in_the_textbook():
    order = SCHEDULES["1f1b"].order(Shape(3, 1, 4))
    assert " ".join(order.text(0)) == "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3"
    assert " ".join(order.text(2)) == "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3"


def test_stages_are_dealt_round_there_and_back_or_from_both_ends():
    def ranks(name: str) -> list[int]:
        return SCHEDULES[name].order(Shape(4, 2, 8)).rank_of.tolist()

    assert ranks("interleaved") == [0, 1, 2, 3, 0, 1, 2, 3]
    assert ranks("zbv") == [0, 1, 2, 3, 3, 2, 1, 0]
    both = SCHEDULES["dualpipe"].order(Shape(4, 2, 8))
    assert both.rank_of.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert both.model_part.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (order_of("0F0 0B0", "1F0"), "1 actions|needed"),
        (order_of("0F0 0F0 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2), "repeats"),
        (order_of("0B0 0F0", "1F0 1B0"), "before its forward"),
        (order_of("0F0 0I0 0W0", "1F0 1W0 1I0"), "weight gradient before"),
        (order_of("1F0 1B0", "0F0 0B0"), "does not hold"),
        (order_of("0F0 0F7 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2), "needed"),
    ],
)
def test_an_order_that_skips_or_swaps_a_step_is_refused(order: Order, why: str):
    with pytest.raises(OrderError, match=why):
        graph_of(order)


@pytest.mark.parametrize("padding", [0, LOCKSTEP_RANKS])
def test_ranks_that_wait_for_each_other_are_named(padding: int):
    """Rank 0 wants the second micro-batch's gradient before it sends the second micro-batch."""
    every = range(2)
    stuck = order_of("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1", microbatches=2)
    more = [join(rows(FORWARD, 2 + i, every), rows(BACKWARD, 2 + i, every)) for i in range(padding)]
    order = Order(Shape(2 + padding, 1, 2), "loop", (*stuck.actions, *more))
    with pytest.raises(OrderError, match=r"deadlock: ranks \[0, 1"):
        simulate(order, StageTimes.of(2 + padding, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("1f1b", Shape(4, 2, 8), "one chunk a rank, not 2"),
        ("zbv", Shape(4, 1, 8), "two chunks a rank, not 1"),
        ("interleaved", Shape(4, 2, 11), "11 do not make 2 equal rounds"),
        ("dualpipev", Shape(4, 2, 7), "8 micro-batches or more .* not 7"),
        ("dualpipe", Shape(3, 2, 8), "even ranks"),
        ("dualpipe", Shape(4, 2, 6), "8 micro-batches or more .* not 6"),
    ],
)
def test_a_schedule_that_cannot_run_says_why(name: str, shape: Shape, why: str):
    with pytest.raises(InfeasibleError, match=why):
        SCHEDULES[name].order(shape)


def test_an_unknown_schedule_is_named_with_those_there_are():
    with pytest.raises(SpecError, match="allowed: gpipe, 1f1b") as error:
        schedule_named("interleavd")
    assert "interleaved" in error.value.hint


def test_busy_blocked_and_idle_add_up_to_the_makespan():
    order = SCHEDULES["1f1b"].order(Shape(4, 1, 8))
    links = Links.of(4, latency_s=0.1, sent_bytes=10, bytes_per_s=100, exposed=0.5)
    line = simulate(order, StageTimes.of(4, 1, 1, 1), links)
    total = line.busy_s + line.blocked_s + line.idle_s
    np.testing.assert_allclose(total, line.makespan_s)
    np.testing.assert_allclose(line.busy_s, 24)
    np.testing.assert_allclose(line.blocked_s, [0.8, 1.6, 1.6, 0.8])  # 8 sends, 16 in the middle
    assert line.idle_fraction == pytest.approx(line.idle_s.sum() / line.makespan_s / 4)


def test_messages_of_one_link_queue():
    """Two forwards of 1 s, messages that hold the link for 3 s: the second leaves at 4, not 2."""
    order = order_of("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2)
    links = Links.of(2, latency_s=0.5, sent_bytes=3, bytes_per_s=1)
    line = simulate(order, StageTimes.of(2, 1, 0, 0), links)
    assert line.start_s[line.of(1)].tolist()[:2] == [4.5, 7.5]


def test_a_pair_hides_what_it_can_and_no_more():
    shape = Shape(4, 2, 16)
    order = SCHEDULES["dualpipev"].order(shape)
    apart = simulate(order, StageTimes.of(8, 1, 1, 1))
    hidden = simulate(order, StageTimes.of(8, 1, 1, 1, hidden_s=0.5))
    most = simulate(order, StageTimes.of(8, 1, 1, 1, hidden_s=99))
    assert most.makespan_s < hidden.makespan_s < apart.makespan_s
    assert (most.end_s >= most.start_s).all()


def test_in_flight_over_time_rises_to_the_peak_and_ends_empty():
    order = SCHEDULES["zb-h1"].order(Shape(4, 1, 8))
    line = simulate(order, StageTimes.of(4, 1, 1, 1))
    for rank, peak in enumerate(peak_in_flight(order)):
        when, held = line.in_flight(rank)
        assert held.max() == peak
        assert held[-1] == 0
        assert (np.diff(when) >= 0).all()


def test_held_bytes_weigh_each_stage_with_its_own_chunk():
    order = SCHEDULES["interleaved"].order(Shape(2, 2, 4))
    light = peak_held_bytes(order, np.ones(4))
    np.testing.assert_array_equal(light, peak_in_flight(order))
    heavy = peak_held_bytes(order, np.array([1.0, 1.0, 10.0, 1.0]))
    assert heavy[0] > light[0]
    assert heavy[1] == light[1]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(ranks=st.integers(1, 9), chunks=st.integers(1, 4), microbatches=st.integers(1, 40))
def test_every_schedule_runs_whole_wherever_it_does_not_refuse(name, ranks, chunks, microbatches):
    """`graph_of` refuses a step missed, repeated or misplaced; `simulate` refuses a deadlock."""
    shape = Shape(ranks, chunks, microbatches)
    schedule = SCHEDULES[name]
    if schedule.refuses(shape):
        with pytest.raises(InfeasibleError):
            schedule.order(shape)
        return
    order = schedule.order(shape)
    assert simulate(order, StageTimes.of(shape.stages, 1, 1, 1)).makespan_s > 0
    for rank, peak in enumerate(peak_in_flight(order)):
        assert schedule.in_flight(shape, rank) in (None, peak)
