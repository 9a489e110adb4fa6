"""Drawing: bars add up, like stages share a bar, and a table never loses a column to the width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plan import Plan, StageMemory
from planner.report.bars import BACKGROUNDS, LETTERS, cells, single, stacked
from planner.report.explain import human
from planner.report.memory import BARS_SHOWN, grouped, shortened
from planner.report.ranked import same_everywhere, shown_fields

TERMS = [name for name in StageMemory.model_fields if name != "total"]


def stage(gib: float) -> StageMemory:
    return StageMemory(**dict.fromkeys(TERMS, gib / len(TERMS)), total=gib)


def test_every_term_of_a_stage_has_its_own_letter():
    assert list(LETTERS) == TERMS
    assert list(BACKGROUNDS) == TERMS
    assert len(set(LETTERS.values())) == len(TERMS)


@given(st.lists(st.floats(0, 100), max_size=8), st.integers(10, 200))
def test_cells_add_up_to_the_rounded_total_and_never_pass_the_limit(amounts, width):
    lengths = cells(amounts, 300.0, width)
    assert min(lengths, default=0) >= 0
    assert abs(sum(lengths) - min(width, width * sum(amounts) / 300.0)) <= 0.5 + 1e-9


def test_a_bar_shows_shares_by_length_and_a_missing_limit_by_its_end():
    assert stacked({"weights": 25.0, "optimizer": 50.0}, 100.0, 8).plain == "|WWOOOO..|"
    assert stacked({"weights": 25.0, "optimizer": 100.0}, 100.0, 8).plain == "|WWOOOOOO!"


@pytest.mark.parametrize(
    ("share", "bar"), [(0.0, ""), (0.001, "#"), (0.5, "#####"), (1, "##########")]
)
def test_a_small_share_is_still_seen(share, bar):
    assert single(share, 10) == bar


def test_stages_that_look_alike_share_a_bar():
    runs = list(grouped([stage(40), stage(40.3), stage(40.6), stage(60)], 80))
    assert [(first, last) for first, last, _ in runs] == [(0, 2), (3, 3)]
    assert runs[0][2].total == 40.6  # the heaviest speaks for its run


@pytest.mark.parametrize("heaviest", [0, 1, 7, 14, 15])
def test_many_bars_are_cut_to_the_ends_and_the_heaviest(heaviest):
    totals = [10.0 + 40 * (i == heaviest) + 3 * i for i in range(16)]
    runs = [(i, i, stage(total)) for i, total in enumerate(totals)]
    short = shortened(runs)
    drawn = [first for first, _, s in short if s is not None]
    assert {0, 15, heaviest} <= set(drawn)
    assert len(drawn) < BARS_SHOWN
    covered = [i for first, last, _ in short for i in range(first, last + 1)]
    assert covered == list(range(16))


def test_columns_are_the_main_degrees_and_what_varies(plan: Plan):
    layouts = [row.layout for row in plan.plans]
    assert shown_fields(layouts) == ["tp", "pp", "vpp", "dp", "zero"]
    tuned = [x.model_copy(update={"recompute": "full", "cp": 2}) for x in layouts]
    assert shown_fields(tuned) == ["tp", "pp", "vpp", "dp", "zero"]
    assert same_everywhere(tuned, shown_fields(tuned)) == "cp=2, micro_batch=1, recompute=full"


def test_a_schedule_or_sp_that_follows_from_the_degrees_takes_no_column(plan: Plan):
    layouts = [row.layout for row in plan.plans]
    odd = [layouts[0].model_copy(update={"schedule": "gpipe", "sp": False}), *layouts[1:]]
    assert {"schedule", "sp"} <= set(shown_fields(odd))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2**31, "bytes", "2.00 GiB"),
        (2**20, "bytes", "1.00 MiB"),
        (0.0125, "s", "12.50 ms"),
        (4e11, "bytes/s", "400.0 GB/s"),
        (3.2e14, "FLOPs", "320.00T"),
        (5, "micro-batches", "5"),
        (1.125, "tokens/mean", "1.125"),
    ],
)
def test_values_are_shown_in_units_that_read_well(value, unit, text):
    assert human(value, unit) == text
