"""The chart: legible at 80 columns, whatever the number of ranks and micro-batches."""

from __future__ import annotations

import pytest

from planner.pipeline.actions import Shape
from planner.pipeline.registry import SCHEDULES
from planner.pipeline.simulate import simulate
from planner.pipeline.timeline import Timeline
from planner.pipeline.timing import Links, StageTimes
from planner.report.gantt import MOST_RANKS, gantt, legend


def drawn(name: str, shape: Shape, width: int = 80, links: Links | None = None) -> list[str]:
    return [text.plain for text in gantt(timeline(name, shape, links), width)]


def timeline(name: str, shape: Shape, links: Links | None = None) -> Timeline:
    return simulate(SCHEDULES[name].order(shape), StageTimes.of(shape.stages, 1, 1, 1), links)


def test_a_small_pipeline_is_drawn_action_by_action():
    """Forward 1 s, backward 2 s, two columns a second; the order worked out by hand."""
    lines = drawn("1f1b", Shape(2, 1, 3), width=4 + 24)
    assert lines[0] == "0 |0011....aaaa22bbbb..cccc|"
    assert lines[1] == "1 |..00aaaa11bbbb22cccc....|"


@pytest.mark.parametrize("width", [72, 80, 120, 200])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("microbatches", [16, 2000])
def test_no_line_is_wider_than_asked(name, width, microbatches):
    lines = drawn(name, Shape(4, SCHEDULES[name].usual_chunks, microbatches), width)
    assert max(map(len, lines)) <= width
    assert len({len(line) for line in lines[:4]}) == 1


def test_a_long_run_shows_its_fill_and_its_drain():
    lines = drawn("1f1b", Shape(4, 1, 1000))
    assert all(" ~ " in line for line in lines[:4])
    assert lines[3].startswith("3 |...")
    assert lines[3].rstrip("|").endswith("...")
    assert "3003.00" not in lines[-1]
    assert lines[-1].rstrip().endswith("3009 s")


def test_many_ranks_are_cut_in_the_middle_and_counted():
    lines = drawn("1f1b", Shape(100, 1, 200))
    assert len(lines) == MOST_RANKS + 2
    assert any(f"... {100 - MOST_RANKS} stages more" in line for line in lines)
    assert lines[-2].startswith("99 |")


def test_sends_are_told_from_waiting():
    links = Links.of(2, latency_s=1, exposed=1)
    lines = drawn("1f1b", Shape(2, 1, 4), links=links)
    assert "-" in lines[0]
    assert "." in lines[0]


def test_stages_that_take_no_time_are_drawn_all_the_same():
    shape = Shape(2, 1, 2)
    nothing = simulate(SCHEDULES["1f1b"].order(shape), StageTimes.of(2, 0, 0, 0))
    assert len(gantt(nothing, 80)) == 3


def test_the_legend_names_weight_gradients_only_where_they_stand_apart():
    assert "weight" in legend(timeline("zb-h1", Shape(2, 1, 4)))
    assert "weight" not in legend(timeline("1f1b", Shape(2, 1, 4)))
