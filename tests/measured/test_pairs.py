"""Published pairs of runs that differ in one thing: the step gets as much faster as it did.

pairs.csv holds two rows a pair, the slower first, in the columns of tables of runs; `source_ref`
says where each was published. What is compared is time per token, so that batches may differ.
"""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import pytest

from planner.validate import predicted, read_runs

TABLE = Path(__file__).parent / "pairs.csv"
NAMES = [row["pair"] for row in csv.DictReader(TABLE.open(encoding="utf-8"))][::2]
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def ratios():
    """Pair -> (predicted, measured) time per token of the slower over the faster."""
    runs = read_runs(TABLE)
    records = predicted(runs)
    assert [r["status"] for r in records] == ["ok"] * len(runs)
    tokens = [run.context.workload.tokens for run in runs]
    out = {}
    for i, (slow, fast) in enumerate(pairwise(records)):
        if i % 2 == 0:
            assert runs[i].row["pair"] == runs[i + 1].row["pair"]
            batch = tokens[i] / tokens[i + 1]
            out[runs[i].row["pair"]] = tuple(
                slow[k] / fast[k] / batch for k in ("step_time_s_predicted", "step_time_s_measured")
            )
    return out


@pytest.mark.parametrize("pair", NAMES)
def test_what_one_change_gains_is_what_was_measured(ratios, pair):
    guess, truth = ratios[pair]
    assert guess == pytest.approx(truth, rel=TOLERANCE)
    if truth > 1.05:
        assert guess > 1.0
