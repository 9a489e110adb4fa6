"""Chunks in flight: those of torch's schedules, rank by rank, and the closed forms."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from planner.pipeline.actions import Shape
from planner.pipeline.registry import SCHEDULES
from planner.pipeline.timeline import peak_in_flight

MEASURED = Path(__file__).parents[2] / "measured" / "pipeline_orders_inflight.csv"


@cache
def measured() -> list[dict[str, str]]:
    lines = MEASURED.read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def peaks(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def cases(name: str) -> list[tuple[Shape, dict[str, str]]]:
    found = [row for row in measured() if row["schedule"] == name]
    return [(Shape(int(r["pp"]), int(r["v"]), int(r["m"])), r) for r in found]


def test_the_table_holds_all_that_was_measured():
    assert sum(int(row["pp"]) for row in measured()) == 1050
    assert {row["schedule"] for row in measured()} == set(SCHEDULES) - {"dualpipe"}


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"dualpipe"}))
def test_peaks_are_those_counted_in_torchs_own_orders(name: str):
    assert len(cases(name)) >= 12
    for shape, row in cases(name):
        order = SCHEDULES[name].order(shape)
        assert peak_in_flight(order).tolist() == peaks(row["released_by_weight"]), shape
        if row["released_by_input"]:
            released = peak_in_flight(order, "input").tolist()
            assert released == peaks(row["released_by_input"]), shape


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"dualpipe"}))
def test_closed_forms_are_the_measured_peaks(name: str):
    told = 0
    for shape, row in cases(name):
        for rank, peak in enumerate(peaks(row["released_by_weight"])):
            held = SCHEDULES[name].in_flight(shape, rank)
            told += held is not None
            assert held in (None, peak), (shape, rank)
    assert told >= 80


def test_dualpipe_holds_one_more_than_its_ranks_as_its_authors_say():
    for ranks in (2, 4, 8, 16):
        for m in (2 * ranks, 2 * ranks + 2, 5 * ranks):
            order = SCHEDULES["dualpipe"].order(Shape(ranks, 2, m))
            np.testing.assert_array_equal(peak_in_flight(order), ranks + 1)
