"""A long pipeline told from a short run: the same to the last digits as running it whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.pipeline.actions import Shape
from planner.pipeline.graph import graph_of
from planner.pipeline.registry import SCHEDULES
from planner.pipeline.simulate import run
from planner.pipeline.steady import NEVER_STEADY, Outcome, extended, rounds_of, shorter, whole
from planner.pipeline.timing import Links, StageTimes

REPEATING = sorted(set(SCHEDULES) - set(NEVER_STEADY))


def told(name: str, shape: Shape, times: StageTimes, links: Links) -> Outcome | None:
    for laps in (4, 6, 12):
        less = shorter(name, shape, laps)
        if less is None or SCHEDULES[name].refuses(less):
            continue
        graph, turn = graph_of(SCHEDULES[name].order(less)), rounds_of(name, shape)
        found = extended(graph, times, links, turn=turn, microbatches=shape.microbatches)
        if found is not None:
            return found
    return None


def drawn(seed: int, stages: int, *, alike: bool) -> tuple[StageTimes, Links]:
    draw = np.random.default_rng(seed)
    each = [draw.uniform(0.5, 1.5, 1 if alike else stages) for _ in range(3)]
    links = Links.of(
        stages,
        latency_s=draw.uniform(0, 0.1),
        sent_bytes=draw.uniform(0, 0.3),
        bytes_per_s=1.0,
        exposed=float(draw.choice([0.0, 0.5, 1.0])),
    )
    return StageTimes.of(stages, *each, 0.1), links


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(REPEATING),
    ranks=st.sampled_from([2, 3, 4, 6]),
    laps=st.integers(5, 40),
    more=st.integers(0, 5),
    alike=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_what_is_told_from_a_short_run_is_what_the_long_one_takes(  # noqa: PLR0917
    name, ranks, laps, more, alike, seed
):
    rounds = name.startswith("interleaved") or name == "dualpipe"
    shape = Shape(ranks, SCHEDULES[name].usual_chunks, ranks * laps + (0 if rounds else more))
    assume(not SCHEDULES[name].refuses(shape))
    times, links = drawn(seed, shape.stages, alike=alike)
    found = told(name, shape, times, links)
    assume(found is not None)
    full = whole(run(graph_of(SCHEDULES[name].order(shape)), times, links))
    assert found.makespan_s == pytest.approx(full.makespan_s, rel=1e-12)
    np.testing.assert_allclose(found.busy_s, full.busy_s, rtol=1e-12)
    np.testing.assert_allclose(found.blocked_s, full.blocked_s, rtol=1e-9, atol=1e-12)
    assert found.busiest == full.busiest or alike
    assert found.bubble_s == pytest.approx(full.bubble_s, abs=1e-9 * full.makespan_s)


@pytest.mark.parametrize("name", [name for name in REPEATING if not name.startswith("dualpipe")])
def test_pipelines_of_equal_stages_are_told_from_twelve_micro_batches_a_rank(name):
    shape = Shape(4, SCHEDULES[name].usual_chunks, 4 * 500)
    times = StageTimes.of(shape.stages, 1.0, 1.1, 0.9)
    assert told(name, shape, times, Links.of(shape.stages)) is not None


@pytest.mark.parametrize("name", NEVER_STEADY)
def test_an_order_without_a_steady_phase_is_not_told_from_a_short_run(name):
    shape = Shape(4, SCHEDULES[name].usual_chunks, 400)
    links = Links.of(shape.stages)
    assert told(name, shape, StageTimes.of(shape.stages, 1.0, 1.0, 1.0), links) is None
