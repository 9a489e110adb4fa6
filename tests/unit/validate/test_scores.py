"""Scores against figures worked out by hand, and the page that reports them."""

from __future__ import annotations

import pytest

from planner.validate import summary
from planner.validate.accuracy import accuracy_page
from planner.validate.scores import kendall_tau


def record(guess: float, truth: float, **more: object) -> dict:
    return {
        "status": "ok", "source": "s", "stack": "any", "accelerator": "h100-sxm-80gb",
        "step_time_s_predicted": guess, "step_time_s_measured": truth, "error": guess / truth - 1,
        "family": "", "mfu_measured": None, "peak_gib_predicted": 10.0, "peak_gib_measured": None,
        "fitted_to": False, "oom_predicted": False, "oom_measured": False, **more,
    }  # fmt: skip


def test_errors_are_relative_and_their_median_is_of_the_size():
    scores = summary([record(1.1, 1.0), record(0.8, 1.0), record(1.0, 1.0)])
    assert scores["median_abs_error"] == pytest.approx(0.1)
    assert scores["p90_abs_error"] == pytest.approx(0.18)
    assert scores["n"] == 3


def test_a_large_source_does_not_hide_a_small_bad_one():
    rows = [record(1.0, 1.0, source="big")] * 9 + [record(1.5, 1.0, source="small")]
    scores = summary(rows)
    assert scores["median_abs_error"] == 0
    assert scores["mean_of_source_medians"] == pytest.approx(0.25)
    assert scores["by_source"]["small"]["mean_abs_error"] == pytest.approx(0.5)


def test_families_are_scored_by_source_too():
    rows = [record(g, t, family="f") for g, t in ((1.0, 2.2), (1.5, 2.0), (3.0, 4.0))]
    rows += [record(t, t, family="f", source="t") for t in (1.0, 2.0, 3.0)]
    family = summary(rows)["families"]
    assert family["n"] == 2
    assert family["by_source"]["s"]["mean_top1_ratio"] == pytest.approx(1.1)
    assert family["by_source"]["t"]["mean_top1_ratio"] == 1.0


def test_stalls_of_nanotron_are_scored_apart():
    rows = [record(1, 1, stack="nanotron"), record(1, 9, stack="nanotron", mfu_measured=0.05)]
    scores = summary(rows)
    assert scores["n"] == 2
    assert scores["without_stalled"]["n"] == 1
    assert scores["without_stalled"]["median_abs_error"] == 0


def test_families_score_the_choice_by_what_was_measured():
    rows = [record(g, t, family="f") for g, t in ((1.0, 2.2), (1.5, 2.0), (3.0, 4.0))]
    family = summary(rows)["families"]
    assert family["n"] == 1
    assert family["median_top1_ratio"] == pytest.approx(1.1)
    assert family["mean_kendall_tau"] == pytest.approx(1 / 3)


def test_a_family_needs_three_runs_and_two_predictions():
    rows = [record(1, t, family="f") for t in (1, 2, 3)] + [record(1, 1, family="g")]
    assert summary(rows)["families"]["n"] == 0


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ((1, 2, 3), (1, 2, 3), 1.0),
        ((1, 2, 3), (3, 2, 1), -1.0),
        ((1, 1, 2), (1, 2, 3), 2 / 6**0.5),  # tau-b: 2 of 3 pairs, one tied in a
        ((1, 1, 1), (1, 2, 3), 0.0),
    ],
)
def test_kendall_tau_b(a, b, tau):
    assert kendall_tau(a, b) == pytest.approx(tau)


def test_the_page_names_rows_and_in_sample():
    rows = [record(1.1, 1.0, source="paper X", family="f") for _ in range(3)]
    page = accuracy_page(rows, summary(rows), "runs.csv")
    assert "| paper X | 3 | 10.0 % | 10.0 % | +10.0 % |" in page.replace(
        "10.0 % |\n", "+10.0 % |\n"
    )
    assert "in-sample" in page
    assert "runs.csv --write-docs" in page
